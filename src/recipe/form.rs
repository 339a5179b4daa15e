//! What a recipe's value may be: its type and its range, in a form that can check a value and say in words what is allowed.

use std::fmt;
use toml::Value;

/// The form of a key's value.
#[derive(Debug, Clone, Copy)]
pub enum Form {
    /// A name that can be a folder's.
    Name,
    Choice(&'static [&'static str]),
    Flag,
    Seed,
    /// A seed, or the word "seed" for the run's own.
    SeedOrRuns,
    /// Different seeds, at least one.
    SeedList,
    /// Different seeds, or an empty list.
    SeedListOrNone,
    /// A whole number, both ends allowed.
    Whole(i64, i64),
    /// At least one whole number, both ends allowed.
    WholeList(i64, i64),
    Number(Interval),
    /// Different numbers, at least one.
    NumberList(Interval),
    Path,
    /// A path, or "" for none.
    PathOrNone,
    /// A path, or a list of different symbols without white space.
    Symbols,
    /// Lists of whole numbers from 1.
    Compositions,
    /// A text or a list of different texts: RUN, RUN/STAGE, RUN/STAGE@EPOCH.
    Classifiers,
}

/// A range of finite numbers.
#[derive(Debug, Clone, Copy)]
pub struct Interval {
    lowest: f64,
    lowest_allowed: bool,
    highest: f64,
    highest_allowed: bool,
}

impl Interval {
    pub const fn from(lowest: f64) -> Self {
        Interval { lowest, lowest_allowed: true, highest: f64::INFINITY, highest_allowed: false }
    }

    pub const fn above(lowest: f64) -> Self {
        Interval { lowest, lowest_allowed: false, highest: f64::INFINITY, highest_allowed: false }
    }

    pub const fn to(self, highest: f64) -> Self {
        Interval { highest, highest_allowed: true, ..self }
    }

    pub const fn below(self, highest: f64) -> Self {
        Interval { highest, highest_allowed: false, ..self }
    }

    pub fn contains(&self, number: f64) -> bool {
        let above = number > self.lowest || (self.lowest_allowed && number == self.lowest);
        let below = number < self.highest || (self.highest_allowed && number == self.highest);
        number.is_finite() && above && below
    }
}

impl fmt::Display for Interval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lowest = written_number(self.lowest);
        write!(f, "a number {} {lowest}", if self.lowest_allowed { "of at least" } else { "above" })?;
        match (self.highest.is_finite(), self.highest_allowed) {
            (false, _) => Ok(()),
            (true, true) => write!(f, " and at most {}", written_number(self.highest)),
            (true, false) => write!(f, " and below {}", written_number(self.highest)),
        }
    }
}

/// Without long rows of zeros.
fn written_number(number: f64) -> String {
    if number == 0.0 || (1e-4..1e6).contains(&number.abs()) { format!("{number}") } else { format!("{number:e}") }
}

/// `value` as TOML, its number without long rows of zeros. A float stays one: 1.0, 1e-8.
pub fn written(value: &Value) -> String {
    match value {
        Value::Float(number) if number.is_finite() && number.fract() == 0.0 && number.abs() < 1e6 => {
            format!("{number:.1}")
        }
        Value::Float(number) if number.is_finite() => written_number(*number),
        value => value.to_string(),
    }
}

/// What is allowed, for errors and the help.
impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Form::Name => write!(f, "a name in quotes of letters, digits and - _ + . , not beginning with . or -"),
            Form::Choice(words) => write!(f, "{}", one_of(words)),
            Form::Flag => write!(f, "true or false"),
            Form::Seed => write!(f, "a whole number from 0"),
            Form::SeedOrRuns => write!(f, "a whole number from 0, or \"seed\" for the run's own"),
            Form::SeedList => write!(f, "a list of different whole numbers from 0, at least one"),
            Form::SeedListOrNone => write!(f, "a list of different whole numbers from 0; [] = none"),
            Form::Whole(least, most) => write!(f, "a whole number from {least} to {most}"),
            Form::WholeList(least, most) => write!(f, "a list of whole numbers from {least} to {most}"),
            Form::Number(interval) => write!(f, "{interval}"),
            Form::NumberList(interval) => write!(f, "a list of different numbers, each {interval}, at least one"),
            Form::Path => write!(f, "a path in quotes"),
            Form::PathOrNone => write!(f, "a path in quotes; \"\" = none"),
            Form::Symbols => write!(f, "a path in quotes, or a list of different symbols; [] = none"),
            Form::Compositions => write!(f, "a list of lists of whole numbers from 1"),
            Form::Classifiers => {
                write!(
                    f,
                    "a text RUN, RUN/STAGE or RUN/STAGE@EPOCH with an epoch from 1, or a list of different ones; [] = none"
                )
            }
        }
    }
}

fn one_of(words: &[&str]) -> String {
    words.iter().map(|word| format!("\"{word}\"")).collect::<Vec<_>>().join(" | ")
}

impl Form {
    /// True if `value` has this form and lies in its range.
    pub fn accepts(&self, value: &Value) -> bool {
        match self {
            Form::Name => value.as_str().is_some_and(is_name),
            Form::Choice(words) => value.as_str().is_some_and(|word| words.contains(&word)),
            Form::Flag => value.is_bool(),
            Form::Seed => seed(value).is_some(),
            Form::SeedOrRuns => value.as_str() == Some("seed") || seed(value).is_some(),
            Form::SeedList => seeds(value).is_some_and(|seeds| !seeds.is_empty()),
            Form::SeedListOrNone => seeds(value).is_some(),
            Form::Whole(least, most) => value.as_integer().is_some_and(|n| (*least..=*most).contains(&n)),
            Form::WholeList(least, most) => whole_list(value)
                .is_some_and(|list| !list.is_empty() && list.iter().all(|n| (*least..=*most).contains(n))),
            Form::Number(interval) => number(value).is_some_and(|number| interval.contains(number)),
            Form::NumberList(interval) => numbers(value).is_some_and(|list| {
                !list.is_empty() && all_different(&list) && list.iter().all(|&number| interval.contains(number))
            }),
            Form::Path => value.as_str().is_some_and(|path| !path.is_empty() && !path.contains('\0')),
            Form::PathOrNone => value.as_str().is_some_and(|path| !path.contains('\0')),
            Form::Symbols => match value {
                Value::String(_) => Form::Path.accepts(value),
                _ => {
                    texts(value).is_some_and(|texts| all_different(&texts) && texts.iter().all(|text| is_symbol(text)))
                }
            },
            Form::Compositions => compositions(value).is_some_and(|lists| {
                lists.iter().all(|list| !list.is_empty() && list.iter().all(|&groups| groups >= 1))
            }),
            Form::Classifiers => texts(value)
                .is_some_and(|texts| all_different(&texts) && texts.iter().all(|text| split_epoch(text).is_some())),
        }
    }
}

/// The name becomes a folder and may be followed by /STAGE@EPOCH on a command line.
fn is_name(name: &str) -> bool {
    let inner = |c: char| c.is_alphanumeric() || "-_+.".contains(c);
    !name.starts_with(['.', '-']) && !name.is_empty() && name.len() <= 200 && name.chars().all(inner)
}

fn is_symbol(text: &str) -> bool {
    !text.is_empty() && !text.contains(char::is_whitespace)
}

fn all_different<T: PartialEq>(list: &[T]) -> bool {
    list.iter().enumerate().all(|(index, item)| !list[..index].contains(item))
}

/// A whole number is a number too: `learning_rate = 1`.
pub fn number(value: &Value) -> Option<f64> {
    value.as_float().or_else(|| value.as_integer().map(|whole| whole as f64))
}

pub fn numbers(value: &Value) -> Option<Vec<f64>> {
    value.as_array()?.iter().map(number).collect()
}

pub fn seed(value: &Value) -> Option<u64> {
    value.as_integer().and_then(|seed| u64::try_from(seed).ok())
}

pub fn seeds(value: &Value) -> Option<Vec<u64>> {
    let seeds: Option<Vec<u64>> = value.as_array()?.iter().map(seed).collect();
    seeds.filter(|seeds| all_different(seeds))
}

pub fn whole_list(value: &Value) -> Option<Vec<i64>> {
    value.as_array()?.iter().map(Value::as_integer).collect()
}

pub fn compositions(value: &Value) -> Option<Vec<Vec<i64>>> {
    value.as_array()?.iter().map(whole_list).collect()
}

/// One text, or a list of them.
pub fn texts(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::String(text) => Some(vec![text.clone()]),
        Value::Array(list) => list.iter().map(|text| text.as_str().map(str::to_owned)).collect(),
        _ => None,
    }
}

/// `RUN/STAGE@EPOCH` as its path and its epoch. An @ with no whole number from 1 behind it is refused, except within a folder's name.
pub fn split_epoch(text: &str) -> Option<(&str, Option<usize>)> {
    let (path, epoch) = match text.rsplit_once('@') {
        Some((path, epoch)) if !epoch.contains('/') => (path, Some(epoch.parse().ok().filter(|&epoch| epoch >= 1)?)),
        _ => (text, None),
    };
    (!path.is_empty() && !path.contains('\0')).then_some((path, epoch))
}
