//! Numbers in JSON, exactly. A loss can be infinite or not a number, for which JSON has no word: serde would write `null`
//! and then refuse to read it. Fields marked with these modules are written as numbers where they are finite and as the
//! strings `"inf"`, `"-inf"` and `"NaN"` where they are not. Finite numbers come back with the same bits (the feature
//! `float_roundtrip` of serde_json), integers up to `u64::MAX` too.
//!
//! ```text
//! #[serde(with = "crate::train::number::float")]                    train_loss: f64
//! #[serde(default, with = "crate::train::number::optional_float")]  valid_cer: Option<f64>
//! #[serde(with = "crate::train::number::floats")]                   losses: Vec<f64>
//! ```

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// One number as it stands in JSON.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Written {
    Number(f64),
    Word(String),
    Null(()),
}

impl From<f64> for Written {
    fn from(value: f64) -> Self {
        if value.is_finite() {
            Written::Number(value)
        } else if value.is_nan() {
            Written::Word("NaN".into())
        } else if value > 0.0 {
            Written::Word("inf".into())
        } else {
            Written::Word("-inf".into())
        }
    }
}

impl Written {
    fn value(self) -> Result<f64, String> {
        match self {
            Written::Number(value) => Ok(value),
            // What plain serde_json writes for a number that is not finite; which one it was is lost.
            Written::Null(()) => Ok(f64::NAN),
            Written::Word(word) => match word.as_str() {
                "inf" => Ok(f64::INFINITY),
                "-inf" => Ok(f64::NEG_INFINITY),
                "NaN" => Ok(f64::NAN),
                _ => Err(format!("expected a number, \"inf\", \"-inf\" or \"NaN\", found {word:?}")),
            },
        }
    }
}

/// For a field of type `f64`.
pub mod float {
    use super::*;

    pub fn serialize<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
        Written::from(*value).serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
        Written::deserialize(deserializer)?.value().map_err(D::Error::custom)
    }
}

/// For a field of type `Option<f64>`; `None` is `null`, and with `default` also a missing field.
pub mod optional_float {
    use super::*;

    pub fn serialize<S: Serializer>(value: &Option<f64>, serializer: S) -> Result<S::Ok, S::Error> {
        value.map(Written::from).serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
        let written = Option::<Written>::deserialize(deserializer)?;
        written.map(Written::value).transpose().map_err(D::Error::custom)
    }
}

/// For a field of type `Vec<f64>`.
pub mod floats {
    use super::*;

    pub fn serialize<S: Serializer>(values: &[f64], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(values.iter().map(|&value| Written::from(value)))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<f64>, D::Error> {
        let written = Vec::<Written>::deserialize(deserializer)?;
        written.into_iter().map(Written::value).collect::<Result<_, _>>().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, Serialize, Deserialize)]
    struct Sample {
        #[serde(with = "float")]
        one: f64,
        #[serde(default, with = "optional_float")]
        maybe: Option<f64>,
        #[serde(with = "floats")]
        many: Vec<f64>,
        count: u64,
    }

    fn through_json(sample: &Sample) -> Sample {
        serde_json::from_str(&serde_json::to_string(sample).unwrap()).unwrap()
    }

    fn same(left: f64, right: f64) -> bool {
        left.to_bits() == right.to_bits() || (left.is_nan() && right.is_nan())
    }

    proptest! {
        #[test]
        fn every_f64_and_u64_comes_back_with_the_same_bits(bits in any::<u64>(), count in any::<u64>()) {
            let value = f64::from_bits(bits);
            let back = through_json(&Sample { one: value, maybe: Some(value), many: vec![value, -value], count });
            prop_assert!(same(back.one, value) && same(back.maybe.unwrap(), value));
            prop_assert!(same(back.many[0], value) && same(back.many[1], -value));
            prop_assert_eq!(back.count, count);
        }
    }

    #[test]
    fn what_is_not_finite_is_written_as_a_word() {
        let text = serde_json::to_string(&Sample {
            one: f64::NEG_INFINITY,
            maybe: None,
            many: vec![f64::NAN, f64::INFINITY],
            count: u64::MAX,
        })
        .unwrap();
        assert_eq!(text, r#"{"one":"-inf","maybe":null,"many":["NaN","inf"],"count":18446744073709551615}"#);
        let back: Sample = serde_json::from_str(&text).unwrap();
        assert_eq!((back.one, back.maybe, back.count), (f64::NEG_INFINITY, None, u64::MAX));
    }

    #[test]
    fn another_word_is_an_error_and_a_missing_option_is_none() {
        let error = serde_json::from_str::<Sample>(r#"{"one":"large","many":[],"count":1}"#).unwrap_err();
        assert!(error.to_string().contains("expected a number"), "{error}");
        let back: Sample = serde_json::from_str(r#"{"one":1.5,"many":[],"count":1}"#).unwrap();
        assert_eq!((back.one, back.maybe), (1.5, None));
    }
}
