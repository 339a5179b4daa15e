//! An earlier result of `headfirst bench --json` beside this one.

use super::Row;
use crate::error::{Error, Result, Subject};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// The part of an earlier result that is compared; other keys are left alone.
#[derive(Debug, Clone, Deserialize)]
pub struct Earlier {
    pub device: String,
    rows: Vec<EarlierRow>,
}

#[derive(Debug, Clone, Deserialize)]
struct EarlierRow {
    name: String,
    median_ms: f64,
    /// Absent in a result of another program: then as if all times were alike.
    #[serde(default)]
    minimum_ms: Option<f64>,
    #[serde(default)]
    maximum_ms: Option<f64>,
    #[serde(default)]
    precision: Option<String>,
}

/// How a row changed.
#[derive(Debug, Clone, Serialize)]
pub struct Change {
    pub name: String,
    pub before_ms: f64,
    pub now_ms: f64,
    /// Above 1: slower than before.
    pub ratio: f64,
    /// That no time of either overlaps with those of the other.
    pub beyond_noise: bool,
}

impl Earlier {
    /// # Errors
    /// If there is no such file, or it is no result of `headfirst bench --json`.
    pub fn read(path: &Path) -> Result<Self> {
        let error = |problem: String| Error::new(Subject::File(path.into()), problem);
        let text = std::fs::read_to_string(path).map_err(|cause| error(format!("cannot be read: {cause}")))?;
        serde_json::from_str(&text).map_err(|cause| {
            error(format!("is no result of a benchmark: {cause}"))
                .remedy("Make one with `headfirst bench --json > FILE`")
        })
    }

    /// Of a row that was measured then too, in the same arithmetic.
    pub fn change(&self, row: &Row) -> Option<Change> {
        let same = |earlier: &&EarlierRow| {
            earlier.name == row.name && earlier.precision.as_deref().is_none_or(|precision| precision == row.precision)
        };
        let earlier = self.rows.iter().find(same)?;
        let slowest = earlier.maximum_ms.unwrap_or(earlier.median_ms);
        let fastest = earlier.minimum_ms.unwrap_or(earlier.median_ms);
        Some(Change {
            name: row.name.clone(),
            before_ms: earlier.median_ms,
            now_ms: row.median_ms,
            ratio: row.median_ms / earlier.median_ms,
            beyond_noise: row.minimum_ms > slowest || row.maximum_ms < fastest,
        })
    }
}
