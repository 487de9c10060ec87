//! Grants: tokens that open some exports of a node, for a time (spec: fs 23.3, S6 and S7). Whoever knows the
//! node's secret mints them, and the node verifies them with nothing but that secret. What a grant lets its
//! bearer do is decided elsewhere.

use crate::base::{Code, Error, Result};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hmac;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What every grant begins with.
const PREFIX: &str = "swg1.";
/// Parts the key of grants from other uses of the secret.
const PURPOSE: &[u8] = b"spiderweb fs grant 1";
/// Bytes of a token.
const TOKEN_MAX: usize = 4096;

/// How an export may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Access {
    #[serde(rename = "ro")]
    ReadOnly,
    #[serde(rename = "rw")]
    ReadWrite,
}

/// The exports that somebody may use, by name; others do not exist for him.
pub type Rights = BTreeMap<String, Access>;

/// A member that is not known could be a limit, so a grant that has one is refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grant {
    pub exports: Rights,
    /// For whom it is.
    pub sub: String,
    /// Unix time.
    #[serde(rename = "exp")]
    pub expires_at_s: u64,
}

impl Grant {
    /// Whether a token says that it is a grant.
    pub fn is_one(token: &str) -> bool {
        token.starts_with(PREFIX)
    }

    /// `swg1.<payload>.<signature>`, the payload compact JSON, both in unpadded base64url. Errors: `usage`
    /// where it would be too long.
    pub fn mint(&self, secret: &str) -> Result<String> {
        let payload = serde_json::to_vec(self).expect("names and numbers are JSON");
        let signed = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(payload));
        let signature = hmac::sign(&key(secret), signed.as_bytes());
        let token = format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature));
        match token.len() <= TOKEN_MAX {
            true => Ok(token),
            false => Err(Error::new(Code::Usage, "a grant for so many exports is too long")),
        }
    }

    /// Reads a token that was minted with this secret. Errors: EINVAL, `AuthFailed` and why.
    pub fn open(secret: &str, token: &str, now_s: u64) -> Result<Grant> {
        let failed = |why: &str| Error::new(Code::Invalid, format!("AuthFailed: {why}"));
        let bad_form = || failed("the grant is malformed");
        if token.len() > TOKEN_MAX {
            return Err(bad_form());
        }
        let (signed, signature) = token.rsplit_once('.').ok_or_else(bad_form)?;
        let payload = signed.strip_prefix(PREFIX).ok_or_else(bad_form)?;
        let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| bad_form())?;
        // Nothing is read of what nobody has signed.
        hmac::verify(&key(secret), signed.as_bytes(), &signature)
            .map_err(|_| failed("the grant was not made with this node's secret"))?;
        let payload = URL_SAFE_NO_PAD.decode(payload).map_err(|_| bad_form())?;
        let grant: Grant = serde_json::from_slice(&payload).map_err(|_| bad_form())?;
        match now_s < grant.expires_at_s {
            true => Ok(grant),
            false => Err(failed("the grant has expired")),
        }
    }
}

fn key(secret: &str) -> hmac::Key {
    let root = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    hmac::Key::new(hmac::HMAC_SHA256, hmac::sign(&root, PURPOSE).as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grant() -> Grant {
        let exports =
            [("work".into(), Access::ReadWrite), ("docs".into(), Access::ReadOnly)].into();
        Grant { exports, sub: "user:alice".into(), expires_at_s: 1000 }
    }

    fn why(secret: &str, token: &str, now_s: u64) -> String {
        let e = Grant::open(secret, token, now_s).unwrap_err();
        assert_eq!(e.code, Code::Invalid);
        e.message.strip_prefix("AuthFailed: the grant ").unwrap().to_owned()
    }

    #[test]
    fn what_was_minted_opens_until_it_expires() {
        let token = grant().mint("s").unwrap();
        assert!(Grant::is_one(&token) && !Grant::is_one("secret-x"));
        assert_eq!(token, grant().mint("s").unwrap(), "the same for the same");
        let payload = token.split('.').nth(1).unwrap();
        assert_eq!(
            URL_SAFE_NO_PAD.decode(payload).unwrap(),
            br#"{"exports":{"docs":"ro","work":"rw"},"sub":"user:alice","exp":1000}"#
        );
        assert_eq!(Grant::open("s", &token, 999).unwrap(), grant());
        assert_eq!(why("s", &token, 1000), "has expired");
        assert_eq!(why("s2", &token, 999), "was not made with this node's secret");
    }

    #[test]
    fn no_byte_can_be_changed() {
        let token = grant().mint("s").unwrap();
        for at in 0..token.len() {
            let mut bytes = token.clone().into_bytes();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(bytes).unwrap();
            assert!(Grant::open("s", &changed, 0).is_err(), "{changed}");
            assert!(Grant::open("s", &token[..at], 0).is_err());
        }
        assert!(Grant::open("s", &format!("{token}A"), 0).is_err());
        assert!(Grant::open("s", &format!("{token}="), 0).is_err());
    }

    #[test]
    fn what_makes_no_sense_is_refused_even_if_it_is_signed() {
        let signed = |payload: &str| {
            let signed = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(payload));
            let signature = hmac::sign(&key("s"), signed.as_bytes());
            format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
        };
        for payload in [
            "",
            "{}",
            "[1]",
            r#"{"exports":{"a":"x"},"sub":"u","exp":9}"#,
            r#"{"exports":{"a":"ro"},"sub":"u","exp":-9}"#,
            r#"{"exports":{"a":"ro"},"sub":"u","exp":9,"path":"/only"}"#,
        ] {
            assert_eq!(why("s", &signed(payload), 0), "is malformed", "{payload}");
        }
        for bad in ["", "swg1.", "swg1..", "swg2.e30.e30", "x", &"swg1.".repeat(1 << 16)] {
            assert!(Grant::open("s", bad, 0).is_err());
        }
        let many = (0..1000).map(|n| (format!("export-{n}"), Access::ReadOnly)).collect();
        assert_eq!(Grant { exports: many, ..grant() }.mint("s").unwrap_err().code, Code::Usage);
    }
}
