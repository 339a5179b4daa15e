//! The values that a recipe file and `--set` give, each with its place, before they mean anything: a flat map of dotted keys.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use toml::Value;
use toml::de::{DeTable, DeValue};

use super::form::Form;
use super::keys::{FEATURES, KEYS, Key, Preset};
use crate::error::{Error, Result};

/// Where a value was given.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Place {
    /// A line of the recipe, from 1.
    Line(usize),
    Set,
}

#[derive(Debug)]
struct Given {
    value: Value,
    place: Place,
}

/// Every key that was given, by its dotted name. Options below `features` are kept apart, as they stand.
#[derive(Debug)]
pub struct Source {
    file: PathBuf,
    given: BTreeMap<String, Given>,
    pub features: toml::Table,
}

impl Source {
    /// Reads the recipe's text, then the `KEY=VALUE` of every `--set`, in order. `file` names the recipe in errors.
    ///
    /// # Errors
    /// TOML that cannot be parsed, an unknown key, a key of another kind, a value of the wrong form.
    pub fn read(text: &str, file: &Path, overrides: &[String]) -> Result<Source> {
        let syntax = |error: toml::de::Error| {
            let line = line_of(text, error.span().map_or(0, |span| span.start));
            Error::line(file, line, format!("this is not TOML: {}", one_line(error.message())))
                .remedy("Texts and paths stand in quotes, a section is written [section]; see toml.io")
        };
        let table: toml::Table = text.parse().map_err(syntax)?;
        let places = DeTable::parse(text).map_err(syntax)?;
        let mut lines = BTreeMap::new();
        collect_lines(text, "", places.get_ref(), &mut lines);

        let mut source = Source { file: file.to_path_buf(), given: BTreeMap::new(), features: toml::Table::new() };
        source.insert("", Value::Table(table), &|key| Place::Line(lines.get(key).copied().unwrap_or(1)));
        for text in overrides {
            source.set(text)?;
        }
        source.move_features()?;
        source.check_keys()?;
        Ok(source)
    }

    /// Adds `value` under `key`, taking tables apart. Empty tables stay, so that a misspelt empty section is found.
    fn insert(&mut self, key: &str, value: Value, place: &dyn Fn(&str) -> Place) {
        match value {
            Value::Table(table) if key.is_empty() || !table.is_empty() => {
                for (name, value) in table {
                    self.insert(&joined(key, &name), value, place);
                }
            }
            value => {
                self.given.insert(key.to_owned(), Given { value, place: place(key) });
            }
        }
    }

    /// One `--set KEY=VALUE`. A table replaces its whole section; `seed` replaces the recipe's `seeds`, and the reverse.
    fn set(&mut self, text: &str) -> Result<()> {
        let Some((key, written)) = text.split_once('=') else {
            return Err(Error::key("--set", format!("{text} has no value")).remedy("Write --set KEY=VALUE"));
        };
        let (key, written) = (key.trim(), written.trim());
        if key.is_empty() {
            return Err(Error::key("--set", format!("{text} has no key")).remedy("Write --set KEY=VALUE"));
        }
        let value = match written.parse::<Value>() {
            Ok(value) => value,
            // A bare word or path, as a shell leaves it; what begins like TOML was meant as TOML.
            Err(_) if !written.is_empty() && !written.starts_with(['"', '\'', '[', '{']) => {
                Value::String(written.to_owned())
            }
            Err(error) => {
                let problem = format!("{key} is {written}, which is not TOML: {}", one_line(error.message()));
                return Err(Error::key("--set", problem).remedy(
                    "Write a number, true, false, a text in quotes or a list, and quote the whole for the shell",
                ));
            }
        };
        let below = format!("{key}.");
        self.given.retain(|name, _| name != key && !name.starts_with(&below));
        match key {
            "seed" => drop(self.given.remove("seeds")),
            "seeds" => drop(self.given.remove("seed")),
            _ => (),
        }
        self.insert(key, value, &|_| Place::Set);
        Ok(())
    }

    /// Takes the feature options out of the map, and builds their table again.
    fn move_features(&mut self) -> Result<()> {
        let below = format!("{FEATURES}.");
        let names: Vec<String> = self.given.keys().filter(|name| name.starts_with(&below)).cloned().collect();
        for name in names {
            if let Some(given) = self.given.remove(&name) {
                let option = &name[below.len()..];
                if option.contains('.') {
                    let error = self.error(given.place, format!("{name} is deeper than a feature option can be"));
                    return Err(error.remedy("Feature options stand directly in [features]"));
                }
                self.features.insert(option.to_owned(), given.value);
            }
        }
        Ok(())
    }

    /// An error whose subject is the place where a value was given; the problem names the key.
    fn error(&self, place: Place, problem: String) -> Error {
        match place {
            Place::Line(line) => Error::line(&self.file, line, problem),
            Place::Set => Error::key("--set", problem),
        }
    }

    /// Unknown keys first, then those of another kind, then forms.
    fn check_keys(&self) -> Result<()> {
        for (name, given) in &self.given {
            let empty_section = matches!(&given.value, Value::Table(_)) && is_section(name);
            if KEYS.iter().any(|key| key.name == name) || empty_section {
                continue;
            }
            if is_section(name) {
                let problem = format!("{name} is a section, not a key");
                return Err(self.error(given.place, problem).remedy(format!("Write [{name}] and its keys below it")));
            }
            let error = self.error(given.place, format!("the key {name} is unknown"));
            return Err(error.remedy(format!("The nearest known key is {}", nearest(name))));
        }
        for (name, given) in &self.given {
            let mut rows = KEYS.iter().filter(|key| key.name == name).peekable();
            let Some(first) = rows.peek() else { continue };
            let kind = first.only_with.map_or("", |(kind, _)| kind);
            let key = match self.find(name)? {
                Some(key) => key,
                None => {
                    let words: Vec<&str> =
                        rows.filter_map(|key| key.only_with).flat_map(|(_, words)| words).copied().collect();
                    let (words, actual) = (words.join("\" or \""), self.text(kind)?);
                    let problem =
                        format!("the key {name} exists only with {kind} = \"{words}\", and {kind} is \"{actual}\"");
                    let section = name.split('.').next().unwrap_or(name);
                    return Err(self.error(given.place, problem).remedy(format!(
                        "Remove it; on the command line, --set '{section}={{...}}' replaces a whole section"
                    )));
                }
            };
            if !key.form.accepts(&given.value) {
                return Err(self.refusal(key, given));
            }
        }
        Ok(())
    }

    fn refusal(&self, key: &Key, given: &Given) -> Error {
        let problem = format!("{} is {}", key.name, super::form::written(&given.value));
        let error = self.error(given.place, problem).remedy(format!("Allowed: {}", key.form));
        match (&key.form, given.value.as_str()) {
            (Form::Choice(words), Some(word)) => match closest(word, words.iter().copied()) {
                Some(near) => error.remedy(format!("Allowed: {}; the nearest is \"{near}\"", key.form)),
                None => error,
            },
            _ => error,
        }
    }

    /// The table's row for `name`, given the kinds that the recipe chose.
    fn find(&self, name: &str) -> Result<Option<&'static Key>> {
        for key in KEYS.iter().filter(|key| key.name == name) {
            match key.only_with {
                Some((kind, words)) if !words.contains(&self.text(kind)?.as_str()) => continue,
                _ => return Ok(Some(key)),
            }
        }
        Ok(None)
    }

    pub fn is_given(&self, name: &str) -> bool {
        self.given.contains_key(name)
    }

    /// An error about what `name` is, with what is allowed. At its place, or the file's if it was not given.
    pub fn impossible(&self, name: &str, problem: impl Into<String>, remedy: impl Into<String>) -> Error {
        let error = match self.given.get(name) {
            Some(given) => self.error(given.place, problem.into()),
            None => Error::file(&self.file, problem),
        };
        error.remedy(remedy)
    }

    /// The value of `name`, given or default, as `convert` reads it. None if it is neither given nor has a default of its own.
    ///
    /// # Errors
    /// A required key that is missing; a value that does not have the key's form.
    pub fn optional<T>(&self, name: &str, convert: impl Fn(&Value) -> Option<T>) -> Result<Option<T>> {
        let Some(key) = self.find(name)? else {
            return Err(Error::key(name, "this key does not exist with the kinds that were chosen"));
        };
        if let Some(given) = self.given.get(name) {
            let value = if key.form.accepts(&given.value) { convert(&given.value) } else { None };
            return value.map(Some).ok_or_else(|| self.refusal(key, given));
        }
        match key.default {
            Preset::Derived(_) => Ok(None),
            Preset::Required => Err(Error::file(&self.file, format!("the required key {name} is missing"))
                .remedy(format!("Add it. {}: {}", key.help, key.form))),
            // A test reads every default of the table, so this error cannot reach a user.
            Preset::Value(text) => match text.parse::<Value>().ok().and_then(|value| convert(&value)) {
                Some(value) => Ok(Some(value)),
                None => Err(Error::key(name, format!("the default {text} is not of its form"))),
            },
        }
    }

    pub fn required<T>(&self, name: &str, convert: impl Fn(&Value) -> Option<T>) -> Result<T> {
        self.optional(name, convert)?
            .ok_or_else(|| Error::file(&self.file, format!("the required key {name} is missing")))
    }

    pub fn text(&self, name: &str) -> Result<String> {
        self.required(name, |value| value.as_str().map(str::to_owned))
    }

    pub fn number(&self, name: &str) -> Result<f64> {
        self.required(name, super::form::number)
    }

    pub fn whole(&self, name: &str) -> Result<usize> {
        self.required(name, |value| value.as_integer().and_then(|whole| usize::try_from(whole).ok()))
    }

    pub fn flag(&self, name: &str) -> Result<bool> {
        self.required(name, Value::as_bool)
    }

    /// A choice, as the enum whose variants carry the words.
    pub fn choice<T: serde::de::DeserializeOwned>(&self, name: &str) -> Result<T> {
        self.required(name, |value| T::deserialize(value.clone()).ok())
    }
}

/// A key that has a dot of its own is quoted: it must not pass for a nested one.
fn joined(section: &str, name: &str) -> String {
    let name = if name.contains('.') || name.is_empty() { format!("\"{name}\"") } else { name.to_owned() };
    if section.is_empty() { name } else { format!("{section}.{name}") }
}

/// The line of every key, by its dotted name.
fn collect_lines(text: &str, section: &str, table: &DeTable<'_>, lines: &mut BTreeMap<String, usize>) {
    for (name, value) in table {
        let key = joined(section, name.get_ref());
        lines.insert(key.clone(), line_of(text, name.span().start));
        if let DeValue::Table(table) = value.get_ref() {
            collect_lines(text, &key, table, lines);
        }
    }
}

fn line_of(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|&byte| byte == b'\n').count()
}

fn one_line(message: &str) -> String {
    message.split('\n').map(str::trim).filter(|part| !part.is_empty()).collect::<Vec<_>>().join(", ")
}

fn is_section(name: &str) -> bool {
    name == FEATURES || KEYS.iter().any(|key| key.name.strip_prefix(name).is_some_and(|rest| rest.starts_with('.')))
}

/// The known key that looks most like `name`; one of the right name in another section counts as near.
fn nearest(name: &str) -> &'static str {
    let last = |name: &str| name.rsplit('.').next().unwrap_or_default().to_owned();
    let likeness = |key: &Key| {
        let whole = strsim::normalized_damerau_levenshtein(name, key.name);
        whole.max(0.9 * strsim::normalized_damerau_levenshtein(&last(name), &last(key.name)))
    };
    let best = KEYS.iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
    best.map_or("name", |key| key.name)
}

/// The word most like `word`, if any is like it at all.
fn closest<'a>(word: &str, words: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let scored = words.map(|known| (strsim::normalized_damerau_levenshtein(word, known), known));
    scored.filter(|(likeness, _)| *likeness >= 0.5).max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, known)| known)
}
