//! Initial weights. A parameter's values depend on the seed and its name alone, so that retraining some of the groups gives them the
//! values that joint training would have given, and the order of layers does not matter.

use crate::nn::parameters::ParameterSpec;
use crate::random::Philox;
use serde::{Deserialize, Serialize};

/// How all parameters of a model begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scheme {
    /// ESPnet v1 (`init_like_chainer`): weights N(0, 1/fan_in) in variance, biases zero.
    #[default]
    Espnet,
    /// PyTorch's own defaults: LSTM U(-1/sqrt(H), 1/sqrt(H)), linear layers and their biases U(-1/sqrt(C), 1/sqrt(C)).
    Pytorch,
    /// awd-lstm-lm: embedding and softmax weights U(-0.1, 0.1), the softmax's bias zero, the LSTM as PyTorch has it.
    Awd,
    /// ESPnet v1's language models: everything U(-0.1, 0.1).
    Uniform,
}

/// Of the uniform initial values of [`Scheme::Awd`] and [`Scheme::Uniform`].
const BOUND: f64 = 0.1;

/// What a parameter is, as far as its initial values are concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A matrix `[O, C]`.
    Weight,
    Bias,
    /// Of an LSTM's gates, `[4H]`, in the order i, f, g, o: with ESPnet's scheme the forget gate's are one.
    GateBias,
    /// A row for each token, `[V, C]`.
    Embedding,
    /// Of a language model, `[V, C]`.
    SoftmaxWeight,
    /// Of a language model, `[V]`.
    SoftmaxBias,
    /// Of a layer normalisation: one, whatever the scheme.
    Scale,
    /// Of a layer normalisation: zero, whatever the scheme.
    Shift,
}

/// The initial values of one parameter.
pub fn initial_values(spec: &ParameterSpec, scheme: Scheme, seed: u64) -> Vec<f32> {
    let count = spec.shape.iter().product();
    let mut stream = Philox::named(seed, &format!("initial {}", spec.name)).stream();
    let mut uniform =
        |bound: f64| (0..count).map(|_| ((2.0 * stream.uniform() - 1.0) * bound) as f32).collect::<Vec<f32>>();
    match (scheme, spec.role) {
        (_, Role::Scale) => vec![1.0; count],
        (_, Role::Shift) => vec![0.0; count],
        (Scheme::Espnet, Role::GateBias) => {
            (0..count).map(|index| if index / (count / 4).max(1) == 1 { 1.0 } else { 0.0 }).collect()
        }
        (Scheme::Espnet, Role::Bias | Role::SoftmaxBias) | (Scheme::Awd, Role::SoftmaxBias) => vec![0.0; count],
        (Scheme::Espnet | Scheme::Pytorch, Role::Embedding) => (0..count).map(|_| stream.normal() as f32).collect(),
        (Scheme::Espnet, Role::Weight | Role::SoftmaxWeight) => {
            let fan_in: usize = spec.shape[1..].iter().product();
            let deviation = 1.0 / (fan_in as f64).sqrt();
            (0..count).map(|_| (stream.normal() * deviation) as f32).collect()
        }
        (Scheme::Awd, Role::Embedding | Role::SoftmaxWeight) | (Scheme::Uniform, _) => uniform(BOUND),
        (Scheme::Pytorch | Scheme::Awd, _) => uniform(1.0 / (spec.pytorch_fan as f64).sqrt()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(name: &str, role: Role) -> ParameterSpec {
        ParameterSpec { name: name.into(), shape: vec![300, 400], role, pytorch_fan: 400 }
    }

    #[test]
    fn espnet_weights_have_the_deviation_of_their_inputs_and_biases_are_zero() {
        let values = initial_values(&spec("proj.weight", Role::Weight), Scheme::Espnet, 1);
        let mean_square = values.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / values.len() as f64;
        // Five standard errors of a mean square of n normal numbers: 5 sqrt(2 / n) = 2 %.
        assert!((mean_square * 400.0 - 1.0).abs() < 0.021, "{mean_square}");
        assert!(initial_values(&spec("bias", Role::Bias), Scheme::Espnet, 1).iter().all(|&x| x == 0.0));
    }

    #[test]
    fn pytorch_values_fill_their_interval() {
        for role in [Role::Weight, Role::Bias] {
            let values = initial_values(&spec("x", role), Scheme::Pytorch, 1);
            let largest = values.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
            assert!(largest <= 0.05 && largest > 0.0499, "{largest}");
        }
    }

    #[test]
    fn awd_fills_a_tenth_for_words_and_the_softmax_and_pytorchs_interval_for_lstms() {
        for (role, scheme, bound) in [
            (Role::Embedding, Scheme::Awd, 0.1),
            (Role::SoftmaxWeight, Scheme::Awd, 0.1),
            (Role::SoftmaxBias, Scheme::Awd, 0.0),
            (Role::Weight, Scheme::Awd, 0.05),
            (Role::Bias, Scheme::Awd, 0.05),
            (Role::Bias, Scheme::Uniform, 0.1),
            (Role::SoftmaxBias, Scheme::Uniform, 0.1),
        ] {
            let values = initial_values(&spec("x", role), scheme, 1);
            let largest = values.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
            assert!(largest <= bound && largest >= 0.998 * bound, "{role:?}, {scheme:?}: {largest}");
        }
    }

    #[test]
    fn values_depend_on_seed_and_name_alone() {
        let values = |name, seed| initial_values(&spec(name, Role::Weight), Scheme::Espnet, seed);
        assert_eq!(values("a", 1), values("a", 1));
        assert_ne!(values("a", 1), values("b", 1));
        assert_ne!(values("a", 1), values("a", 2));
    }
}
