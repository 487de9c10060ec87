//! A JSON object as its author wrote it: the order of members and the text of every value are kept, so
//! that changing one setting changes nothing else in the file.

use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Value, json};
use std::marker::PhantomData;

/// The members of an object, in order.
#[derive(Clone, Debug)]
struct Members<V>(Vec<(String, V)>);

/// A config file: sections with members.
#[derive(Clone, Debug)]
pub(super) struct Document(Members<Section>);

#[derive(Clone, Debug)]
enum Section {
    Object(Members<Box<RawValue>>),
    /// Kept, but no section.
    Other(Box<RawValue>),
}

impl Document {
    pub(super) fn empty() -> Document {
        Document(Members(Vec::new()))
    }

    /// Errors name line and column.
    pub(super) fn parse(text: &[u8]) -> serde_json::Result<Document> {
        let members: Members<Box<RawValue>> = serde_json::from_slice(text)?;
        let section = |(name, raw): (String, Box<RawValue>)| {
            let object = serde_json::from_str(raw.get());
            (name, object.map_or(Section::Other(raw), Section::Object))
        };
        Ok(Document(Members(members.0.into_iter().map(section).collect())))
    }

    pub(super) fn to_text(&self) -> Vec<u8> {
        let mut text = serde_json::to_vec_pretty(&self.0).expect("JSON can be written as JSON");
        text.push(b'\n');
        text
    }

    /// The value at `section.key`; null counts as absent.
    pub(super) fn get(&self, path: &str) -> Option<Value> {
        let (section, key) = split(path);
        let Section::Object(members) = self.0.get(section)? else { return None };
        serde_json::from_str(members.get(key)?.get()).ok().filter(|v: &Value| !v.is_null())
    }

    /// Every `section.key`, and `Err` for what stands where a section should.
    pub(super) fn paths(&self) -> impl Iterator<Item = Result<String, &str>> {
        self.0.0.iter().flat_map(|(name, section)| match section {
            Section::Object(Members(members)) => {
                members.iter().map(|(key, _)| Ok(format!("{name}.{key}"))).collect()
            }
            Section::Other(_) => vec![Err(name.as_str())],
        })
    }

    /// Sets `section.key` in its place, or at the end; `None` removes it.
    pub(super) fn set(&mut self, path: &str, value: Option<Value>) {
        let (section, key) = split(path);
        let raw = value.map(|v| to_raw_value(&v).expect("JSON can be written as JSON"));
        let sections = &mut self.0.0;
        let at = sections.iter().rposition(|(name, _)| name == section).unwrap_or_else(|| {
            sections.push((section.to_owned(), Section::Object(Members(Vec::new()))));
            sections.len() - 1
        });
        match &mut sections[at].1 {
            Section::Object(members) => members.set(key, raw),
            // It was no section; a file with such a thing is refused before it is changed.
            Section::Other(other) => *other = to_raw_value(&json!({ key: raw })).expect("JSON"),
        }
    }
}

fn split(path: &str) -> (&str, &str) {
    path.split_once('.').expect("the path of a setting has two parts")
}

impl<V> Members<V> {
    /// As everywhere: of two members with the same name, the last one counts.
    fn get(&self, name: &str) -> Option<&V> {
        self.0.iter().rev().find(|(n, _)| n == name).map(|(_, v)| v)
    }

    fn set(&mut self, name: &str, value: Option<V>) {
        let at = self.0.iter().position(|(n, _)| n == name);
        self.0.retain(|(n, _)| n != name);
        if let Some(value) = value {
            self.0.insert(at.unwrap_or(self.0.len()), (name.to_owned(), value));
        }
    }
}

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Members<V> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Members<V>, D::Error> {
        struct InOrder<V>(PhantomData<V>);
        impl<'de, V: Deserialize<'de>> Visitor<'de> for InOrder<V> {
            type Value = Members<V>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<V>, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        d.deserialize_map(InOrder(PhantomData))
    }
}

impl<V: Serialize> Serialize for Members<V> {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_map(self.0.iter().map(|(name, value)| (name, value)))
    }
}

impl Serialize for Section {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self {
            Section::Object(members) => members.serialize(s),
            Section::Other(raw) => raw.serialize(s),
        }
    }
}
