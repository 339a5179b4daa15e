//! Weights of ESPnet v1's recognisers under Headfirst's names: `espnet/nets/pytorch_backend` at commit 1189a175, modules `e2e_asr.E2E` (a BLSTMP encoder,
//! perhaps with VGG, `AttLoc`, one LSTM layer in the decoder) and `e2e_asr_transformer.E2E` (`conv2d` input, normalisation before each part).
//!
//! | ESPnet | Headfirst |
//! |---|---|
//! | `enc.enc.0.birnnK.*`, `enc.enc.0.btK.*` | `encoder.blstm.K.*`, `encoder.proj.K.*` |
//! | `enc.enc.0.conv1_1.*`, ..., then `enc.enc.1.birnnK.*` | `encoder.vgg.conv1_1.*`, ..., the same |
//! | `att.0.*` | `att.*`, without `gvec.bias`, which a softmax does not see |
//! | `dec.embed.*`, `dec.decoder.0.*`, `dec.output.*`, `ctc.ctc_lo.*` | the same; of a `blstm-ctc` only `ctc.*` |
//! | all of a Transformer | the same |
//!
//! `dec.att.0.*` is the attention once more, and `*.pe` are the positions' sines, which older versions saved. At that commit every projection of the
//! encoder ends in tanh; later versions leave it out of the last one, which the names do not show, but the loss does.

use crate::error::{Error, Result};
use crate::models::Network;
use crate::recipe::{Model, Recipe};
use crate::train::loaded::inputs_of;
use crate::train::prepare::{frontend_of_recipe, model_of_sizes};
use crate::train::progress::Mode;
use crate::train::weights::{NamedTensor, load_weights, save_weights};
use std::collections::BTreeMap;
use std::path::Path;

/// What one of ESPnet's tensors is.
enum Place {
    /// Headfirst's name.
    Named(String),
    /// The model has no use for it.
    LeftOut,
}

/// Reads `weights`, holds them against the model of `recipe`, and writes them to `out`; gives the number of tensors. `mode` is how it is shown that
/// features are computed.
///
/// # Errors
/// A file that cannot be read or written; a recipe whose data cannot be read; a tensor that is missing, has another shape, or is none of the model's.
pub fn import(weights: &Path, recipe: &Path, out: &Path, mode: Mode) -> Result<usize> {
    let recipe = Recipe::load(recipe, &[])?;
    let weights = load_weights(weights)?;
    let mut theirs: BTreeMap<String, &str> = BTreeMap::new();
    for name in weights.names() {
        if let Place::Named(ours) = place(&recipe.model, name) {
            theirs.insert(ours, name);
        }
    }
    let frontend = frontend_of_recipe(&recipe, mode)?;
    let shape = |ours: &str| theirs.get(ours).and_then(|name| weights.shape(name));
    let inputs = inputs_of(&recipe, &frontend, weights.path(), shape)?;
    let model = model_of_sizes(&recipe, inputs, &frontend.tokens)?;
    let specs = &model.structure().specs;
    let mut values = Vec::with_capacity(specs.len());
    for spec in specs {
        // The name that the file should have is in the error, if it has none.
        let expected = espnet_name(&recipe.model, &spec.name);
        let name = theirs.remove(&spec.name).unwrap_or(&expected);
        values.push(weights.get(name, &spec.shape)?);
    }
    if let Some(name) = theirs.values().next() {
        let problem = format!("has the tensor {name}, which the recipe's {} does not have", model.kind());
        return Err(Error::file(weights.path(), problem).remedy(
            "Give the recipe the sizes that this model was trained with (its train.py options are in model.json)",
        ));
    }
    let named = specs.iter().zip(&values);
    let tensors: Vec<NamedTensor<'_>> =
        named.map(|(spec, data)| NamedTensor { name: &spec.name, shape: &spec.shape, data }).collect();
    save_weights(out, &tensors, &[])?;
    Ok(tensors.len())
}

fn place(model: &Model, name: &str) -> Place {
    if matches!(model, Model::Transformer(_)) {
        return if name.ends_with(".pe") { Place::LeftOut } else { Place::Named(name.into()) };
    }
    let has_decoder = matches!(model, Model::CtcAttention(_));
    let repeated = name.starts_with("dec.att.") || name == "att.0.gvec.bias";
    let of_decoder = name.starts_with("att.") || name.starts_with("dec.");
    if repeated || of_decoder && !has_decoder {
        return Place::LeftOut;
    }
    let ours = match name.strip_prefix("enc.enc.").and_then(|rest| rest.split_once('.')) {
        Some((_, rest)) => of_encoder(rest),
        None => match (name.strip_prefix("att.0."), name.strip_prefix("ctc.ctc_lo.")) {
            (Some(rest), _) => Some(format!("att.{rest}")),
            (_, Some(rest)) if !has_decoder => Some(format!("ctc.{rest}")),
            _ => None,
        },
    };
    Place::Named(ours.unwrap_or_else(|| name.into()))
}

/// `birnn0.weight_ih_l0` (`bilstm0` in the first versions), `bt0.weight` or `conv1_1.weight`.
fn of_encoder(rest: &str) -> Option<String> {
    let (module, parameter) = rest.split_once('.')?;
    let layer = |prefix: &str| module.strip_prefix(prefix).filter(|layer| layer.parse::<usize>().is_ok());
    if let Some(layer) = layer("birnn").or_else(|| layer("bilstm")) {
        return Some(format!("encoder.blstm.{layer}.{parameter}"));
    }
    if let Some(layer) = layer("bt") {
        return Some(format!("encoder.proj.{layer}.{parameter}"));
    }
    module.starts_with("conv").then(|| format!("encoder.vgg.{module}.{parameter}"))
}

/// What ESPnet calls one of Headfirst's tensors.
pub fn espnet_name(model: &Model, name: &str) -> String {
    let front_end = match model {
        Model::BlstmCtc(model) => model.front_end,
        Model::CtcAttention(model) => model.encoder.front_end,
        Model::Transformer(_) | Model::LstmLm(_) => return name.into(),
    };
    let rnn = if front_end == crate::recipe::FrontEnd::Vgg { 1 } else { 0 };
    let layered = |rest: &str, module: &str| {
        rest.split_once('.').map(|(layer, parameter)| format!("enc.enc.{rnn}.{module}{layer}.{parameter}"))
    };
    let theirs = if let Some(rest) = name.strip_prefix("encoder.blstm.") {
        layered(rest, "birnn")
    } else if let Some(rest) = name.strip_prefix("encoder.proj.") {
        layered(rest, "bt")
    } else if let Some(rest) = name.strip_prefix("encoder.vgg.") {
        Some(format!("enc.enc.0.{rest}"))
    } else if let Some(rest) = name.strip_prefix("att.") {
        Some(format!("att.0.{rest}"))
    } else {
        name.strip_prefix("ctc.").filter(|rest| !rest.starts_with("ctc_lo")).map(|rest| format!("ctc.ctc_lo.{rest}"))
    };
    theirs.unwrap_or_else(|| name.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::Scheme;
    use crate::recipe::{BlstmCtc, FrontEnd};

    fn blstm_ctc(front_end: FrontEnd) -> Model {
        let (layers, units, projection, subsample, dropout, init) = (2, 4, 4, vec![1, 1], 0.0, Scheme::Espnet);
        Model::BlstmCtc(BlstmCtc { front_end, layers, units, projection, subsample, dropout, init })
    }

    #[test]
    fn a_name_goes_to_espnet_and_back() {
        for front_end in [FrontEnd::None, FrontEnd::Vgg] {
            let model = blstm_ctc(front_end);
            for ours in ["encoder.blstm.1.weight_hh_l0_reverse", "encoder.proj.0.bias", "ctc.weight"] {
                let Place::Named(back) = place(&model, &espnet_name(&model, ours)) else {
                    panic!("{ours} is left out")
                };
                assert_eq!(back, ours);
            }
        }
        let vgg = blstm_ctc(FrontEnd::Vgg);
        assert_eq!(espnet_name(&vgg, "encoder.vgg.conv1_2.bias"), "enc.enc.0.conv1_2.bias");
        assert_eq!(espnet_name(&vgg, "encoder.blstm.0.bias_ih_l0"), "enc.enc.1.birnn0.bias_ih_l0");
        assert!(
            matches!(place(&vgg, "enc.enc.0.bilstm1.bias_ih_l0"), Place::Named(name) if name == "encoder.blstm.1.bias_ih_l0")
        );
        for unused in ["dec.att.0.mlp_enc.weight", "att.0.gvec.bias", "dec.embed.weight", "att.0.mlp_enc.weight"] {
            assert!(matches!(place(&vgg, unused), Place::LeftOut), "{unused}");
        }
    }
}
