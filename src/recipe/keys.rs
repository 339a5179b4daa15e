//! The one table of recipe keys: what each may be, its default, and what it does. Reading, `--set`, the filled-in recipe and the help text
//! all come from it, so they cannot disagree.

use super::form::{Form, Interval};

/// One key of a recipe. A key whose meaning or default depends on a kind has one row for each.
#[derive(Debug)]
pub struct Key {
    /// With its sections: `optimizer.rho`.
    pub name: &'static str,
    /// The key exists only where that other key has one of these values.
    pub only_with: Option<Kinds>,
    pub form: Form,
    pub default: Preset,
    /// One clause without a full stop.
    pub help: &'static str,
}

/// A key that chooses a kind, and words that it may be.
pub type Kinds = (&'static str, &'static [&'static str]);

/// What a key is when the recipe does not give it.
#[derive(Debug)]
pub enum Preset {
    Required,
    /// This, written as TOML.
    Value(&'static str),
    /// What follows from other keys, in words; `Recipe` computes it.
    Derived(&'static str),
}

use Form::*;
use Preset::*;

const fn key(name: &'static str, form: Form, default: Preset, help: &'static str) -> Key {
    Key { name, only_with: None, form, default, help }
}

/// A key that exists with some kinds only.
const fn with(kinds: Kinds, name: &'static str, form: Form, default: Preset, help: &'static str) -> Key {
    Key { name, only_with: Some(kinds), form, default, help }
}

const SPEECH: Kinds = ("data.kind", &["speech"]);
const TEXT: Kinds = ("data.kind", &["text"]);
const BLSTMS: Kinds = ("model.kind", &["blstm-ctc", "ctc-attention"]);
const CTC_ATTENTION: Kinds = ("model.kind", &["ctc-attention"]);
const TRANSFORMER: Kinds = ("model.kind", &["transformer"]);
const LSTM_LM: Kinds = ("model.kind", &["lstm-lm"]);
const NT_ASGD: Kinds = ("optimizer.kind", &["nt-asgd"]);
const ADADELTA: Kinds = ("optimizer.kind", &["adadelta"]);
const SGD: Kinds = ("optimizer.kind", &["sgd"]);
const ADAM: Kinds = ("optimizer.kind", &["adam"]);

/// No size of a network or of a batch reaches this; larger ones are slips of the hand.
const MANY: i64 = 1_000_000;
const LARGE: f64 = 1e6;

/// Keys below this prefix are not in the table: they are the feature extraction's own options, checked by it.
pub const FEATURES: &str = "features";

pub const KEYS: &[Key] = &[
    key("name", Name, Required, "Names the run; its default folder is runs/NAME"),
    key("seed", Seed, Value("1"), "Everything random follows from it"),
    key("seeds", SeedList, Derived("seed alone"), "Instead of seed: one run for each, reported as mean and spread"),
    key("init_seed", SeedOrRuns, Value("\"seed\""), "Of the initial weights of the joint training"),
    key("reinit_seed", SeedOrRuns, Value("\"seed\""), "Of the weights that later stages start from"),
    key("data_seed", SeedOrRuns, Value("\"seed\""), "Of the order of the batches"),
    key("dropout_seed", SeedOrRuns, Value("\"seed\""), "Of the dropout masks"),
    key("data.kind", Choice(&["speech", "text"]), Required, "What the model reads"),
    key(
        "data.train",
        Path,
        Required,
        "Training set: a Kaldi data folder (speech), or a text file or an id file of data-tools (text)",
    ),
    key("data.valid", PathOrNone, Value("\"\""), "Validation set: early stopping and the cascade judge by it"),
    key("data.test", PathOrNone, Value("\"\""), "Test set: scored once for each stage, never used to decide anything"),
    key(
        "data.token_list",
        PathOrNone,
        Value("\"\""),
        "One symbol a line, its line is its id; none: made from the training set",
    ),
    with(SPEECH, "data.tokens", Choice(&["char", "word", "bpe"]), Value("\"char\""), "What a label is"),
    with(
        SPEECH,
        "data.cmvn",
        Choice(&["global", "utterance", "classifier", "none"]),
        Value("\"global\""),
        "Mean and variance normalisation of the features; classifier: that of the run classifier_from names",
    ),
    with(
        SPEECH,
        "data.pieces",
        PathOrNone,
        Value("\"\""),
        "tokens = \"bpe\": what splits words, a file of data-tools pieces or a SentencePiece .model",
    ),
    with(
        SPEECH,
        "data.non_linguistic",
        Symbols,
        Value("[]"),
        "Symbols such as <NOISE> that are never split, and that CER and WER leave out (ESPnet's --nlsyms); a file has one a line",
    ),
    with(TEXT, "data.tokens", Choice(&["char", "word"]), Value("\"word\""), "What a label is"),
    key(
        "data.subset.fraction",
        Number(Interval::above(0.0).to(1.0)),
        Derived("1, or all that complement_of leaves"),
        "Trains on this part of the training set",
    ),
    key("data.subset.seed", Seed, Value("1"), "Draws the subset, whatever the run's seed"),
    key("data.subset.nested", Flag, Value("true"), "Smaller subsets of the same seed lie within larger ones"),
    key(
        "data.subset.complement_of",
        Number(Interval::from(0.0).below(1.0)),
        Value("0.0"),
        "Draws from outside the subset of this fraction and the same seed; 0 = from all",
    ),
    with(
        SPEECH,
        "augment.speeds",
        NumberList(Interval::from(0.5).to(2.0)),
        Value("[1.0]"),
        "Trains on every recording at each of these speeds (ESPnet: [0.9, 1.0, 1.1]); needs recordings, not features",
    ),
    with(
        SPEECH,
        "augment.time_warp",
        Whole(0, MANY),
        Value("0"),
        "SpecAugment: moves a point of each training utterance by up to so many frames; 0 = none",
    ),
    with(SPEECH, "augment.frequency_masks", Whole(0, 1000), Value("0"), "SpecAugment: masks of neighbouring features"),
    with(SPEECH, "augment.frequency_mask_width", Whole(1, MANY), Value("30"), "The most features that one masks"),
    with(SPEECH, "augment.time_masks", Whole(0, 1000), Value("0"), "SpecAugment: masks of neighbouring frames"),
    with(SPEECH, "augment.time_mask_width", Whole(1, MANY), Value("40"), "The most frames that one masks"),
    with(
        SPEECH,
        "augment.time_mask_limit",
        Number(Interval::above(0.0).to(1.0)),
        Value("1.0"),
        "The most that one masks, as a part of the utterance",
    ),
    with(
        SPEECH,
        "augment.mask_rule",
        Choice(&["paper", "espnet"]),
        Value("\"paper\""),
        "espnet: as ESPnet version 1, whose masks end at a second random width",
    ),
    with(
        SPEECH,
        "augment.fill",
        Choice(&["mean", "zero"]),
        Value("\"mean\""),
        "What stands in a mask: the mean of the utterance's features, or 0",
    ),
    with(
        SPEECH,
        "batch.utterances",
        Whole(1, MANY),
        Value("30"),
        "Utterances in a batch, fewer where the first one is long: see the next two",
    ),
    with(
        SPEECH,
        "batch.max_frames",
        Whole(1, MANY),
        Value("800"),
        "With F frames in the longest utterance, a batch is divided by 1 + floor(F / max_frames)",
    ),
    with(
        SPEECH,
        "batch.max_labels",
        Whole(1, MANY),
        Value("150"),
        "The same for its labels; the larger divisor counts",
    ),
    with(
        TEXT,
        "batch.mode",
        Choice(&["stream", "sentences"]),
        Value("\"stream\""),
        "stream: the text is one, cut into streams that are read side by side; sentences: every line by itself, from <eos> to <eos>",
    ),
    with(
        TEXT,
        "batch.sequences",
        Whole(1, MANY),
        Value("80"),
        "Streams; or sentences in a batch, whose loss is then divided by their number, not that of their tokens",
    ),
    with(
        TEXT,
        "batch.bptt",
        Whole(1, MANY),
        Value("70"),
        "stream: tokens of each stream in a batch, so gradients reach back this far",
    ),
    with(
        TEXT,
        "batch.random_bptt",
        Flag,
        Value("true"),
        "stream: lengths vary around bptt (normal with deviation 5, one in twenty around its half), the learning rate with them, as in AWD-LSTM",
    ),
    with(
        TEXT,
        "batch.max_length",
        Whole(1, MANY),
        Value("40"),
        "sentences: with W words in the longest sentence, a batch is divided by 1 + floor(W / max_length)",
    ),
    with(
        TEXT,
        "batch.evaluation_streams",
        Whole(1, MANY),
        Value("1"),
        "stream: cuts held-out texts into so many while training, which is faster; each token is still predicted once, the first of a part from less",
    ),
    with(
        TEXT,
        "batch.original_evaluation",
        Flag,
        Value("false"),
        "stream: as awd-lstm-lm, drops what does not fill the streams, and divides by the length instead of the tokens predicted; tests in one stream",
    ),
    key(
        "model.kind",
        Choice(&["blstm-ctc", "ctc-attention", "transformer", "lstm-lm"]),
        Required,
        "blstm-ctc: BLSTMs, each with a tanh projection, under a softmax trained by CTC; ctc-attention: the same with an LSTM decoder that attends to them; transformer: encoder and decoder layers of attention, trained by CTC and the decoder's cross entropy; lstm-lm: a language model of LSTMs",
    ),
    with(
        BLSTMS,
        "model.frontend",
        Choice(&["none", "vgg"]),
        Value("\"none\""),
        "vgg: two blocks of two 3x3 convolutions (64 and 128 channels) and a pooling, below the BLSTMs, which see every fourth frame (ESPnet's vggblstmp)",
    ),
    with(BLSTMS, "model.layers", Whole(1, 1000), Required, "BLSTMs, each with its projection"),
    with(BLSTMS, "model.units", Whole(1, MANY), Required, "Cells of each direction of a BLSTM"),
    with(BLSTMS, "model.projection", Whole(1, MANY), Required, "Outputs of each projection"),
    with(
        BLSTMS,
        "model.subsample",
        WholeList(1, 1000),
        Derived("1 for every layer"),
        "For each layer, bottom first: keeps every s-th frame of the BLSTM's output, the first always",
    ),
    with(
        BLSTMS,
        "model.dropout",
        Number(Interval::from(0.0).below(1.0)),
        Value("0.0"),
        "Rate of the dropout after each projection",
    ),
    with(
        BLSTMS,
        "model.init",
        Choice(&["espnet", "pytorch"]),
        Value("\"espnet\""),
        "espnet: normal with variance 1 / inputs, biases 0; pytorch: uniform as torch.nn's layers",
    ),
    with(
        CTC_ATTENTION,
        "model.attention",
        Whole(1, MANY),
        Required,
        "Units in which frames and the decoder's state are compared",
    ),
    with(
        CTC_ATTENTION,
        "model.attention_channels",
        Whole(1, MANY),
        Value("10"),
        "Filters over the attention of the step before (ESPnet's aconv-chans)",
    ),
    with(
        CTC_ATTENTION,
        "model.attention_reach",
        Whole(0, MANY),
        Value("100"),
        "Frames that a filter sees to each side (ESPnet's aconv-filts)",
    ),
    with(
        CTC_ATTENTION,
        "model.decoder_units",
        Whole(1, MANY),
        Required,
        "Cells of the decoder's LSTM, and numbers of a symbol",
    ),
    with(
        CTC_ATTENTION,
        "model.ctc_weight",
        Number(Interval::above(0.0).below(1.0)),
        Value("0.5"),
        "Weight of the CTC loss; the rest is the decoder's (ESPnet's mtlalpha)",
    ),
    with(
        CTC_ATTENTION,
        "model.label_smoothing",
        Number(Interval::from(0.0).below(1.0)),
        Value("0.0"),
        "Part of a label's probability that the decoder's training gives to all symbols as they are frequent in the training set",
    ),
    with(
        CTC_ATTENTION,
        "model.scheduled_sampling",
        Number(Interval::from(0.0).to(1.0)),
        Value("0.0"),
        "Probability that the decoder reads in training what it found likeliest itself instead of the true symbol (ESPnet's sampling-probability); a GPU then waits for the host at every symbol",
    ),
    with(TRANSFORMER, "model.encoder_layers", Whole(1, 1000), Required, "Layers of the encoder"),
    with(TRANSFORMER, "model.decoder_layers", Whole(1, 1000), Required, "Layers of the decoder"),
    with(
        TRANSFORMER,
        "model.units",
        Whole(1, MANY),
        Required,
        "Numbers that stand for a frame or a symbol between layers, and channels of the convolutions",
    ),
    with(TRANSFORMER, "model.heads", Whole(1, 1000), Required, "Heads of each attention, which share the units"),
    with(TRANSFORMER, "model.feedforward", Whole(1, MANY), Required, "Units within each feed-forward part"),
    with(
        TRANSFORMER,
        "model.dropout",
        Number(Interval::from(0.0).below(1.0)),
        Value("0.1"),
        "Rate of the dropout of each part of a layer, of what enters the layers, and before the CTC softmax",
    ),
    with(
        TRANSFORMER,
        "model.attention_dropout",
        Number(Interval::from(0.0).below(1.0)),
        Value("0.0"),
        "Rate of the dropout of the attention's probabilities",
    ),
    with(
        TRANSFORMER,
        "model.ctc_weight",
        Number(Interval::above(0.0).below(1.0)),
        Value("0.2"),
        "Weight of the CTC loss; the rest is the decoder's (ESPnet's mtlalpha)",
    ),
    with(
        TRANSFORMER,
        "model.label_smoothing",
        Number(Interval::from(0.0).below(1.0)),
        Value("0.1"),
        "Part of a label's probability that the decoder's training gives to the other symbols",
    ),
    with(
        TRANSFORMER,
        "model.init",
        Choice(&["pytorch", "espnet"]),
        Value("\"pytorch\""),
        "pytorch: uniform as torch.nn's layers; espnet: normal with variance 1 / inputs, biases 0",
    ),
    with(LSTM_LM, "model.layers", Whole(1, 1000), Required, "LSTMs"),
    with(LSTM_LM, "model.embedding", Whole(1, MANY), Required, "Numbers that stand for a token"),
    with(
        LSTM_LM,
        "model.units",
        Whole(1, MANY),
        Required,
        "Cells of each LSTM; tied, the last one has as many as the embedding",
    ),
    with(LSTM_LM, "model.tied", Flag, Value("true"), "The softmax's weights are the embedding, and are frozen with it"),
    with(
        LSTM_LM,
        "model.dropout",
        Number(Interval::from(0.0).below(1.0)),
        Value("0.0"),
        "Rate of the dropout of the last LSTM's output",
    ),
    with(
        LSTM_LM,
        "model.dropout_hidden",
        Number(Interval::from(0.0).below(1.0)),
        Value("0.0"),
        "Rate of the dropout between LSTMs",
    ),
    with(
        LSTM_LM,
        "model.dropout_input",
        Number(Interval::from(0.0).below(1.0)),
        Value("0.0"),
        "Rate of the dropout of the embedding's output",
    ),
    with(
        LSTM_LM,
        "model.dropout_embedding",
        Number(Interval::from(0.0).below(1.0)),
        Value("0.0"),
        "Rate at which words are dropped from the embedding, each in the whole batch",
    ),
    with(
        LSTM_LM,
        "model.dropout_recurrent",
        Number(Interval::from(0.0).below(1.0)),
        Value("0.0"),
        "Rate at which recurrent weights are dropped, for the whole batch (DropConnect)",
    ),
    with(
        LSTM_LM,
        "model.locked_dropout",
        Flag,
        Value("true"),
        "The first three: one mask for all times of a sequence instead of one for each",
    ),
    with(
        LSTM_LM,
        "model.init",
        Choice(&["awd", "uniform", "pytorch"]),
        Value("\"awd\""),
        "awd: embedding and softmax uniform within 0.1, LSTMs within 1 / sqrt(cells); uniform: all within 0.1; pytorch: as torch.nn",
    ),
    key(
        "optimizer.kind",
        Choice(&["adadelta", "sgd", "nt-asgd", "adam"]),
        Required,
        "As torch.optim defines it; nt-asgd: SGD, and averaged weights once the validation loss stops falling",
    ),
    key(
        "optimizer.weight_decay",
        Number(Interval::from(0.0).to(LARGE)),
        Value("0.0"),
        "Times the weight, added to its gradient",
    ),
    key(
        "optimizer.clip",
        Number(Interval::from(0.0).to(LARGE)),
        Value("5.0"),
        "Largest norm of all gradients together; 0 = no clipping",
    ),
    with(
        ADADELTA,
        "optimizer.learning_rate",
        Number(Interval::above(0.0).to(LARGE)),
        Value("1.0"),
        "Factor on every step",
    ),
    with(
        ADADELTA,
        "optimizer.rho",
        Number(Interval::from(0.0).below(1.0)),
        Value("0.95"),
        "Decay of the running averages",
    ),
    with(
        ADADELTA,
        "optimizer.epsilon",
        Number(Interval::from(1e-37).to(LARGE)),
        Value("1e-8"),
        "Added under both roots",
    ),
    with(
        ADADELTA,
        "optimizer.epsilon_decay",
        Number(Interval::above(0.0).to(1.0)),
        Value("1.0"),
        "Multiplies epsilon when the validation loss is worse than its best (ESPnet: 0.01); 1 = never",
    ),
    with(
        ADADELTA,
        "optimizer.epsilon_decay_restores_best",
        Flag,
        Value("true"),
        "When epsilon decays, goes back to the best weights, as ESPnet does",
    ),
    with(SGD, "optimizer.learning_rate", Number(Interval::above(0.0).to(LARGE)), Value("0.1"), "Factor on every step"),
    with(
        SGD,
        "optimizer.momentum",
        Number(Interval::from(0.0).below(1.0)),
        Value("0.0"),
        "Part of the last step that goes into the next",
    ),
    with(
        SGD,
        "optimizer.dampening",
        Number(Interval::from(0.0).to(1.0)),
        Value("0.0"),
        "Takes this part off the gradients that go into the momentum",
    ),
    with(
        SGD,
        "optimizer.nesterov",
        Flag,
        Value("false"),
        "Looks one step of momentum ahead; needs momentum, and dampening 0",
    ),
    with(
        SGD,
        "optimizer.learning_rate_decay",
        Number(Interval::above(0.0).to(1.0)),
        Value("1.0"),
        "Multiplies the learning rate after an epoch that is not the best so far (PyTorch's word language model: 0.25); 1 = never",
    ),
    with(
        NT_ASGD,
        "optimizer.learning_rate",
        Number(Interval::above(0.0).to(LARGE)),
        Value("30.0"),
        "Factor on every step",
    ),
    with(
        NT_ASGD,
        "optimizer.nonmono",
        Whole(0, MANY),
        Value("5"),
        "Averages from the epoch on whose validation loss is above the best of all epochs but the last so many",
    ),
    with(
        NT_ASGD,
        "optimizer.original",
        Flag,
        Value("false"),
        "As awd-lstm-lm: while averaging, the factor on the learning rate lags a batch, and the first update is not averaged",
    ),
    with(
        ADAM,
        "optimizer.learning_rate",
        Number(Interval::above(0.0).to(LARGE)),
        Value("0.001"),
        "Factor on every step",
    ),
    with(
        ADAM,
        "optimizer.beta1",
        Number(Interval::from(0.0).below(1.0)),
        Value("0.9"),
        "Decay of the running average of the gradient",
    ),
    with(
        ADAM,
        "optimizer.beta2",
        Number(Interval::from(0.0).below(1.0)),
        Value("0.999"),
        "Decay of the running average of its square",
    ),
    with(
        ADAM,
        "optimizer.warmup",
        Whole(0, 1_000_000_000),
        Value("0"),
        "transformer: at update s the rate is learning_rate / sqrt(model.units) * min(1 / sqrt(s), s / warmup^1.5) (Noam); 0 = it is learning_rate",
    ),
    with(ADAM, "optimizer.epsilon", Number(Interval::from(1e-37).to(LARGE)), Value("1e-8"), "Added to the root"),
    key("training.max_epochs", Whole(1, MANY), Value("100"), "Epochs of a stage at most"),
    key(
        "training.patience",
        Whole(0, MANY),
        Value("5"),
        "Stops a stage after this many epochs without a better validation loss; 0 = never",
    ),
    key(
        "training.criterion",
        Choice(&["loss"]),
        Value("\"loss\""),
        "What an epoch is judged by, on the validation set",
    ),
    key(
        "training.precision",
        Choice(&["f32", "tf32", "bf16"]),
        Value("\"f32\""),
        "Arithmetic of the matrix products on a GPU; with bf16 a language model's logits, too, are rounded while it trains",
    ),
    key(
        "training.keep",
        Choice(&["best", "all"]),
        Value("\"best\""),
        "Whose weights stay in the run folder: the best epoch's, or every epoch's",
    ),
    key(
        "training.average_epochs",
        Whole(1, MANY),
        Value("1"),
        "At its end a stage takes the average of the weights of its last so many epochs instead of the best epoch's (ESPnet: 10); needs keep = all",
    ),
    with(
        SPEECH,
        "training.accumulate",
        Whole(1, MANY),
        Value("1"),
        "Batches whose gradients make one update, each divided by this; an epoch's last update takes those that are left",
    ),
    key(
        "training.save_minutes",
        Number(Interval::from(0.0).to(LARGE)),
        Value("10.0"),
        "Writes a resumable state this often within an epoch, and after each epoch; 0 = only then",
    ),
    key("training.tensorboard", Flag, Value("false"), "Writes TensorBoard event files too"),
    with(
        LSTM_LM,
        "training.activation_regularization",
        Number(Interval::from(0.0).to(LARGE)),
        Value("0.0"),
        "Times the mean square of the last LSTM's output after dropout, added to the loss (AWD-LSTM: 2)",
    ),
    with(
        LSTM_LM,
        "training.temporal_regularization",
        Number(Interval::from(0.0).to(LARGE)),
        Value("0.0"),
        "stream: times the mean square of that output's change from one token to the next, before dropout (AWD-LSTM: 1)",
    ),
    key(
        "cascade.strategy",
        Choice(&["none", "greedy", "cut-search", "exhaustive", "fixed", "freeze-bottom"]),
        Value("\"none\""),
        "Which stages follow the joint training",
    ),
    key(
        "cascade.inner",
        Choice(&["first", "always"]),
        Value("\"first\""),
        "cut-search: freezes one group more after a failure in the first round only, or in every round",
    ),
    key(
        "cascade.compositions",
        Compositions,
        Value("[]"),
        "fixed: the groups of each round, top first, such as [[1, 1, 1, 2]]; each adds up to all groups",
    ),
    key(
        "cascade.classifier_from",
        Classifiers,
        Value("[]"),
        "Takes the frozen classifier from RUN, RUN/STAGE or RUN/STAGE@EPOCH instead of a joint training; a list: from each in turn",
    ),
    key(
        "cascade.classifier_groups",
        Whole(1, 1000),
        Value("1"),
        "classifier_from: how many groups, from the top, are taken and frozen",
    ),
    key(
        "cascade.reinit_seeds",
        SeedListOrNone,
        Value("[]"),
        "Trains each later stage once for each of these instead of reinit_seed",
    ),
    with(
        SPEECH,
        "cascade.criterion",
        Choice(&["cer", "wer", "loss"]),
        Value("\"cer\""),
        "What a stage is judged by, on the validation set",
    ),
    with(
        TEXT,
        "cascade.criterion",
        Choice(&["perplexity", "loss"]),
        Value("\"perplexity\""),
        "What a stage is judged by, on the validation set",
    ),
];
