//! Random tokens and secrets, and their constant-time comparison.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// Bytes of the kernel's random generator.
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0u8; N];
    // The kernel's generator fails only where getrandom(2) does not exist; then nothing is safe to do.
    getrandom::fill(&mut bytes).expect("the kernel's random generator answers");
    bytes
}

/// `prefix` and 128 random bits in lower-case hex, as in `inv-…`, `secret-…` (spec: control 7).
pub fn hex_token(prefix: &str) -> String {
    format!("{prefix}{}", hex(&random::<16>()))
}

/// Bytes in lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    let digit = |n: u8| char::from(b"0123456789abcdef"[usize::from(n)]);
    bytes.iter().flat_map(|b| [digit(b >> 4), digit(b & 15)]).collect()
}

/// `prefix` and 24 random bytes in unpadded base64url, as in `sw-admin_…` (spec: control 5.1).
pub fn bearer_token(prefix: &str) -> String {
    format!("{prefix}{}", URL_SAFE_NO_PAD.encode(random::<24>()))
}

/// A random number that every JSON reader holds exactly (below 2^53) and that is never 0.
pub fn random_u53() -> u64 {
    (u64::from_le_bytes(random::<8>()) >> 11) | 1
}

/// Compares secrets without telling by its duration where they differ; the length may show.
pub fn same_secret(a: &str, b: &str) -> bool {
    use subtle::ConstantTimeEq;
    a.as_bytes().ct_eq(b.as_bytes()).into()
}

/// True for 1 to `max` bytes of `[A-Za-z0-9._-]` (spec: control 7, "identifier").
pub fn is_identifier(s: &str, max: usize) -> bool {
    !s.is_empty()
        && s.len() <= max
        && s.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_have_the_documented_shape() {
        let t = hex_token("inv-");
        assert_eq!(t.len(), 36);
        assert!(t[4..].bytes().all(|b| b.is_ascii_hexdigit() && !b.is_ascii_uppercase()));
        let b = bearer_token("sw-admin_");
        assert_eq!(b.len(), 9 + 32);
        assert_ne!(b, bearer_token("sw-admin_"));
        assert!(random_u53() < 1 << 53);
    }

    #[test]
    fn identifiers() {
        assert!(is_identifier("node-1.a_B", 128));
        assert!(!is_identifier("", 128) && !is_identifier("a/b", 128) && !is_identifier("abc", 2));
    }
}
