//! The catalogue of models, from `models.json`: per provider, the one used when none is named comes first.

use serde::Deserialize;
use std::collections::HashMap;
use std::sync::LazyLock;

/// A model and its limits, in tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Model {
    pub provider: String,
    pub id: String,
    pub context: u32,
    pub output: u32,
    /// Thinks before it answers.
    pub reasoning: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    id: String,
    context: u32,
    output: u32,
    #[serde(default)]
    reasoning: bool,
}

static CATALOGUE: LazyLock<HashMap<String, Vec<Entry>>> = LazyLock::new(|| {
    serde_json::from_str(include_str!("models.json")).expect("a test reads the same text")
});

/// Limits of a model that the catalogue does not know: those of the smallest in common use.
const UNKNOWN_CONTEXT: u32 = 128_000;
const UNKNOWN_OUTPUT: u32 = 16_384;

pub(super) fn choose(provider: &str, id: Option<&str>) -> Model {
    let entries = CATALOGUE.get(provider).map(Vec::as_slice).unwrap_or_default();
    let entry = match id {
        Some(id) => entries.iter().find(|entry| entry.id == id),
        None => entries.first(),
    };
    match entry {
        Some(e) => Model {
            provider: provider.to_owned(),
            id: e.id.clone(),
            context: e.context,
            output: e.output,
            reasoning: e.reasoning,
        },
        None => {
            let id = id.unwrap_or("default").to_owned();
            log::warn!("model {id} of {provider} is not in the catalogue; using default limits");
            Model {
                provider: provider.to_owned(),
                id,
                context: UNKNOWN_CONTEXT,
                output: UNKNOWN_OUTPUT,
                reasoning: false,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_catalogue_is_sound_and_unknown_models_get_defaults() {
        for (provider, entries) in &*CATALOGUE {
            let mut ids: Vec<_> = entries.iter().map(|e| &e.id).collect();
            ids.sort();
            ids.dedup();
            assert_eq!(ids.len(), entries.len(), "{provider}");
            assert!(entries.iter().all(|e| e.output > 0 && e.output <= e.context));
        }
        assert_eq!(choose("openai", None).id, "gpt-4o-mini");
        assert!(choose("openai", Some("gpt-5.1")).reasoning);
        let unknown = choose("openai", Some("gpt-99"));
        assert_eq!((unknown.id.as_str(), unknown.context), ("gpt-99", UNKNOWN_CONTEXT));
    }
}
