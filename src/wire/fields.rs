//! The members of a JSON object, read lazily: each getter checks the type and names the member when
//! it is wrong. Values are borrowed from the text, so large ones are not copied to be looked at.

use crate::base::{Code, Error, Result};
use base64::Engine;
use base64::engine::GeneralPurposeConfig;
use base64::engine::simd::Simd;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::sync::LazyLock;

/// The members of one object. `null` counts as absent; of a repeated member the last one counts.
#[derive(Clone, Debug, Default)]
pub struct Fields<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'a> Fields<'a> {
    /// Errors: `Err(None)` for JSON that is not an object, `Err(Some(_))` for text that is not JSON.
    pub fn parse(text: &'a str) -> std::result::Result<Fields<'a>, Option<serde_json::Error>> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = Fields<'de>;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::with_capacity(8);
                while let Some(Text(key)) = map.next_key::<Text<'de>>()? {
                    members.push((key, map.next_value::<&'de RawValue>()?));
                }
                Ok(Fields(members))
            }
        }
        let mut json = serde_json::Deserializer::from_str(text);
        let members = json.deserialize_map(Members).and_then(|m| json.end().map(|()| m));
        members.map_err(|e| if e.is_data() { None } else { Some(e) })
    }

    /// The members of a value that must be an object.
    pub fn of(what: &str, value: &'a RawValue) -> Result<Fields<'a>> {
        Fields::parse(value.get())
            .map_err(|_| Error::new(Code::InvalidPayload, format!("{what} must be an object")))
    }

    /// The value of a member, unless it is absent or null.
    pub fn get(&self, name: &str) -> Option<&'a RawValue> {
        let found = self.0.iter().rev().find(|(k, _)| k == name).map(|(_, v)| *v);
        found.filter(|v| v.get() != "null")
    }

    /// True when the member is there, be it null.
    pub fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(k, _)| k == name)
    }

    /// All members in the order written.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &'a RawValue)> {
        self.0.iter().map(|(k, v)| (&**k, *v))
    }

    /// The name of a member that is none of `known`, if there is one.
    pub fn unknown(&self, known: &[&str]) -> Option<&str> {
        self.0.iter().map(|(k, _)| &**k).find(|k| !known.contains(k))
    }

    /// The same members under their first names, for those that have a second one, as in
    /// `(second, first)`. Where both are given, the first name counts.
    pub fn respelled(mut self, names: &[(&'static str, &'static str)]) -> Fields<'a> {
        for (second, first) in names {
            if self.get(first).is_some() {
                continue;
            }
            for (key, _) in self.0.iter_mut().filter(|(key, _)| key == second) {
                *key = Cow::Borrowed(first);
            }
        }
        self
    }

    fn typed<T: serde::Deserialize<'a>>(&self, name: &str, what: &str) -> Result<Option<T>> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let wrong = |_| Error::new(Code::InvalidPayload, format!("{name} must be {what}"));
        serde_json::from_str(value.get()).map(Some).map_err(wrong)
    }

    pub fn str(&self, name: &str) -> Result<Option<Cow<'a, str>>> {
        Ok(self.typed::<Text<'a>>(name, "a string")?.map(|t| t.0))
    }

    pub fn string(&self, name: &str) -> Result<Option<String>> {
        Ok(self.str(name)?.map(Cow::into_owned))
    }

    /// A string that must be there and not empty. Errors: `missing_field`, `invalid_payload`.
    pub fn required(&self, name: &str) -> Result<String> {
        self.string(name)?.filter(|s| !s.is_empty()).ok_or_else(|| Error::missing(name))
    }

    pub fn bool(&self, name: &str) -> Result<Option<bool>> {
        self.typed(name, "bool")
    }

    pub fn u32(&self, name: &str) -> Result<Option<u32>> {
        self.typed(name, "u32")
    }

    pub fn u64(&self, name: &str) -> Result<Option<u64>> {
        self.typed(name, "u64")
    }

    pub fn i64(&self, name: &str) -> Result<Option<i64>> {
        self.typed(name, "an integer")
    }

    pub fn object(&self, name: &str) -> Result<Option<Fields<'a>>> {
        self.get(name).map(|v| Fields::of(name, v)).transpose()
    }

    pub fn array(&self, name: &str) -> Result<Option<Vec<&'a RawValue>>> {
        self.typed(name, "an array")
    }

    pub fn strings(&self, name: &str) -> Result<Option<Vec<String>>> {
        self.typed(name, "an array of strings")
    }

    /// Standard padded base64. Errors: `invalid`, with the words that old clients know.
    pub fn base64(&self, name: &str) -> Result<Option<Vec<u8>>> {
        self.str(name)?.map(|text| base64_decode(&text)).transpose()
    }
}

/// A string that is borrowed where it has no escapes.
struct Text<'a>(Cow<'a, str>);

impl<'de> serde::Deserialize<'de> for Text<'de> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = Text<'de>;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a string")
            }
            fn visit_borrowed_str<E>(self, s: &'de str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Borrowed(s)))
            }
            fn visit_str<E>(self, s: &str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Owned(s.to_owned())))
            }
            fn visit_string<E>(self, s: String) -> Result<Self::Value, E> {
                Ok(Text(Cow::Owned(s)))
            }
        }
        d.deserialize_str(V)
    }
}

/// The vectorised engine: several times the scalar one's speed on file data.
static BASE64: LazyLock<Simd> = LazyLock::new(|| Simd::standard(GeneralPurposeConfig::new()));

/// Standard padded base64.
pub fn base64_encode(data: &[u8]) -> String {
    BASE64.encode(data)
}

/// Errors: `invalid`, "invalid base64 payload" (spec: fs 5, write).
pub fn base64_decode(text: &str) -> Result<Vec<u8>> {
    BASE64.decode(text).map_err(|_| Error::invalid("invalid base64 payload"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_typed_and_named_when_wrong() {
        let f = Fields::parse(r#"{"a":"x\n","n":7,"z":null,"o":{"k":1},"n":8,"e":""}"#).unwrap();
        assert_eq!(f.string("a").unwrap().unwrap(), "x\n");
        assert_eq!(f.u64("n").unwrap(), Some(8));
        assert_eq!(f.string("z").unwrap(), None);
        assert!(f.has("z") && !f.has("y"));
        assert_eq!(f.object("o").unwrap().unwrap().u32("k").unwrap(), Some(1));
        assert_eq!(f.required("e").unwrap_err().code, Code::MissingField);
        let e = f.u32("a").unwrap_err();
        assert_eq!((e.code, &*e.message), (Code::InvalidPayload, "a must be u32"));
    }

    #[test]
    fn what_is_not_an_object_is_told_from_what_is_not_json() {
        assert!(Fields::parse("[1]").unwrap_err().is_none());
        assert!(Fields::parse("7").unwrap_err().is_none());
        assert!(Fields::parse("{\"a\":").unwrap_err().is_some());
        assert!(Fields::parse("{} x").unwrap_err().is_some());
    }

    #[test]
    fn base64_is_strict() {
        assert_eq!(base64_decode(&base64_encode(b"hello")).unwrap(), b"hello");
        assert!(base64_decode("aGVsbG8").is_err() && base64_decode("a*==").is_err());
    }
}
