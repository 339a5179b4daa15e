//! The table of rows: what each measures, at which sizes, and what it is called. Names of `reference/torch_cpu.md` stay.

use crate::error::{Error, Result};
use std::fmt;

/// What a row measures. B sequences, T time steps, H units (columns), V symbols or words, L labels of a sequence, R rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A training step of a `blstm-ctc` with Adadelta: 43 inputs, 50 symbols, 40 labels, no subsampling, the top `frozen` groups frozen.
    BlstmCtc,
    /// Of that step with nothing frozen, what a stage with the top `frozen` groups frozen saves: their weight gradients, clipping and
    /// optimiser, by themselves.
    Saved,
    /// That training step with a VGG front end below the layers, of C channels in its first block and twice as many in its second, over F features.
    VggBlstmCtc,
    /// A training step of AWD-LSTM with tied weights and plain SGD: LSTMs of E, H, H and E units, no dropout, the top `frozen` groups frozen.
    AwdLstm,
    /// What a stage with them frozen saves of that step.
    AwdSaved,
    /// A training step of a `ctc-attention` with as many encoder layers and the sizes of `blstm-ctc`'s, A units of attention over 10 filters of 201
    /// taps, D units of the decoder, the top `frozen` groups frozen: the softmax layers, the decoder, encoder layers.
    CtcAttention,
    /// A training step of a whole `transformer` with Adam, 83 features, 50 symbols and 40 labels: `layers` of the encoder, `decoders` of the
    /// decoder, feed-forward parts of F units, dropout 0.1, label smoothing; the top `frozen` groups frozen: the softmax layers, decoder layers,
    /// encoder layers.
    Transformer,
    /// A training step of a Transformer's encoder layers with the norm behind them, on frames that are there: norms first, feed-forward parts of F
    /// units, dropout 0.1 everywhere, the mean square of the output as loss, Adam; the top `frozen` layers frozen.
    TransformerEncoder,
    /// Training steps through N generated utterances with the lengths of WSJ si284, in its recipe's batches. Runs once.
    Epoch,
    /// One LSTM layer with as many inputs as units, forward and backward, with the gradients of all weights and of the input.
    Lstm,
    /// The forward pass of that layer: input projections and recurrence.
    LstmLayer,
    /// The recurrence alone, forward.
    LstmForward,
    /// The recurrence alone, backward.
    LstmBackward,
    /// Attention of sequences to themselves, `heads` heads of d columns, causal or not: forward and backward, with the gradients of queries, keys
    /// and values.
    Attention,
    AttentionForward,
    AttentionBackward,
    /// Log-softmax and CTC, forward and backward.
    Ctc,
    /// Softmax and cross entropy with labels: losses, and the gradient in the place of the logits. In bf16 on bf16 logits,
    /// as a language model has them while it trains.
    CrossEntropy,
    /// A linear layer of C inputs under that, with the gradients of input, weight and bias: the top of a language model as training computes it, the
    /// logits of some rows at a time.
    LinearCrossEntropy,
    LogSoftmax,
    /// c = a b, a `[M, K]`, b `[N, K]` transposed: a linear layer.
    Product,
    /// c = a b, a `[K, M]` transposed, b `[K, N]`: a weight's gradient.
    WeightGradient,
    LayerNormForward,
    /// The gradients of input, scale and shift.
    LayerNormBackward,
    EmbeddingForward,
    EmbeddingBackward,
    /// 3 x 3 patches of F bins of C channels, at every place or every second, to O channels, and their relu: forward and backward, with the gradients
    /// of weight and bias, and of the input unless that is a spectrogram, of one channel.
    Convolution,
    Dropout,
    Subsample,
    ColumnSums,
    BiasTanh,
    TanhBackward,
    Add,
    Multiply,
    Sum,
    /// Norm, clipping and update of one parameter of P elements.
    Sgd,
    Adam,
    Adadelta,
}

/// A size that a row has, by its letter or word.
pub type Size = (&'static str, usize);

/// A row: what it measures and at which sizes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    pub kind: Kind,
    sizes: Vec<Size>,
}

/// The sizes of the frozen and saved rows go with those of the joint one.
const STEP: [Size; 4] = [("layers", 4), ("H", 320), ("B", 16), ("T", 200)];

/// All rows.
pub fn rows() -> Vec<Spec> {
    let mut rows: Vec<Spec> = Vec::new();
    let mut row = |kind, sizes: &[Size]| rows.push(Spec { kind, sizes: sizes.to_vec() });
    let step = |frozen: usize| [&STEP[..], &[("frozen", frozen)]].concat();
    (0..=4).for_each(|frozen| row(Kind::BlstmCtc, &step(frozen)));
    (1..=4).for_each(|frozen| row(Kind::Saved, &step(frozen)));
    row(Kind::BlstmCtc, &[("layers", 4), ("H", 128), ("B", 16), ("T", 200), ("frozen", 0)]);
    // The papers' model and batch, with utterances of WSJ's mean length.
    let papers = |frozen: usize| [("layers", 4), ("H", 320), ("B", 30), ("T", 800), ("frozen", frozen)];
    (0..=4).for_each(|frozen| row(Kind::BlstmCtc, &papers(frozen)));
    (1..=4).for_each(|frozen| row(Kind::Saved, &papers(frozen)));

    let attention = |frozen: usize| [&STEP[..], &[("A", 320), ("D", 300), ("frozen", frozen)]].concat();
    (0..=2).for_each(|frozen| row(Kind::CtcAttention, &attention(frozen)));

    // ICLR 2020, appendix A: joint, below its softmax, and the front end alone.
    for frozen in [0, 1, 7] {
        let model = [("layers", 6), ("H", 320), ("C", 64), ("F", 83)];
        row(Kind::VggBlstmCtc, &[&model[..], &[("B", 16), ("T", 400), ("frozen", frozen)]].concat());
    }
    // ICASSP 2021, Table 3: joint, below both softmax layers, and the encoder alone.
    for frozen in [0, 1, 7] {
        let model = [("layers", 12), ("decoders", 6), ("H", 256), ("heads", 4), ("F", 2048)];
        row(Kind::Transformer, &[&model[..], &[("B", 8), ("T", 800), ("frozen", frozen)]].concat());
    }

    // AWD-LSTM's sizes, with a batch of the word language model's and with its own.
    for (batch, steps) in [(20, 35), (80, 70)] {
        let sizes = |frozen| {
            let model = [("layers", 3), ("H", 1150), ("E", 400), ("V", 33_278)];
            [&model[..], &[("B", batch), ("T", steps), ("frozen", frozen)]].concat()
        };
        (0..=1).for_each(|frozen| row(Kind::AwdLstm, &sizes(frozen)));
        row(Kind::AwdSaved, &sizes(1));
    }

    for frozen in [0, 3, 6, 9] {
        let model = [("layers", 12), ("H", 256), ("heads", 4), ("F", 2048)];
        row(Kind::TransformerEncoder, &[&model[..], &[("B", 8), ("T", 200), ("frozen", frozen)]].concat());
    }
    let attention = |batch, heads, steps, columns, causal| {
        [("B", batch), ("heads", heads), ("T", steps), ("d", columns), ("causal", causal)]
    };
    row(Kind::Attention, &attention(8, 4, 400, 64, 0));
    // 8192 frames of 512 columns each time.
    for (batch, heads, steps, columns, causal) in [
        (16, 8, 512, 64, 0),
        (16, 8, 512, 64, 1),
        (4, 8, 2048, 64, 0),
        (4, 8, 2048, 64, 1),
        (4, 4, 2048, 128, 0),
        (1, 8, 8192, 64, 0),
        (1, 8, 8192, 64, 1),
    ] {
        for kind in [Kind::AttentionForward, Kind::AttentionBackward] {
            row(kind, &attention(batch, heads, steps, columns, causal));
        }
    }

    let layer =
        |units, directions, batch, steps| [("H", units), ("directions", directions), ("B", batch), ("T", steps)];
    row(Kind::Lstm, &layer(320, 2, 16, 200));
    row(Kind::Lstm, &layer(1150, 1, 20, 35));
    for sizes in [layer(320, 2, 30, 400), layer(640, 2, 30, 400), layer(1024, 2, 30, 400), layer(1150, 1, 80, 70)] {
        for kind in [Kind::Lstm, Kind::LstmLayer, Kind::LstmForward, Kind::LstmBackward] {
            row(kind, &sizes);
        }
    }

    row(Kind::Ctc, &[("B", 32), ("T", 400), ("L", 60), ("V", 50)]);
    for steps in [400, 800, 1000] {
        row(Kind::Ctc, &[("B", 30), ("T", steps), ("L", 100), ("V", 50)]);
    }
    row(Kind::CrossEntropy, &[("R", 5600), ("V", 33_278)]);
    row(Kind::LinearCrossEntropy, &[("R", 5600), ("C", 400), ("V", 33_278)]);
    row(Kind::LogSoftmax, &[("R", 12_000), ("V", 50)]);

    let product = |m, n, k| [("M", m), ("N", n), ("K", k)];
    row(Kind::Product, &product(12_000, 1280, 320)); // a BLSTM's input projections
    row(Kind::Product, &product(12_000, 320, 640)); // the projection behind it
    row(Kind::Product, &product(12_000, 50, 320)); // its softmax
    row(Kind::Product, &product(5600, 4600, 1150)); // AWD-LSTM's input projections
    row(Kind::Product, &product(5600, 33_278, 400)); // its decoder
    row(Kind::Product, &product(4096, 4096, 4096));
    row(Kind::WeightGradient, &product(1280, 320, 12_000));
    row(Kind::WeightGradient, &product(4600, 1150, 5600));
    row(Kind::WeightGradient, &product(33_278, 400, 5600));

    // The layers of VGG's two blocks, and of the Transformer's subsampling, over 83 features.
    for (bins, steps, channels, filters, stride) in [
        (83, 400, 1, 64, 1),
        (83, 400, 64, 64, 1),
        (42, 200, 64, 128, 1),
        (42, 200, 128, 128, 1),
        (83, 400, 1, 256, 2),
        (41, 199, 256, 256, 2),
    ] {
        let sizes = [("C", channels), ("O", filters), ("stride", stride), ("F", bins), ("B", 16), ("T", steps)];
        row(Kind::Convolution, &sizes);
    }

    row(Kind::LayerNormForward, &[("R", 12_000), ("H", 256)]);
    row(Kind::LayerNormBackward, &[("R", 12_000), ("H", 256)]);
    row(Kind::EmbeddingForward, &[("R", 5600), ("H", 400), ("V", 33_278)]);
    row(Kind::EmbeddingBackward, &[("R", 5600), ("H", 400), ("V", 33_278)]);
    row(Kind::Dropout, &[("H", 320), ("B", 30), ("T", 400)]);
    row(Kind::Subsample, &[("H", 640), ("B", 30), ("T", 400), ("factor", 2)]);
    row(Kind::ColumnSums, &[("R", 12_000), ("H", 1280)]);
    for kind in [Kind::BiasTanh, Kind::TanhBackward, Kind::Add, Kind::Multiply, Kind::Sum] {
        row(kind, &[("R", 12_000), ("H", 1280)]);
    }
    for kind in [Kind::Sgd, Kind::Adam, Kind::Adadelta] {
        row(kind, &[("P", 24_000_000)]);
    }
    (0..=4).for_each(|frozen| row(Kind::Epoch, &[("layers", 4), ("H", 320), ("N", 37_400), ("frozen", frozen)]));
    rows
}

/// The rows that the patterns name: a row's name, else the beginning of some (`lstm`). Without a pattern all but those that run for long.
///
/// # Errors
/// If a pattern names no row.
pub fn select(patterns: &[String]) -> Result<Vec<Spec>> {
    let mut rows = rows();
    let mut chosen = vec![false; rows.len()];
    if patterns.is_empty() {
        chosen = rows.iter().map(|row| row.kind != Kind::Epoch).collect();
    }
    for pattern in patterns {
        let exact: Vec<bool> = rows.iter().map(|row| row.name() == *pattern).collect();
        let begun: Vec<bool> = rows.iter().map(|row| row.name().starts_with(pattern.as_str())).collect();
        let named = if exact.contains(&true) { exact } else { begun };
        if !named.contains(&true) {
            let known: Vec<String> = rows.iter().map(Spec::name).collect();
            return Err(Error::key("NAME", format!("{pattern:?} names no benchmark"))
                .remedy(format!("Use the beginning of one of {}", known.join(", "))));
        }
        chosen.iter_mut().zip(named).for_each(|(chosen, named)| *chosen |= named);
    }
    let mut chosen = chosen.into_iter();
    rows.retain(|_| chosen.next() == Some(true));
    Ok(rows)
}

impl Spec {
    /// A size; 1 where the row has none of that name, which only a wrong table can cause.
    pub fn size(&self, name: &str) -> usize {
        self.sizes.iter().find(|(known, _)| *known == name).map_or(1, |&(_, size)| size)
    }

    /// Replaces sizes, each given as `B=30`. Rows that agree then are one row.
    ///
    /// # Errors
    /// If it is no positive number or a row has no such size.
    pub fn resize(rows: Vec<Spec>, changes: &[String]) -> Result<Vec<Spec>> {
        let mut changed: Vec<Spec> = Vec::new();
        for mut row in rows {
            for change in changes {
                row.change(change)?;
            }
            if !changed.contains(&row) {
                changed.push(row);
            }
        }
        Ok(changed)
    }

    fn change(&mut self, change: &str) -> Result<()> {
        let error = |problem: String| Error::key("--set", problem);
        let (name, value) = change.split_once('=').unwrap_or((change, ""));
        let smallest = usize::from(!matches!(name, "frozen" | "causal"));
        let value: usize =
            value.parse().ok().filter(|&value| (smallest..1 << 31).contains(&value)).ok_or_else(|| {
                error(format!("{change:?} is not a size")).remedy("Use, for example, --set B=30,T=400")
            })?;
        let (row, known) = (self.name(), self.sizes.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", "));
        let Some(size) = self.sizes.iter_mut().find(|(known, _)| *known == name) else {
            return Err(error(format!("{row} has no size {name:?}")).remedy(format!("It has {known}")));
        };
        size.1 = value;
        // Beside the layers: the softmax, the decoder or its layers, a front end.
        let groups = self.size("layers")
            + match self.kind {
                Kind::TransformerEncoder => 0,
                Kind::CtcAttention | Kind::VggBlstmCtc => 2,
                Kind::Transformer => self.size("decoders") + 2,
                _ => 1,
            };
        let trainable = if matches!(self.kind, Kind::Saved | Kind::AwdSaved) { 0 } else { 1 };
        if self.size("frozen") + trainable > groups && self.sizes.iter().any(|(name, _)| *name == "frozen") {
            return Err(error(format!("{row}: {change} freezes more than a model of {groups} groups has to freeze")));
        }
        if self.sizes.iter().any(|(name, _)| *name == "directions") && self.size("directions") > 2 {
            return Err(error(format!("{change}: an LSTM has one direction or two")));
        }
        if self.size("causal") > 1 {
            return Err(error(format!("{change}: causal is 1, or 0 for not")));
        }
        let shares = matches!(self.kind, Kind::Transformer | Kind::TransformerEncoder);
        if shares && !self.size("H").is_multiple_of(self.size("heads")) {
            return Err(error(format!("{change}: heads share the units equally")));
        }
        Ok(())
    }

    /// The same work at a size that an emulator does in a moment, odd where it can be.
    pub fn small(&self) -> Spec {
        let small = |&(name, size): &Size| {
            let most = match name {
                "layers" | "decoders" | "directions" | "frozen" | "factor" | "stride" | "causal" => size,
                "heads" => 2,
                "P" => 1003,
                "K" | "R" => 33,
                "M" | "N" => 19,
                "L" => 2,
                "V" => 37,
                "B" => 3,
                // Seven frames again behind its convolutions.
                "T" if self.kind == Kind::Transformer => 31,
                "T" => 7,
                _ => 20,
            };
            (name, size.min(most))
        };
        Spec { kind: self.kind, sizes: self.sizes.iter().map(small).collect() }
    }

    /// All of them at such a size, each work once. The epochs have no such size and are left out.
    pub fn all_small(rows: &[Spec]) -> Vec<Spec> {
        let mut small: Vec<Spec> = Vec::new();
        for row in rows.iter().filter(|row| row.kind != Kind::Epoch).map(Spec::small) {
            if !small.contains(&row) {
                small.push(row);
            }
        }
        small
    }

    pub fn name(&self) -> String {
        self.to_string()
    }

    /// The name of the row of the same sizes with so many frozen groups, and what a stage with these saves.
    pub fn sibling(&self, kind: Kind, frozen: usize) -> String {
        let sizes = self.sizes.iter().map(|&(name, size)| (name, if name == "frozen" { frozen } else { size }));
        Spec { kind, sizes: sizes.collect() }.name()
    }
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let size = |name| self.size(name);
        let stage = || match size("frozen") {
            0 => "joint".to_string(),
            frozen => format!("frozen-{frozen}"),
        };
        let layer = || {
            let directions = if size("directions") == 2 { "/bidirectional" } else { "" };
            format!("{}{directions}/B{}-T{}", size("H"), size("B"), size("T"))
        };
        let batch = || format!("B{}-T{}", size("B"), size("T"));
        let model = || format!("blstm-ctc/{}x{}/{}", size("layers"), size("H"), batch());
        // The batch, and the sizes that are not the usual ones.
        let others = |usual: &[Size]| -> String {
            let others = usual.iter().filter(|&&(name, usual)| size(name) != usual);
            others.fold(batch(), |text, &(name, _)| format!("{text}-{name}{}", size(name)))
        };
        let text_model = || format!("awd-lstm/{}", others(&[("layers", 3), ("H", 1150), ("E", 400), ("V", 33_278)]));
        let matrix = |name: &str| format!("{name}/{}x{}", size("R"), size("H"));
        let product = |name: &str| format!("{name}/{}x{}x{}", size("M"), size("N"), size("K"));
        let sequences = || format!("{}/B{}-T{}", size("H"), size("B"), size("T"));
        let attention = || {
            let causal = if size("causal") == 1 { "-causal" } else { "" };
            format!("attention/B{}-H{}-T{}-d{}{causal}", size("B"), size("heads"), size("T"), size("d"))
        };
        let vocabulary = || format!("{}x{}-V{}", size("R"), size("H"), size("V"));
        f.write_str(&match self.kind {
            Kind::BlstmCtc => format!("{}/{}", model(), stage()),
            Kind::Saved => format!("{}/saved-{}", model(), size("frozen")),
            Kind::CtcAttention => {
                let others = others(&[("A", 320), ("D", 300)]);
                format!("ctc-attention/{}x{}/{others}/{}", size("layers"), size("H"), stage())
            }
            Kind::VggBlstmCtc => {
                let others = others(&[("C", 64), ("F", 83)]);
                format!("vgg-blstm-ctc/{}x{}/{others}/{}", size("layers"), size("H"), stage())
            }
            Kind::Transformer => {
                let (layers, others) = (size("layers"), others(&[("heads", 4), ("F", 2048)]));
                format!("transformer/{layers}+{}x{}/{others}/{}", size("decoders"), size("H"), stage())
            }
            Kind::AwdLstm => format!("{}/{}", text_model(), stage()),
            Kind::AwdSaved => format!("{}/saved-{}", text_model(), size("frozen")),
            Kind::TransformerEncoder => {
                let others = others(&[("heads", 4), ("F", 2048)]);
                let frozen = if size("frozen") > 0 { format!("/{}", stage()) } else { String::new() };
                format!("transformer-encoder/{}x{}/{others}{frozen}", size("layers"), size("H"))
            }
            Kind::Epoch => format!("wsj-epoch/{}x{}/N{}/{}", size("layers"), size("H"), size("N"), stage()),
            Kind::Lstm => format!("lstm/{}", layer()),
            Kind::LstmLayer => format!("lstm/{}/forward", layer()),
            Kind::LstmForward => format!("lstm-recurrence/{}/forward", layer()),
            Kind::LstmBackward => format!("lstm-recurrence/{}/backward", layer()),
            Kind::Attention => attention(),
            Kind::AttentionForward => attention() + "/forward",
            Kind::AttentionBackward => attention() + "/backward",
            Kind::Ctc => {
                let labels = if size("L") == 60 { String::new() } else { format!("-L{}", size("L")) };
                let symbols = if size("V") == 50 { String::new() } else { format!("-V{}", size("V")) };
                format!("ctc/B{}-T{}{labels}{symbols}", size("B"), size("T"))
            }
            Kind::CrossEntropy => format!("cross-entropy/{}x{}", size("R"), size("V")),
            Kind::LinearCrossEntropy => format!("linear-cross-entropy/{}x{}x{}", size("R"), size("C"), size("V")),
            Kind::LogSoftmax => format!("log-softmax/{}x{}", size("R"), size("V")),
            Kind::Product => product("matmul"),
            Kind::WeightGradient => product("matmul-weight-gradient"),
            Kind::LayerNormForward => matrix("layer-norm") + "/forward",
            Kind::LayerNormBackward => matrix("layer-norm") + "/backward",
            Kind::EmbeddingForward => format!("embedding/{}/forward", vocabulary()),
            Kind::EmbeddingBackward => format!("embedding/{}/backward", vocabulary()),
            Kind::Convolution => {
                let stride = if size("stride") == 1 { String::new() } else { format!("/every-{}", size("stride")) };
                let (from, to) = (size("C"), size("O"));
                format!("convolution/{from}-{to}{stride}/B{}-T{}-F{}", size("B"), size("T"), size("F"))
            }
            Kind::Dropout => format!("dropout/{}", sequences()),
            Kind::Subsample => format!("subsample-{}/{}", size("factor"), sequences()),
            Kind::ColumnSums => matrix("column-sums"),
            Kind::BiasTanh => matrix("bias-tanh"),
            Kind::TanhBackward => matrix("tanh-backward"),
            Kind::Add => matrix("add"),
            Kind::Multiply => matrix("multiply"),
            Kind::Sum => matrix("sum"),
            Kind::Sgd => format!("sgd/P{}", size("P")),
            Kind::Adam => format!("adam/P{}", size("P")),
            Kind::Adadelta => format!("adadelta/P{}", size("P")),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_or_its_beginning_selects_rows_and_an_unknown_one_lists_them() {
        assert_eq!(select(&["lstm/320/bidirectional/B16-T200".into()]).unwrap().len(), 1);
        assert_eq!(select(&["lstm/1150".into()]).unwrap().len(), 3);
        assert_eq!(select(&["ctc/B32".into(), "ctc/".into()]).unwrap().len(), 4);
        let message = select(&["gru".into()]).unwrap_err().to_string();
        assert!(message.contains("gru") && message.contains("ctc/B32-T400"), "{message}");
    }

    #[test]
    fn the_rows_that_peers_were_measured_on_keep_their_names_and_no_two_share_one() {
        let mut names: Vec<String> = rows().iter().map(Spec::name).collect();
        for name in [
            "blstm-ctc/4x320/B16-T200/joint",
            "blstm-ctc/4x320/B16-T200/frozen-4",
            "blstm-ctc/4x128/B16-T200/joint",
            "awd-lstm/B20-T35/joint",
            "awd-lstm/B20-T35/frozen-1",
            "lstm/320/bidirectional/B16-T200",
            "lstm/1150/B20-T35",
            "ctc/B32-T400",
            "ctc-attention/4x320/B16-T200/joint",
            "convolution/64-64/B16-T400-F83",
            "attention/B8-H4-T400-d64",
            "transformer-encoder/12x256/B8-T200",
            "transformer/12+6x256/B8-T800/frozen-7",
            "vgg-blstm-ctc/6x320/B16-T400/frozen-7",
        ] {
            assert!(names.iter().any(|known| known == name), "{name}");
        }
        names.sort();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn what_runs_for_long_runs_only_when_it_is_named() {
        assert!(select(&[]).unwrap().iter().all(|row| row.kind != Kind::Epoch));
        assert_eq!(select(&["wsj-epoch".into()]).unwrap().len(), 5);
    }

    #[test]
    fn any_size_of_a_row_can_be_set_and_its_name_says_so() {
        let rows = select(&["lstm/320/bidirectional/B16-T200".into()]).unwrap();
        let changes = ["B=3".to_string(), "H=100".into(), "directions=1".into()];
        assert_eq!(Spec::resize(rows, &changes).unwrap()[0].name(), "lstm/100/B3-T200");
        for (change, complaint) in [("V=3", "no size \"V\""), ("B=0", "not a size"), ("B", "not a size")] {
            let message =
                Spec::resize(select(&["lstm/1150".into()]).unwrap(), &[change.into()]).unwrap_err().to_string();
            assert!(message.contains(complaint), "{message}");
        }
        let joint = select(&["blstm-ctc/4x128".into()]).unwrap();
        let message = Spec::resize(joint, &["frozen=5".into()]).unwrap_err().to_string();
        assert!(message.contains("5 groups"), "{message}");
        // Front end, layers, softmax; the Transformer's heads share its units.
        for (row, changes, complaint) in [
            ("vgg-blstm-ctc", vec!["frozen=7"], None),
            ("vgg-blstm-ctc", vec!["frozen=8"], Some("8 groups")),
            ("transformer/", vec!["layers=2", "decoders=1", "frozen=4"], None),
            ("transformer/", vec!["layers=2", "decoders=1", "frozen=5"], Some("5 groups")),
            ("transformer/", vec!["heads=3"], Some("share the units")),
        ] {
            let joint = vec![select(&[row.into()]).unwrap().remove(0)];
            let changes: Vec<String> = changes.into_iter().map(String::from).collect();
            let message = Spec::resize(joint, &changes).err().map(|error| error.to_string());
            assert_eq!(message.is_some(), complaint.is_some(), "{row} {changes:?}: {message:?}");
            assert!(message.unwrap_or_default().contains(complaint.unwrap_or_default()), "{row} {changes:?}");
        }
    }
}
