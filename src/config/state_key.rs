//! The keys that the state is sealed with, from the environment: never from flags or files, where others
//! could see them.

use super::Env;
use crate::base::{Code, Error, Result};
use crate::store::{KEY_VARIABLE, Key};

/// The key that the state is to be changed to by `spiderweb-config state reseal`.
pub const NEW_KEY_VARIABLE: &str = "SPIDERWEB_CONTROL_STATE_NEW_KEY_HEX";

/// The key of the state; `None` where it is not to be sealed. Errors: `invalid_config`, naming the variable.
pub fn state_key(env: &Env) -> Result<Option<Key>> {
    key(env, KEY_VARIABLE)
}

/// The key in an environment variable: 64 hexadecimal digits (spec: control 1).
pub fn key(env: &Env, variable: &str) -> Result<Option<Key>> {
    let Some(text) = env.get(variable).map(str::trim).filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    let wrong = || {
        // The text itself may be a key but for a slip: it stays out of the message.
        let message = format!(
            "environment variable {variable} must be 64 hexadecimal digits, as `openssl rand -hex 32` \
             prints, or unset; it has {} characters",
            text.chars().count()
        );
        Error::new(Code::Config, message)
    };
    Key::from_hex(text).map(Some).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_whole_or_refused() {
        let env = |text: &str| [(KEY_VARIABLE, text)].into_iter().collect::<Env>();
        assert!(state_key(&Env::default()).unwrap().is_none());
        assert!(state_key(&env("  ")).unwrap().is_none());
        assert!(state_key(&env(&format!(" {}\n", "aB".repeat(32)))).unwrap().is_some());
        for bad in ["secret", &"ab".repeat(31), &"zz".repeat(32)] {
            let e = state_key(&env(bad)).unwrap_err();
            assert_eq!(e.code, Code::Config);
            assert!(e.message.contains(KEY_VARIABLE) && !e.message.contains(bad), "{e}");
        }
    }
}
