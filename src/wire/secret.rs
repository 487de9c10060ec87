//! Which texts are secrets: by the name of the member that holds them, and by the form of the tokens that
//! the gateway gives out. What is logged or told to many goes through here.

use regex::Regex;
use serde_json::Value;
use std::borrow::Cow;
use std::sync::LazyLock;

/// What stands in place of a secret.
pub const REDACTED: &str = "[redacted]";

/// Names of members that hold secrets, whatever stands before `_` or `-` (spec: runtime 6.10).
const NAMES: [&str; 7] =
    ["api_key", "apikey", "authorization", "auth_token", "token", "secret", "password"];
const ENDS: [&str; 6] = ["_token", "-token", "_secret", "-secret", "_api_key", "-api-key"];

/// Tokens as they are given out (spec: control 5.1 and 7), keys of providers, and what follows `Bearer`.
static TOKENS: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(concat!(
        r"(?:secret|inv|lease|claim|proj)-[0-9a-f]{32}",
        r"|sw-[a-z]+_[A-Za-z0-9_-]{32}",
        r"|swg1\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+",
        r"|\bsk-[A-Za-z0-9_-]{16,}",
        r"|\b[Bb]earer [A-Za-z0-9._~+/=-]{16,}",
    ))
    .expect("a constant that the tests compile")
});

/// Whether a member of this name holds a secret.
pub fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    NAMES.contains(&name.as_str()) || ENDS.iter().any(|end| name.ends_with(end))
}

/// Takes out the values of members whose names say that they are secret.
pub fn redact(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(redact),
        Value::Object(members) => {
            for (name, value) in members {
                match is_secret(name) {
                    true => *value = REDACTED.into(),
                    false => redact(value),
                }
            }
        }
        _ => {}
    }
}

/// Takes out every token of a known form. JSON stays JSON.
pub fn mask(text: &str) -> Cow<'_, str> {
    TOKENS.replace_all(text, REDACTED)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::id;
    use serde_json::json;

    #[test]
    fn secrets_go_by_their_name_and_by_their_form() {
        let mut value = json!({"node_secret": 7, "a": [{"Password": {"x": 1}, "tokens": 5}]});
        redact(&mut value);
        assert_eq!(
            value,
            json!({"node_secret": REDACTED, "a": [{"Password": REDACTED, "tokens": 5}]})
        );
        for token in [
            id::hex_token("secret-"),
            id::hex_token("inv-"),
            id::bearer_token("sw-admin_"),
            "sk-abcdefghijklmnop".into(),
            "Bearer abcdefghijklmnop".into(),
            "swg1.eyJ9.c2lnbmVk_-".into(),
        ] {
            assert_eq!(mask(&format!("{{\"x\":\"is {token}!\"}}")), r#"{"x":"is [redacted]!"}"#);
        }
        for harmless in ["proj-1", "node-12 has a secret-sauce", "task-abcdefghijklmnopqrst"] {
            assert_eq!(mask(harmless), harmless);
        }
    }
}
