//! From given values to a [`Recipe`]: reads every key through the table, makes paths absolute and checks what spans several keys.

use std::path::{Component, Path, PathBuf};

use toml::Value;

use super::form;
use super::source::Source;
use super::*;
use crate::data::augment::{Fill, MaskRule};
use crate::data::tokens::read_non_linguistic;

pub fn build(source: &Source, folder: &Path) -> Result<Recipe> {
    let kind = source.choice("data.kind")?;
    let seed_or_runs = |name: &str| source.required(name, |value| Some(form::seed(value)));
    let recipe = Recipe {
        name: source.text("name")?,
        seeds: seeds(source)?,
        init_seed: seed_or_runs("init_seed")?,
        reinit_seed: seed_or_runs("reinit_seed")?,
        data_seed: seed_or_runs("data_seed")?,
        dropout_seed: seed_or_runs("dropout_seed")?,
        data: data(source, folder, kind)?,
        features: source.features.clone(),
        augment: augment(source, kind)?,
        batch: batch(source, kind)?,
        model: model(source, kind)?,
        optimizer: optimizer(source)?,
        training: training(source, kind)?,
        cascade: cascade(source, folder)?,
    };
    check_features(source, kind)?;
    check_text(source, &recipe)?;
    check_pieces(source, &recipe)?;
    check_validation(source, &recipe)?;
    check_cascade(source, &recipe)?;
    Ok(recipe)
}

fn seeds(source: &Source) -> Result<Vec<u64>> {
    if source.is_given("seed") && source.is_given("seeds") {
        return Err(source.impossible(
            "seeds",
            "both seed and seeds are given",
            "Keep one of them: seed = 1 or seeds = [1, 2]",
        ));
    }
    match source.optional("seeds", form::seeds)? {
        Some(seeds) => Ok(seeds),
        None => Ok(vec![source.required("seed", form::seed)?]),
    }
}

/// `path` from `folder`, which has no links: a leading ".." takes a folder off, and the result reads well.
fn resolve(source: &Source, key: &str, folder: &Path, path: &str) -> Result<PathBuf> {
    let mut resolved = folder.to_path_buf();
    let mut leading = true;
    for component in Path::new(path).components() {
        match component {
            Component::CurDir => (),
            Component::ParentDir if leading => drop(resolved.pop()),
            component => {
                leading = false;
                resolved.push(component);
            }
        }
    }
    if resolved.to_str().is_none() {
        let problem = format!("{key} is {path:?}, and the recipe's folder has a name that is not UTF-8");
        return Err(source.impossible(key, problem, "Move the recipe, or write the whole path"));
    }
    Ok(resolved)
}

fn optional_path(source: &Source, key: &str, folder: &Path) -> Result<Option<PathBuf>> {
    let text = source.text(key)?;
    if text.is_empty() { Ok(None) } else { resolve(source, key, folder, &text).map(Some) }
}

fn data(source: &Source, folder: &Path, kind: DataKind) -> Result<Data> {
    Ok(Data {
        kind,
        train: resolve(source, "data.train", folder, &source.text("data.train")?)?,
        valid: optional_path(source, "data.valid", folder)?,
        test: optional_path(source, "data.test", folder)?,
        tokens: source.choice("data.tokens")?,
        token_list: optional_path(source, "data.token_list", folder)?,
        pieces: if kind == DataKind::Speech { optional_path(source, "data.pieces", folder)? } else { None },
        non_linguistic: non_linguistic(source, folder, kind)?,
        cmvn: if kind == DataKind::Speech { source.choice("data.cmvn")? } else { Cmvn::None },
        subset: subset(source)?,
    })
}

/// A file is read here, so that a run keeps what it says.
fn non_linguistic(source: &Source, folder: &Path, kind: DataKind) -> Result<Vec<String>> {
    const KEY: &str = "data.non_linguistic";
    if kind == DataKind::Text {
        return Ok(Vec::new());
    }
    match source.required(KEY, |value| Some(value.clone()))? {
        Value::String(path) => read_non_linguistic(&resolve(source, KEY, folder, &path)?),
        list => Ok(form::texts(&list).unwrap_or_default()),
    }
}

/// Pieces are needed for tokens that are pieces, and for no others.
fn check_pieces(source: &Source, recipe: &Recipe) -> Result<()> {
    match (recipe.data.tokens, &recipe.data.pieces) {
        (Tokens::Bpe, None) if recipe.cascade.classifier_from.is_empty() => Err(source.impossible(
            "data.tokens",
            "data.tokens is \"bpe\", and data.pieces, which splits words, is missing",
            "Make it with `data-tools pieces`, and name it",
        )),
        (Tokens::Char | Tokens::Word, Some(_)) => Err(source.impossible(
            "data.pieces",
            "data.pieces has an effect only with data.tokens = \"bpe\"",
            "Remove it, or choose those tokens",
        )),
        _ => Ok(()),
    }
}

fn subset(source: &Source) -> Result<Subset> {
    let complement_of = source.number("data.subset.complement_of")?;
    // Rounded, so that 1 - 0.8 is the 0.2 that a reader expects.
    let left = ((1.0 - complement_of) * 1e9).round() / 1e9;
    let fraction = source.optional("data.subset.fraction", form::number)?.unwrap_or(left);
    if fraction > left {
        let problem =
            format!("data.subset.fraction is {fraction}, but the complement of {complement_of} has only {left}");
        return Err(source.impossible(
            "data.subset.fraction",
            problem,
            format!("Allowed: a number above 0 and at most {left}"),
        ));
    }
    Ok(Subset {
        fraction,
        seed: source.required("data.subset.seed", form::seed)?,
        nested: source.flag("data.subset.nested")?,
        complement_of,
    })
}

fn augment(source: &Source, kind: DataKind) -> Result<Augment> {
    if kind == DataKind::Text {
        let features = SpecAugment {
            time_warp: 0,
            frequency_masks: 0,
            frequency_mask_width: 0,
            time_masks: 0,
            time_mask_width: 0,
            time_mask_limit: 0.0,
            mask_rule: MaskRule::Paper,
            fill: Fill::Zero,
        };
        return Ok(Augment { speeds: vec![1.0], features });
    }
    let features = SpecAugment {
        time_warp: source.whole("augment.time_warp")?,
        frequency_masks: source.whole("augment.frequency_masks")?,
        frequency_mask_width: source.whole("augment.frequency_mask_width")?,
        time_masks: source.whole("augment.time_masks")?,
        time_mask_width: source.whole("augment.time_mask_width")?,
        time_mask_limit: source.number("augment.time_mask_limit")?,
        mask_rule: source.choice("augment.mask_rule")?,
        fill: source.choice("augment.fill")?,
    };
    Ok(Augment { speeds: source.required("augment.speeds", form::numbers)?, features })
}

fn batch(source: &Source, kind: DataKind) -> Result<Batch> {
    Ok(match kind {
        DataKind::Speech => Batch::Speech {
            utterances: source.whole("batch.utterances")?,
            max_frames: source.whole("batch.max_frames")?,
            max_labels: source.whole("batch.max_labels")?,
        },
        DataKind::Text => Batch::Text(TextBatch {
            mode: source.choice("batch.mode")?,
            sequences: source.whole("batch.sequences")?,
            bptt: source.whole("batch.bptt")?,
            random_bptt: source.flag("batch.random_bptt")?,
            max_length: source.whole("batch.max_length")?,
            evaluation_streams: source.whole("batch.evaluation_streams")?,
            original_evaluation: source.flag("batch.original_evaluation")?,
        }),
    })
}

fn whole_numbers(list: Vec<i64>) -> Option<Vec<usize>> {
    list.into_iter().map(|number| usize::try_from(number).ok()).collect()
}

/// Each kind of model reads one kind of data.
fn model(source: &Source, data: DataKind) -> Result<Model> {
    let kind = source.text("model.kind")?;
    let (reads, word) = if kind == "lstm-lm" { (DataKind::Text, "text") } else { (DataKind::Speech, "speech") };
    if reads != data {
        let problem = format!("model.kind is \"{kind}\", which reads data.kind = \"{word}\"");
        return Err(source.impossible("model.kind", problem, "Choose the other model, or the other data"));
    }
    match reads {
        DataKind::Speech => recogniser(source),
        DataKind::Text => language_model(source),
    }
}

fn language_model(source: &Source) -> Result<Model> {
    Ok(Model::LstmLm(LstmLm {
        layers: source.whole("model.layers")?,
        embedding: source.whole("model.embedding")?,
        units: source.whole("model.units")?,
        tied: source.flag("model.tied")?,
        dropout: source.number("model.dropout")?,
        dropout_hidden: source.number("model.dropout_hidden")?,
        dropout_input: source.number("model.dropout_input")?,
        dropout_embedding: source.number("model.dropout_embedding")?,
        dropout_recurrent: source.number("model.dropout_recurrent")?,
        locked_dropout: source.flag("model.locked_dropout")?,
        init: source.choice("model.init")?,
    }))
}

fn recogniser(source: &Source) -> Result<Model> {
    if source.text("model.kind")? == "transformer" {
        return transformer(source);
    }
    let layers = source.whole("model.layers")?;
    let numbers = |value: &Value| form::whole_list(value).and_then(whole_numbers);
    let subsample = source.optional("model.subsample", numbers)?.unwrap_or_else(|| vec![1; layers]);
    if subsample.len() != layers {
        let problem = format!("model.subsample is {subsample:?}, {} numbers for {layers} layers", subsample.len());
        let remedy = "One number for each layer, bottom first; ESPnet's \"1_2_2_1_1\" is [2, 2, 1, 1]";
        return Err(source.impossible("model.subsample", problem, remedy));
    }
    let encoder = BlstmCtc {
        front_end: source.choice("model.frontend")?,
        layers,
        units: source.whole("model.units")?,
        projection: source.whole("model.projection")?,
        subsample,
        dropout: source.number("model.dropout")?,
        init: source.choice("model.init")?,
    };
    if source.text("model.kind")? == "blstm-ctc" {
        return Ok(Model::BlstmCtc(encoder));
    }
    Ok(Model::CtcAttention(CtcAttention {
        encoder,
        attention: source.whole("model.attention")?,
        attention_channels: source.whole("model.attention_channels")?,
        attention_reach: source.whole("model.attention_reach")?,
        decoder_units: source.whole("model.decoder_units")?,
        ctc_weight: source.number("model.ctc_weight")?,
        label_smoothing: source.number("model.label_smoothing")?,
        scheduled_sampling: source.number("model.scheduled_sampling")?,
    }))
}

fn transformer(source: &Source) -> Result<Model> {
    let (units, heads) = (source.whole("model.units")?, source.whole("model.heads")?);
    if !units.is_multiple_of(heads) {
        let problem = format!("model.heads is {heads}, and model.units is {units}");
        return Err(source.impossible("model.heads", problem, "The heads share the units equally"));
    }
    Ok(Model::Transformer(Transformer {
        encoder_layers: source.whole("model.encoder_layers")?,
        decoder_layers: source.whole("model.decoder_layers")?,
        units,
        heads,
        feedforward: source.whole("model.feedforward")?,
        dropout: source.number("model.dropout")?,
        attention_dropout: source.number("model.attention_dropout")?,
        ctc_weight: source.number("model.ctc_weight")?,
        label_smoothing: source.number("model.label_smoothing")?,
        init: source.choice("model.init")?,
    }))
}

fn optimizer(source: &Source) -> Result<Optimizer> {
    let number = |name: &str| source.number(name);
    let method = match source.text("optimizer.kind")?.as_str() {
        "adadelta" => Method::Adadelta { rho: number("optimizer.rho")? },
        "sgd" => Method::Sgd {
            momentum: number("optimizer.momentum")?,
            dampening: number("optimizer.dampening")?,
            nesterov: source.flag("optimizer.nesterov")?,
        },
        "nt-asgd" => {
            Method::NtAsgd { nonmono: source.whole("optimizer.nonmono")?, original: source.flag("optimizer.original")? }
        }
        _ => Method::Adam { beta1: number("optimizer.beta1")?, beta2: number("optimizer.beta2")? },
    };
    if let Method::Sgd { momentum, dampening, nesterov: true } = method
        && (momentum == 0.0 || dampening != 0.0)
    {
        let problem = format!("optimizer.nesterov is true with momentum = {momentum} and dampening = {dampening}");
        let remedy = "Nesterov needs a momentum above 0 and a dampening of 0";
        return Err(source.impossible("optimizer.nesterov", problem, remedy));
    }
    if let Method::Sgd { momentum: 0.0, dampening, .. } = method
        && dampening != 0.0
    {
        let problem = format!("optimizer.dampening is {dampening}, which has an effect only on a momentum");
        return Err(source.impossible("optimizer.dampening", problem, "Remove it, or add optimizer.momentum"));
    }
    let adadelta = matches!(method, Method::Adadelta { .. });
    let sgd = matches!(method, Method::Sgd { .. });
    let warmup = if matches!(method, Method::Adam { .. }) { source.whole("optimizer.warmup")? } else { 0 };
    if warmup > 0 && source.text("model.kind")? != "transformer" {
        let problem = "optimizer.warmup is Noam's schedule, which follows from the units of a transformer";
        return Err(source.impossible("optimizer.warmup", problem, "Remove it, or use model.kind = \"transformer\""));
    }
    Ok(Optimizer {
        method,
        learning_rate: number("optimizer.learning_rate")?,
        warmup,
        learning_rate_decay: if sgd { number("optimizer.learning_rate_decay")? } else { 1.0 },
        epsilon: if sgd || matches!(method, Method::NtAsgd { .. }) { 0.0 } else { number("optimizer.epsilon")? },
        epsilon_decay: if adadelta { number("optimizer.epsilon_decay")? } else { 1.0 },
        epsilon_decay_restores_best: adadelta && source.flag("optimizer.epsilon_decay_restores_best")?,
        weight_decay: number("optimizer.weight_decay")?,
        clip: number("optimizer.clip")?,
    })
}

fn training(source: &Source, kind: DataKind) -> Result<Training> {
    let of_text = |name: &str| if kind == DataKind::Text { source.number(name) } else { Ok(0.0) };
    Ok(Training {
        activation_regularization: of_text("training.activation_regularization")?,
        temporal_regularization: of_text("training.temporal_regularization")?,
        max_epochs: source.whole("training.max_epochs")?,
        patience: source.whole("training.patience")?,
        criterion: source.choice("training.criterion")?,
        precision: source.choice("training.precision")?,
        keep: source.choice("training.keep")?,
        average_epochs: average_epochs(source)?,
        accumulate: if kind == DataKind::Speech { source.whole("training.accumulate")? } else { 1 },
        save_minutes: source.number("training.save_minutes")?,
        tensorboard: source.flag("training.tensorboard")?,
    })
}

/// They are averaged from the files of their epochs.
fn average_epochs(source: &Source) -> Result<usize> {
    let epochs = source.whole("training.average_epochs")?;
    if epochs > 1 && source.text("training.keep")? != "all" {
        let problem = format!("training.average_epochs is {epochs}, and training.keep is \"best\"");
        return Err(source.impossible("training.average_epochs", problem, "Add training.keep = \"all\""));
    }
    Ok(epochs)
}

fn cascade(source: &Source, folder: &Path) -> Result<Cascade> {
    let lists = |value: &Value| form::compositions(value)?.into_iter().map(whole_numbers).collect();
    let mut classifier_from: Vec<ClassifierSource> = Vec::new();
    for text in source.required("cascade.classifier_from", form::texts)? {
        let (path, epoch) = form::split_epoch(&text).unwrap_or((&text, None));
        let path = resolve(source, "cascade.classifier_from", folder, path)?;
        classifier_from.push(ClassifierSource { path, epoch });
    }
    Ok(Cascade {
        strategy: source.choice("cascade.strategy")?,
        criterion: source.choice("cascade.criterion")?,
        inner: source.choice("cascade.inner")?,
        compositions: source.required("cascade.compositions", lists)?,
        classifier_from,
        classifier_groups: source.whole("cascade.classifier_groups")?,
        reinit_seeds: source.required("cascade.reinit_seeds", form::seeds)?,
    })
}

fn check_features(source: &Source, kind: DataKind) -> Result<()> {
    if kind == DataKind::Text && !source.features.is_empty() {
        let problem = "the section features exists only with data.kind = \"speech\"";
        return Err(source.impossible(super::keys::FEATURES, problem, "Remove it"));
    }
    Ok(())
}

/// What has a meaning for one way of reading a text only.
fn check_text(source: &Source, recipe: &Recipe) -> Result<()> {
    let Batch::Text(batch) = &recipe.batch else { return Ok(()) };
    let Subset { fraction, complement_of, .. } = recipe.data.subset;
    if fraction != 1.0 || complement_of != 0.0 {
        let problem = "data.subset draws utterances, and data.kind is \"text\"";
        return Err(source.impossible("data.subset.fraction", problem, "Remove it, and name a shorter text"));
    }
    if batch.mode == TextMode::Sentences && recipe.training.temporal_regularization > 0.0 {
        let problem =
            "training.temporal_regularization needs sequences of equal lengths, and batch.mode is \"sentences\"";
        return Err(source.impossible(
            "training.temporal_regularization",
            problem,
            "Remove it, or read the text as streams",
        ));
    }
    Ok(())
}

/// Whatever compares epochs or stages needs something to compare them on.
fn check_validation(source: &Source, recipe: &Recipe) -> Result<()> {
    if recipe.data.valid.is_some() {
        return Ok(());
    }
    if recipe.augment.speeds != [1.0] {
        let problem =
            "augment.speeds changes the training set, which is the validation set too: there is no data.valid";
        return Err(source.impossible("augment.speeds", problem, "Add data.valid"));
    }
    let refuse = |key: &str, value: String| {
        let problem = format!("{key} is {value}, which compares on the validation set, and there is no data.valid");
        Err(source.impossible(key, problem, "Add data.valid"))
    };
    if matches!(recipe.cascade.strategy, Strategy::Greedy | Strategy::CutSearch) {
        return refuse("cascade.strategy", format!("\"{}\"", source.text("cascade.strategy")?));
    }
    if recipe.optimizer.epsilon_decay != 1.0 {
        return refuse("optimizer.epsilon_decay", recipe.optimizer.epsilon_decay.to_string());
    }
    if recipe.optimizer.learning_rate_decay != 1.0 {
        return refuse("optimizer.learning_rate_decay", recipe.optimizer.learning_rate_decay.to_string());
    }
    Ok(())
}

/// No key of the cascade may be given in vain, and every number of groups must fit the model.
fn check_cascade(source: &Source, recipe: &Recipe) -> Result<()> {
    let groups = recipe.model.groups();
    check_compositions(source, &recipe.cascade, groups)?;
    check_classifier(source, recipe, groups)?;
    let Cascade { strategy, inner, classifier_from, reinit_seeds, .. } = &recipe.cascade;
    if *inner == Inner::Always && *strategy != Strategy::CutSearch {
        let problem = "cascade.inner = \"always\" has an effect only with cascade.strategy = \"cut-search\"";
        return Err(source.impossible("cascade.inner", problem, "Remove it, or choose that strategy"));
    }
    let given = [("cascade.reinit_seeds", !reinit_seeds.is_empty()), ("reinit_seed", recipe.reinit_seed.is_some())];
    let given = given.into_iter().filter_map(|(key, is_given)| is_given.then_some(key));
    let never = *strategy == Strategy::None && classifier_from.is_empty();
    if let (true, Some(key)) = (never, given.clone().next()) {
        let problem = format!("{key} is given, but nothing is ever reinitialised");
        let remedy = "Remove it, or choose a cascade.strategy or a classifier_from";
        return Err(source.impossible(key, problem, remedy));
    }
    if given.count() == 2 {
        let problem = "both reinit_seed and cascade.reinit_seeds, which takes its place, are given";
        return Err(source.impossible("reinit_seed", problem, "Remove one of them"));
    }
    Ok(())
}

fn check_compositions(source: &Source, cascade: &Cascade, groups: usize) -> Result<()> {
    let Cascade { strategy, compositions, .. } = cascade;
    let is_fixed = *strategy == Strategy::Fixed;
    if is_fixed && compositions.is_empty() {
        let problem = "cascade.strategy is \"fixed\", and cascade.compositions lists nothing";
        let remedy = "Add compositions = [[1, ...]]: the groups of each round, top first";
        return Err(source.impossible("cascade.strategy", problem, remedy));
    }
    if !is_fixed && !compositions.is_empty() {
        let problem = "cascade.compositions has an effect only with cascade.strategy = \"fixed\"";
        return Err(source.impossible("cascade.compositions", problem, "Remove it, or choose that strategy"));
    }
    for (index, list) in compositions.iter().enumerate() {
        let sum = list.iter().fold(0usize, |sum, &n| sum.saturating_add(n));
        let problem = if sum != groups {
            format!("cascade.compositions has {list:?}, which adds up to {sum}; the model has {groups} groups")
        } else if compositions[..index].contains(list) {
            format!("cascade.compositions has {list:?} twice")
        } else {
            continue;
        };
        let remedy =
            "Each composition is listed once and adds up to all groups: one for each layer, one for the softmax";
        return Err(source.impossible("cascade.compositions", problem, remedy));
    }
    Ok(())
}

fn check_classifier(source: &Source, recipe: &Recipe, groups: usize) -> Result<()> {
    let Cascade { strategy, classifier_from, classifier_groups, .. } = &recipe.cascade;
    if classifier_from.is_empty() && *classifier_groups != 1 {
        let problem = "cascade.classifier_groups has an effect only with cascade.classifier_from";
        return Err(source.impossible("cascade.classifier_groups", problem, "Remove it, or add classifier_from"));
    }
    if *classifier_groups >= groups {
        let problem = format!("cascade.classifier_groups is {classifier_groups}; the model has {groups} groups");
        let remedy = format!("Allowed: from 1 to {}, so that something is left to train", groups - 1);
        return Err(source.impossible("cascade.classifier_groups", problem, remedy));
    }
    if classifier_from.is_empty() && recipe.data.cmvn == Cmvn::Classifier {
        let problem = "data.cmvn is \"classifier\", but there is no cascade.classifier_from";
        return Err(source.impossible("data.cmvn", problem, "Use \"global\", or add classifier_from"));
    }
    if !classifier_from.is_empty() && *strategy == Strategy::FreezeBottom {
        let problem = "cascade.classifier_from freezes the top, and cascade.strategy is \"freeze-bottom\"";
        return Err(source.impossible("cascade.classifier_from", problem, "Remove one of them"));
    }
    Ok(())
}
