//! Weights of awd-lstm-lm (salesforce/awd-lstm-lm, `model.py` and `weight_drop.py`) under the names of an `lstm-lm`.
//!
//! Its `WeightDrop` wraps each LSTM, so that `rnns.0.weight_hh_l0` is called `rnns.0.module.weight_hh_l0_raw`; beside that there may be
//! `rnns.0.module.weight_hh_l0`, the weight with the last batch's mask, which is not wanted. With tied weights `decoder.weight` is
//! `encoder.weight` again.

use crate::error::{Error, Result};
use crate::models::Network;
use crate::recipe::Recipe;
use crate::train::prepare::{language_model, vocabulary_of_recipe};
use crate::train::weights::{NamedTensor, Weights, load_weights, save_weights};
use std::path::Path;

/// Reads `weights`, holds them against the model of `recipe`, and writes them to `out`.
///
/// # Errors
/// A file that cannot be read or written; a tensor that is missing or has another shape; tied weights that differ.
pub fn import(weights: &Path, recipe: &Path, out: &Path) -> Result<()> {
    let recipe = Recipe::load(recipe, &[])?;
    let model = language_model(&recipe, vocabulary_of_recipe(&recipe)?.len())?;
    let weights = load_weights(weights)?;
    let specs = &model.structure().specs;
    let mut values = Vec::with_capacity(specs.len());
    for spec in specs {
        values.push(weights.get(&original_name(&weights, &spec.name), &spec.shape)?);
    }
    let tied = specs.iter().zip(&values).find(|(spec, _)| model.sizes().tied && spec.name == "encoder.weight");
    if let Some((spec, embedding)) = tied
        && weights.shape("decoder.weight").is_some()
        && weights.get("decoder.weight", &spec.shape)? != *embedding
    {
        return Err(Error::file(weights.path(), "decoder.weight is not encoder.weight, so the weights are not tied")
            .remedy("Set model.tied = false in the recipe"));
    }
    let named = specs.iter().zip(&values);
    let tensors: Vec<NamedTensor<'_>> =
        named.map(|(spec, data)| NamedTensor { name: &spec.name, shape: &spec.shape, data }).collect();
    save_weights(out, &tensors, &[])
}

/// What the file calls a tensor: the most original name that it has.
fn original_name(weights: &Weights, name: &str) -> String {
    let wrapped = match name.strip_prefix("rnns.").and_then(|rest| rest.split_once('.')) {
        Some((layer, parameter)) => {
            let inner = format!("rnns.{layer}.module.{parameter}");
            vec![format!("{inner}_raw"), inner, format!("{name}_raw")]
        }
        None => Vec::new(),
    };
    wrapped.into_iter().find(|name| weights.shape(name).is_some()).unwrap_or_else(|| name.to_string())
}
