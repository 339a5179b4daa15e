//! Recipes as text for people: the help on every key, and the recipe with every key filled in.

use std::fmt::Write;

use serde::de::DeserializeOwned;
use toml::Value;

use super::Recipe;
use super::form::written;
use super::keys::{FEATURES, KEYS, Key, Preset};
use crate::error::{Error, Result};

/// Every key of a recipe with its default, what is allowed and what it does: the long help of `headfirst train`.
pub fn help() -> String {
    let mut text = String::from(
        "A RECIPE is a TOML file. Relative paths in it, and in --set, start at the recipe's folder.\n\
         --set KEY=VALUE overrides a key, such as --set optimizer.learning_rate=0.5. A value is TOML;\n\
         a word that is not is a text. --set seed=N replaces seeds too, and a table replaces its section.\n",
    );
    let mut heading = String::new();
    for key in KEYS {
        let (section, name) = split(key.name);
        let kind = key.only_with.map(|(kind, words)| format!("with {kind} = \"{}\"", words.join("\" or \"")));
        let place = match section {
            "" => "Keys at the top".to_owned(),
            section => format!("[{section}]"),
        };
        let next = match kind {
            Some(kind) => format!("{place} {kind}"),
            None => place,
        };
        if next != heading {
            if key.name == "batch.utterances" {
                text.push_str(&features_help());
            }
            let _ = write!(text, "\n{next}\n");
            heading = next;
        }
        let default = match key.default {
            Preset::Required => format!("{name}   (required)"),
            Preset::Value(value) => format!("{name} = {value}"),
            Preset::Derived(words) => format!("{name}   (default: {words})"),
        };
        let _ = write!(text, "  {default}\n        {}.\n        Allowed: {}.\n", key.help, key.form);
    }
    text
}

fn features_help() -> String {
    format!(
        "\n[{FEATURES}] with data.kind = \"speech\"\n  num_mel_bins, pitch, sample_frequency, ...\n        \
         As in features.toml, which `data-tools features` writes beside its arks.\n"
    )
}

/// A key's section and its name within it.
fn split(key: &str) -> (&str, &str) {
    key.rsplit_once('.').unwrap_or(("", key))
}

pub fn filled(recipe: &Recipe) -> Result<String> {
    let cannot = |error: toml::ser::Error| Error::program(format!("the recipe cannot be written as TOML: {error}"));
    let tree = Value::try_from(recipe).map_err(cannot)?;
    let mut text = String::new();
    let mut section = "";
    for key in KEYS.iter().filter(|key| exists(key, &tree)) {
        let value = match (key.name, recipe.seeds.as_slice()) {
            // One of these two: together they are an error.
            ("seed", [seed]) => Some(Value::try_from(seed).map_err(cannot)?),
            ("seed", _) | ("seeds", [_]) => None,
            (name, _) => look_up(&tree, name).cloned(),
        };
        let Some(value) = value else { continue };
        let (own, name) = split(key.name);
        if own != section {
            if own == "batch" && !recipe.features.is_empty() {
                let features = toml::to_string(&recipe.features).map_err(cannot)?;
                let _ = write!(text, "\n[{FEATURES}]\n{features}");
            }
            let _ = write!(text, "\n[{own}]\n");
            section = own;
        }
        let _ = writeln!(text, "{name} = {}", written(&value));
    }
    Ok(text)
}

/// False for a key of a kind that the recipe did not choose.
fn exists(key: &Key, tree: &Value) -> bool {
    let chosen = |kind| look_up(tree, kind).and_then(Value::as_str);
    key.only_with.is_none_or(|(kind, words)| chosen(kind).is_some_and(|word| words.contains(&word)))
}

fn look_up<'a>(tree: &'a Value, name: &str) -> Option<&'a Value> {
    name.split('.').try_fold(tree, |value, part| value.get(part))
}

pub fn features_as<T: DeserializeOwned>(features: &toml::Table) -> Result<T> {
    T::deserialize(features.clone()).map_err(|error| {
        // Its text ends with the path of the field, as "in `num_mel_bins`", where it is about a field's value.
        let text = error.to_string();
        let message = text.trim().replace('\n', ", ");
        // serde says: unknown field `x`, expected one of `a`, `b`. Where a field is known by name it stands between the first backticks.
        let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
        let alone = |(key, value): &(&String, &Value)| {
            let error = T::deserialize(toml::Table::from_iter([((*key).clone(), (*value).clone())])).err();
            error.is_some_and(|error| error.to_string() == text)
        };
        // The nearest known key says more than all of them.
        let problem = message.split(", expected one of").next().unwrap_or_default();
        let error = match features.iter().find(alone) {
            Some((field, _)) => Error::key(format!("{FEATURES}.{field}"), problem),
            None => Error::key(FEATURES, problem),
        };
        let unknown = message.starts_with("unknown field").then(|| quoted.first().copied()).flatten();
        let near = unknown.and_then(|unknown| {
            let known = quoted.iter().filter(|known| **known != unknown);
            known.min_by_key(|known| strsim::damerau_levenshtein(known, unknown))
        });
        match near {
            Some(near) => error.remedy(format!("The nearest known key is {FEATURES}.{near}")),
            None => error.remedy("`data-tools features --help` lists the options"),
        }
    })
}
