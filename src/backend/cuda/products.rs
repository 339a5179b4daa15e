//! Who multiplies matrices on a GPU, and by which algorithms: what a stage's saved state keeps, so that it goes on as it was computed.
//!
//! The engine's own kernels depend on the shapes alone. NVIDIA's library chooses an algorithm for each product; the choice is 64 bytes that mean
//! something to the same version of the library on the same kind of GPU only (cuBLAS Library User Guide, `cublasLtMatmulAlgo_t`).

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::collections::BTreeMap;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Products {
    /// `the engine's kernels`, or the library with its version and the GPU.
    pub by: String,
    /// The library's choices, by what they depend on.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub algorithms: BTreeMap<String, Algorithm>,
}

impl Products {
    /// By the engine's own kernels.
    pub fn of_kernels() -> Self {
        Products { by: "the engine's kernels".into(), algorithms: BTreeMap::new() }
    }
}

/// A choice of the library's, as it hands it out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Algorithm(pub [u64; 8]);

/// Each word as sixteen hexadecimal digits: JSON's numbers are not that long.
impl Serialize for Algorithm {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0.map(|word| format!("{word:016x}")).concat())
    }
}

impl<'de> Deserialize<'de> for Algorithm {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let wrong = || de::Error::custom("an algorithm is 128 hexadecimal digits");
        let mut words = [0; 8];
        if text.len() != 16 * words.len() || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(wrong());
        }
        for (word, digits) in words.iter_mut().zip(text.as_bytes().chunks_exact(16)) {
            let digits = std::str::from_utf8(digits).map_err(|_| wrong())?;
            *word = u64::from_str_radix(digits, 16).map_err(|_| wrong())?;
        }
        Ok(Algorithm(words))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_come_back_from_json_as_they_were() {
        let algorithm = Algorithm([0, u64::MAX, 1, 2, 3, 0x0123_4567_89ab_cdef, 5, 1 << 63]);
        let products = Products {
            by: "cuBLASLt 13.2.0 on NVIDIA H200".into(),
            algorithms: BTreeMap::from([("40 x 36 x 44".to_string(), algorithm)]),
        };
        let text = serde_json::to_string(&products).unwrap();
        assert_eq!(serde_json::from_str::<Products>(&text).unwrap(), products);
        assert_eq!(serde_json::to_string(&Products::of_kernels()).unwrap(), r#"{"by":"the engine's kernels"}"#);
    }

    #[cfg(feature = "emulator")]
    #[test]
    fn a_stage_that_goes_on_with_other_products_is_told_so() {
        use super::super::{context::Context, emulated::Emulated, emulator::Order};
        let context = Context::new("emulator", Box::new(Emulated::new(Order::Forward)));
        assert_eq!(context.recall_products(&Products::of_kernels()), None);
        let earlier = Products { by: "cuBLASLt 13.2.0 on NVIDIA H200".into(), ..Products::of_kernels() };
        let note = context.recall_products(&earlier).unwrap();
        assert!(note.contains(&earlier.by) && note.contains("the engine's kernels"), "{note}");
        assert_eq!(context.other_products(&earlier.by), Some(note), "a later stage of the run is told the same");
    }

    #[test]
    fn a_choice_that_is_none_is_an_error_and_no_panic() {
        for wrong in ["", "12", &"g".repeat(128), &"é".repeat(64), &"0".repeat(129), &"+".repeat(128)] {
            let text = serde_json::to_string(wrong).unwrap();
            assert!(serde_json::from_str::<Algorithm>(&text).is_err(), "{wrong}");
        }
    }
}
