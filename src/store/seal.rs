//! Values that hold secrets, sealed with AES-256-GCM. Each is bound to its row's name and revision, so
//! that rows cannot be exchanged; a digest over all rows, sealed with them, shows when one was removed or
//! an old one put back. No tables: where the sealed bytes stand is for others to say.

use crate::base::{Code, Error, Result};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hmac;
use std::fmt;

/// Bytes of a key.
const KEY_LEN: usize = 32;
/// Bytes of a [`Digest`].
const DIGEST_LEN: usize = 32;
/// First byte of what is sealed in this form.
const FORM: u8 = 1;

/// A secret key. It is in no log and no message.
#[derive(Clone)]
pub struct Key([u8; KEY_LEN]);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(…)")
    }
}

impl Key {
    /// From 64 hexadecimal digits; `None` for anything else.
    pub fn from_hex(text: &str) -> Option<Key> {
        let digits: Option<Vec<u8>> =
            text.chars().map(|c| c.to_digit(16).and_then(|d| u8::try_from(d).ok())).collect();
        let digits = digits?;
        let bytes: Vec<u8> = digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect();
        let whole = digits.len() == 2 * KEY_LEN;
        bytes.try_into().ok().filter(|_| whole).map(Key)
    }

    /// A key for one purpose, of which the others tell nothing.
    fn derive(&self, purpose: &str) -> hmac::Key {
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &self.0), purpose.as_bytes());
        hmac::Key::new(hmac::HMAC_SHA256, tag.as_ref())
    }

    /// Opens `sealed` (ciphertext and tag) as it is, under this very key.
    pub(super) fn open(
        &self,
        nonce: [u8; NONCE_LEN],
        aad: &[u8],
        sealed: &[u8],
    ) -> Option<Vec<u8>> {
        let mut bytes = sealed.to_vec();
        let nonce = Nonce::assume_unique_for_key(nonce);
        let plain = cipher(&self.0).open_in_place(nonce, Aad::from(aad), &mut bytes).ok()?.len();
        bytes.truncate(plain);
        Some(bytes)
    }

    /// The nonce, and the ciphertext with its tag.
    pub(super) fn seal(&self, aad: &[u8], plain: &[u8]) -> ([u8; NONCE_LEN], Vec<u8>) {
        let nonce = crate::base::id::random::<NONCE_LEN>();
        let mut bytes = plain.to_vec();
        let unique = Nonce::assume_unique_for_key(nonce);
        cipher(&self.0)
            .seal_in_place_append_tag(unique, Aad::from(aad), &mut bytes)
            .expect("rows are shorter than the 64 GiB that AES-GCM can seal");
        (nonce, bytes)
    }
}

fn cipher(key: &[u8]) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).expect("the key has 32 bytes"))
}

/// Which rows there are, at which revisions: the same whatever the order they came in. Keyed, so that
/// nobody else can make one; only ever kept sealed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Digest([u8; DIGEST_LEN]);

/// Seals and opens the values of rows.
pub(super) struct Sealer {
    values: hmac::Key,
    digests: hmac::Key,
}

impl Sealer {
    pub(super) fn new(key: &Key) -> Sealer {
        Sealer {
            values: key.derive("spiderweb state values 1"),
            digests: key.derive("spiderweb state digest 1"),
        }
    }

    /// A key of this row's revision alone: random nonces never run short, however many rows are written.
    fn key(&self, row: &[u8]) -> Key {
        let tag = hmac::sign(&self.values, row);
        Key(tag.as_ref().try_into().expect("HMAC-SHA256 has 32 bytes"))
    }

    pub(super) fn seal(&self, name: &str, revision: u64, plain: &[u8]) -> Vec<u8> {
        let row = row(name, revision);
        let (nonce, sealed) = self.key(&row).seal(&row, plain);
        [&[FORM][..], &nonce, &sealed].concat()
    }

    /// Errors: `storage_error` when it was sealed for another row, with another key, or changed since.
    pub(super) fn open(&self, name: &str, revision: u64, sealed: &[u8]) -> Result<Vec<u8>> {
        let open = || {
            let (nonce, sealed) = sealed.strip_prefix(&[FORM])?.split_first_chunk()?;
            let row = row(name, revision);
            self.key(&row).open(*nonce, &row, sealed)
        };
        open().ok_or_else(|| {
            let message = format!("row {name:?} is not as it was sealed");
            Error::new(Code::StorageError, message)
        })
    }

    /// Adds a row to the digest, or takes it out again.
    pub(super) fn toggle(&self, digest: &mut Digest, name: &str, revision: u64) {
        let tag = hmac::sign(&self.digests, &row(name, revision));
        digest.0.iter_mut().zip(tag.as_ref()).for_each(|(d, t)| *d ^= t);
    }

    pub(super) fn seal_digest(&self, digest: &Digest, revision: u64) -> Vec<u8> {
        self.seal("", revision, &digest.0)
    }

    pub(super) fn open_digest(&self, sealed: &[u8], revision: u64) -> Result<Digest> {
        let bytes = self.open("", revision, sealed)?;
        let bytes = bytes.try_into().map_err(|_| Error::new(Code::StorageError, "bad digest"))?;
        Ok(Digest(bytes))
    }
}

/// A row and its revision, in one spelling. No row has an empty name: that is the digest's.
fn row(name: &str, revision: u64) -> Vec<u8> {
    [&revision.to_be_bytes()[..], name.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(digit: &str) -> Key {
        Key::from_hex(&digit.repeat(64)).unwrap()
    }

    #[test]
    fn a_key_is_64_hexadecimal_digits() {
        assert_eq!(Key::from_hex(&"0F".repeat(32)).unwrap().0, [15; 32]);
        for bad in ["", "0f", &"0".repeat(63), &"0".repeat(65), &"g".repeat(64), &"é".repeat(32)] {
            assert!(Key::from_hex(bad).is_none(), "{bad}");
        }
        assert_eq!(format!("{:?}", key("a")), "Key(…)");
    }

    #[test]
    fn what_is_sealed_opens_only_in_its_place() {
        let sealer = Sealer::new(&key("a"));
        let sealed = sealer.seal("node/1", 7, b"secret");
        assert_eq!(sealer.open("node/1", 7, &sealed).unwrap(), b"secret");
        assert_ne!(sealed, sealer.seal("node/1", 7, b"secret"));
        assert!(!sealed.windows(6).any(|w| w == b"secret"));
        assert!(sealer.open("node/2", 7, &sealed).is_err());
        assert!(sealer.open("node/1", 8, &sealed).is_err());
        assert!(Sealer::new(&key("b")).open("node/1", 7, &sealed).is_err());
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert!(sealer.open("node/1", 7, &changed).is_err(), "byte {at}");
            assert!(sealer.open("node/1", 7, &sealed[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn a_digest_is_that_of_the_rows_whatever_their_order() {
        let sealer = Sealer::new(&key("a"));
        let digest = |rows: &[(&str, u64)]| {
            let mut digest = Digest::default();
            rows.iter().for_each(|(name, revision)| sealer.toggle(&mut digest, name, *revision));
            digest
        };
        assert_eq!(
            digest(&[("a", 1), ("b", 2)]),
            digest(&[("b", 2), ("a", 3), ("a", 1), ("a", 3)])
        );
        assert_ne!(digest(&[("a", 1)]), digest(&[("a", 2)]));
        let sealed = sealer.seal_digest(&digest(&[("a", 1)]), 5);
        assert_eq!(sealer.open_digest(&sealed, 5).unwrap(), digest(&[("a", 1)]));
        assert!(sealer.open_digest(&sealed, 4).is_err());
    }
}
