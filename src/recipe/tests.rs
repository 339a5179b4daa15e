//! Recipes from text: defaults, `--set`, paths, the two texts made from the table, and every refusal.

use super::form::Form;
use super::keys::{KEYS, Preset};
use super::*;

const SMALLEST: &str = r#"
name = "small"
[data]
kind = "speech"
train = "../data/an4/train"
valid = "dev"
[model]
kind = "blstm-ctc"
layers = 2
units = 8
projection = 8
[optimizer]
kind = "adadelta"
"#;

/// Makes a language model of it.
const OF_TEXT: [&str; 2] = ["data.kind=text", "model={kind='lstm-lm', layers=2, embedding=8, units=8}"];

fn parse(text: &str, overrides: &[&str]) -> Result<Recipe> {
    let overrides: Vec<String> = overrides.iter().map(|text| (*text).to_owned()).collect();
    Recipe::parse(text, Path::new("small.toml"), Path::new("/corpus/recipes"), &overrides)
}

fn small(overrides: &[&str]) -> Recipe {
    parse(SMALLEST, overrides).unwrap_or_else(|error| panic!("{overrides:?}: {error}"))
}

fn refusal(overrides: &[&str]) -> String {
    match parse(SMALLEST, overrides) {
        Ok(_) => panic!("{overrides:?} was accepted"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn only_the_required_keys_are_required() {
    let recipe = small(&[]);
    assert_eq!(recipe.seeds, [1]);
    assert_eq!(recipe.batch, Batch::Speech { utterances: 30, max_frames: 800, max_labels: 150 });
    let Model::BlstmCtc(model) = &recipe.model else { panic!("a recogniser") };
    assert_eq!(
        (model.subsample.as_slice(), model.dropout, model.init),
        ([1, 1].as_slice(), 0.0, crate::nn::Scheme::Espnet)
    );
    assert_eq!(recipe.optimizer.method, Method::Adadelta { rho: 0.95 });
    assert_eq!((recipe.optimizer.learning_rate, recipe.optimizer.epsilon, recipe.optimizer.clip), (1.0, 1e-8, 5.0));
    assert_eq!((recipe.training.max_epochs, recipe.training.patience), (100, 5));
    assert_eq!(recipe.cascade.strategy, Strategy::None);

    for required in ["name", "train =", "kind = \"speech\"", "kind = \"blstm-ctc\"", "layers", "units", "projection"] {
        let without: String =
            SMALLEST.lines().filter(|line| !line.starts_with(required)).map(|line| format!("{line}\n")).collect();
        let error = parse(&without, &[]).expect_err(required).to_string();
        assert!(error.contains("the required key") && error.contains("is missing"), "{required}: {error}");
    }
}

#[test]
fn every_default_of_the_table_has_the_form_of_its_key() {
    for key in KEYS {
        if let Preset::Value(text) = key.default {
            let value: toml::Value = text.parse().unwrap_or_else(|error| panic!("{}: {error}", key.name));
            assert!(key.form.accepts(&value), "{} = {text}", key.name);
        }
    }
}

const TRANSFORMER: &str =
    "model={kind='transformer', encoder_layers=2, decoder_layers=1, units=8, heads=2, feedforward=16}";
const CTC_ATTENTION: &str =
    "model={kind='ctc-attention', layers=2, units=3, projection=4, attention=5, decoder_units=6, frontend='vgg'}";

/// Recipes that between them choose every kind.
fn one_of_each_kind() -> Vec<Recipe> {
    let text = [&OF_TEXT[..], &["cascade.criterion=loss", "optimizer={kind='sgd', momentum=0.9, nesterov=true}"]];
    let averaging = [&OF_TEXT[..], &["model.tied=false", "optimizer={kind='nt-asgd', nonmono=3, original=true}"]];
    vec![
        small(&[
            "features.num_mel_bins=40",
            "features.pitch=true",
            "seeds=[1, 2]",
            "init_seed=7",
            "model.subsample=[2, 1]",
            "data.tokens=bpe",
            "augment={speeds=[0.9, 1.0, 1.1], time_warp=5, frequency_masks=2, time_masks=2, mask_rule='espnet'}",
            "data.pieces=pieces.json",
            "data.non_linguistic=['<NOISE>', '[laughter]']",
        ]),
        small(&[
            "optimizer={kind='adam', beta2=0.98}",
            "data.subset={complement_of=0.8}",
            "data.token_list=tokens.txt",
        ]),
        small(&["cascade={strategy='fixed', compositions=[[1, 2], [1, 1, 1]], reinit_seeds=[3, 4]}"]),
        small(&["cascade={classifier_from=['runs/a/joint@3', 'runs/b'], classifier_groups=2}"]),
        small(&[
            TRANSFORMER,
            "optimizer={kind='adam', warmup=100}",
            "cascade={strategy='fixed', compositions=[[1, 4]]}",
        ]),
        small(&[CTC_ATTENTION, "cascade={strategy='fixed', compositions=[[1, 1, 2, 1]]}"]),
        small(&text.concat()),
        small(&averaging.concat()),
    ]
}

#[test]
fn a_filled_recipe_has_every_key_and_is_the_same_recipe() {
    // The table's rows that were seen.
    let mut seen = std::collections::BTreeSet::new();
    for recipe in one_of_each_kind() {
        let filled = recipe.filled().expect("it can be written");
        let table: toml::Table = filled.parse().unwrap_or_else(|error| panic!("{error}\n{filled}"));
        let tree = toml::Value::Table(table);
        let look_up = |name: &str| name.split('.').try_fold(&tree, |value, part| value.get(part));
        for (row, key) in KEYS.iter().enumerate() {
            let word_of = |kind| look_up(kind).and_then(toml::Value::as_str);
            let chosen =
                key.only_with.is_none_or(|(kind, words)| word_of(kind).is_some_and(|word| words.contains(&word)));
            let other_seed_key = key.name == if recipe.seeds.len() == 1 { "seeds" } else { "seed" };
            if chosen && !other_seed_key {
                let value = look_up(key.name).unwrap_or_else(|| panic!("{} is not in\n{filled}", key.name));
                assert!(key.form.accepts(value), "{} = {value}", key.name);
                seen.insert(row);
            }
        }
        let again = Recipe::parse(&filled, Path::new("recipe.toml"), Path::new("/elsewhere"), &[]);
        assert_eq!(again.unwrap_or_else(|error| panic!("{error}\n{filled}")), recipe);
    }
    assert_eq!(seen.len(), KEYS.len(), "these recipes choose every kind of the table");
}

#[test]
fn a_number_is_written_in_short_and_stays_the_same() {
    let all =
        [0.0, 1.0, -2.5, 0.1 + 0.2, 1e-8, 1.5e-300, 123_456.0, 1e6, 1e15, 1e16 / 3.0, f64::MAX, f64::MIN_POSITIVE];
    for number in all {
        let text = super::form::written(&toml::Value::Float(number));
        assert_eq!(text.parse::<toml::Value>().expect("TOML").as_float(), Some(number), "{text}");
        assert!(text.len() < 26, "{text}");
    }
}

#[test]
fn the_help_has_every_key_with_its_default() {
    let help = help();
    for key in KEYS {
        let name = key.name.rsplit('.').next().expect("a name");
        let line = match key.default {
            Preset::Required => format!("  {name}   (required)\n"),
            Preset::Value(value) => format!("  {name} = {value}\n"),
            Preset::Derived(words) => format!("  {name}   (default: {words})\n"),
        };
        assert!(help.contains(&line), "{line}");
        assert!(help.contains(key.help) && !key.help.ends_with('.'), "{}", key.name);
    }
}

#[test]
fn every_word_of_every_choice_can_be_chosen() {
    // What some words need beside them.
    let companions = |name: &str, word: &str| -> Vec<&str> {
        match (name, word) {
            ("cascade.strategy", "fixed") => vec!["cascade.compositions=[[1, 2]]"],
            ("cascade.inner", "always") => vec!["cascade.strategy=cut-search"],
            ("optimizer.nesterov", _) => vec!["optimizer.momentum=0.5"],
            ("data.tokens", "bpe") => vec!["data.pieces=pieces.json"],
            ("data.cmvn", "classifier") => vec!["cascade.classifier_from=../runs/other/joint"],
            _ => vec![],
        }
    };
    for key in KEYS {
        let Form::Choice(words) = key.form else { continue };
        let kinds: Vec<Option<(&str, &str)>> = match key.only_with {
            Some((kind, kind_words)) => kind_words.iter().map(|&kind_word| Some((kind, kind_word))).collect(),
            None => vec![None],
        };
        for (word, kind) in words.iter().flat_map(|word| kinds.iter().map(move |kind| (word, kind))) {
            let mut overrides: Vec<String> = Vec::new();
            match *kind {
                Some(("data.kind", "text") | ("model.kind", "lstm-lm")) => overrides.extend(OF_TEXT.map(String::from)),
                Some(("model.kind", "transformer")) => overrides.push(TRANSFORMER.into()),
                Some(("model.kind", "ctc-attention")) => overrides.push(CTC_ATTENTION.into()),
                None if (key.name, *word) == ("model.kind", "transformer") => overrides.push(TRANSFORMER.into()),
                None if (key.name, *word) == ("model.kind", "ctc-attention") => overrides.push(CTC_ATTENTION.into()),
                Some((kind, kind_word)) => overrides.push(format!("{kind}={kind_word}")),
                None if [("data.kind", "text"), ("model.kind", "lstm-lm")].contains(&(key.name, *word)) => {
                    overrides.extend(OF_TEXT.map(String::from));
                }
                None => {}
            }
            overrides.extend(companions(key.name, word).into_iter().map(str::to_owned));
            overrides.push(format!("{}={word}", key.name));
            let overrides: Vec<&str> = overrides.iter().map(String::as_str).collect();
            let filled = small(&overrides).filled().expect("it can be written");
            let name = key.name.rsplit('.').next().expect("a name");
            assert!(filled.contains(&format!("{name} = \"{word}\"")), "{} = {word}\n{filled}", key.name);
        }
    }
}

#[test]
fn set_values_are_toml_and_bare_words_are_texts() {
    let recipe = small(&[
        "optimizer.learning_rate=0.5",
        "training.patience = 0",
        "data.test=../data/an4/test",
        "name=other",
        "data.subset={fraction=0.2}",
        "training.tensorboard=true",
    ]);
    assert_eq!(recipe.optimizer.learning_rate, 0.5);
    assert_eq!(recipe.training.patience, 0);
    assert_eq!(recipe.data.test.as_deref(), Some(Path::new("/corpus/data/an4/test")));
    assert_eq!(recipe.name, "other");
    assert_eq!(recipe.data.subset.fraction, 0.2);
    assert!(recipe.training.tensorboard);
    // The last one counts, and a table replaces its section.
    assert_eq!(small(&["training.patience=1", "training.patience=2"]).training.patience, 2);
    assert_eq!(small(&["training.patience=1", "training={max_epochs=7}"]).training.patience, 5);
}

#[test]
fn a_set_seed_replaces_the_recipes_seeds() {
    let several = format!("seeds = [1, 2, 3]\n{SMALLEST}");
    assert_eq!(parse(&several, &[]).expect("valid").seeds, [1, 2, 3]);
    assert_eq!(parse(&several, &["seed=9"]).expect("valid").seeds, [9]);
    let single = format!("seed = 4\n{SMALLEST}");
    assert_eq!(parse(&single, &["seeds=[5, 6]"]).expect("valid").seeds, [5, 6]);
}

#[test]
fn seeds_follow_the_runs_seed_unless_given() {
    let recipe = small(&["seeds=[3, 4]", "reinit_seed=9", "cascade.strategy=greedy"]);
    assert_eq!(recipe.seeds_for(4), Seeds { init: 4, reinit: 9, data: 4, dropout: 4 });
}

#[test]
fn relative_paths_start_at_the_recipes_folder() {
    let recipe = small(&["data.test=/absolute/test", "cascade.classifier_from=../runs/a/joint@11"]);
    assert_eq!(recipe.data.train, Path::new("/corpus/data/an4/train"));
    assert_eq!(recipe.data.valid.as_deref(), Some(Path::new("/corpus/recipes/dev")));
    assert_eq!(recipe.data.test.as_deref(), Some(Path::new("/absolute/test")));
    let classifier = &recipe.cascade.classifier_from[0];
    assert_eq!((classifier.path.as_path(), classifier.epoch), (Path::new("/corpus/runs/a/joint"), Some(11)));
}

#[test]
fn an_unknown_key_is_an_error_naming_its_line_and_the_nearest_key() {
    let misspelt = SMALLEST.replace("projection", "projektion");
    let error = parse(&misspelt, &[]).expect_err("misspelt").to_string();
    assert!(error.starts_with("small.toml:11: "), "{error}");
    assert!(error.contains("model.projektion is unknown. The nearest known key is model.projection."), "{error}");

    let nearest = |set: &str| refusal(&[set]);
    assert!(nearest("optimizer.learing_rate=1").contains("nearest known key is optimizer.learning_rate"));
    assert!(nearest("optimiser.rho=1").contains("nearest known key is optimizer.rho"));
    assert!(nearest("dropout=0.1").contains("nearest known key is model.dropout"));
    assert!(nearest("trainning={}").contains("the key trainning is unknown"));
    assert!(nearest("data.\"train\"=x").contains("is unknown"));
}

#[test]
fn a_key_of_another_kind_is_refused() {
    let error = refusal(&["optimizer.momentum=0.9"]);
    assert!(error.contains("exists only with optimizer.kind = \"sgd\", and optimizer.kind is \"adadelta\""), "{error}");
    assert!(refusal(&["batch.bptt=70"]).contains("data.kind"));
    assert!(refusal(&[&OF_TEXT[..], &["features.pitch=true"]].concat()).contains("features"));
    assert!(refusal(&["data.kind=text"]).contains("blstm-ctc\", which reads data.kind = \"speech\""));
    assert!(refusal(&[&OF_TEXT[..], &["data.subset.fraction=0.5"]].concat()).contains("data.subset"));
    let sentences = ["batch.mode=sentences", "training.temporal_regularization=1.0"];
    assert!(refusal(&[&OF_TEXT[..], &sentences].concat()).contains("equal lengths"));
}

#[test]
fn an_impossible_value_is_refused_with_what_is_allowed() {
    // What is set, and what its error must say.
    let cases = [
        ("model.dropout=1.5", "--set: model.dropout is 1.5. Allowed: a number of at least 0 and below 1."),
        ("model.dropout=nan", "model.dropout is nan"),
        ("model.dropout=high", "model.dropout is \"high\""),
        ("model.layers=0", "model.layers is 0. Allowed: a whole number from 1 to 1000."),
        ("model.layers=2.0", "model.layers is 2.0"),
        ("model.units=-3", "model.units is -3"),
        ("model.subsample=[2, 2, 1]", "3 numbers for 2 layers"),
        ("model.subsample=[2, 0]", "model.subsample is [2, 0]"),
        ("optimizer.learning_rate=-1", "optimizer.learning_rate is -1. Allowed: a number above 0 and at most 1e6."),
        ("optimizer.kind=adadleta", "the nearest is \"adadelta\""),
        ("training.patience=-1", "training.patience is -1. Allowed: a whole number from 0"),
        ("training.save_minutes=1e300", "training.save_minutes is 1e300."),
        ("training.tensorboard=1", "training.tensorboard is 1. Allowed: true or false"),
        ("seeds=[]", "seeds is []"),
        ("seeds=[1, 2, 1]", "seeds is [1, 2, 1]. Allowed: a list of different whole numbers"),
        ("seed=-1", "seed is -1"),
        ("init_seed=run", "init_seed is \"run\""),
        ("data.subset.fraction=0", "Allowed: a number above 0 and at most 1"),
        ("data.subset.fraction=1.1", "data.subset.fraction is 1.1"),
        ("data.subset={fraction=0.3, complement_of=0.8}", "the complement of 0.8 has only 0.2"),
        ("name=a/b", "name is \"a/b\""),
        ("name=..", "name is \"..\""),
        ("data.train=''", "data.train is \"\""),
        ("data=3", "data is a section, not a key"),
        ("cascade.criterion=perplexity", "cascade.criterion is \"perplexity\""),
        ("cascade.strategy=fixed", "compositions lists nothing"),
        ("cascade.compositions=[[1, 2]]", "only with cascade.strategy = \"fixed\""),
        ("cascade={strategy='fixed', compositions=[[1, 1]]}", "adds up to 2; the model has 3 groups"),
        ("cascade={strategy='fixed', compositions=[[1, 2], [1, 2]]}", "[1, 2] twice"),
        ("cascade={strategy='fixed', compositions=[[3, 0]]}", "cascade.compositions is [[3, 0]]"),
        ("cascade.inner=always", "only with cascade.strategy = \"cut-search\""),
        ("cascade.classifier_groups=2", "only with cascade.classifier_from"),
        ("cascade={classifier_from='r', classifier_groups=3}", "Allowed: from 1 to 2"),
        ("cascade.classifier_from=runs/a/joint@0", "with an epoch from 1"),
        ("cascade={classifier_from='r', strategy='freeze-bottom'}", "freezes the top"),
        ("cascade.reinit_seeds=[1]", "cascade.reinit_seeds is given, but nothing is ever reinitialised"),
        ("reinit_seed=9", "reinit_seed is given, but nothing is ever reinitialised"),
        ("optimizer={kind='sgd', dampening=0.5}", "optimizer.dampening is 0.5, which has an effect only on a momentum"),
        ("optimizer={kind='sgd', nesterov=true}", "Nesterov needs a momentum"),
        ("model.layers=[", "--set: model.layers is [, which is not TOML"),
        ("model.layers", "has no value"),
        ("=3", "has no key"),
    ];
    for (set, expected) in cases {
        let error = refusal(&[set]);
        assert!(error.contains(expected), "{set}: {error}");
    }
    let both = parse(SMALLEST, &["cascade={strategy='greedy', reinit_seeds=[1]}", "reinit_seed=9"]);
    assert!(both.expect_err("both").to_string().contains("both reinit_seed and cascade.reinit_seeds"));
    let both = format!("seed = 1\nseeds = [2]\n{SMALLEST}");
    assert!(parse(&both, &[]).expect_err("both").to_string().starts_with("small.toml:2: both seed and seeds"));
    let error = parse(&SMALLEST.replace("layers = 2", "layers = 0"), &[]).expect_err("no layers").to_string();
    assert!(error.starts_with("small.toml:9: model.layers is 0."), "{error}");
}

#[test]
fn comparing_on_validation_needs_a_validation_set() {
    let error = refusal(&["data.valid=''", "cascade.strategy=greedy"]);
    assert!(error.contains("there is no data.valid. Add data.valid."), "{error}");
    assert!(refusal(&["data.valid=''", "optimizer.epsilon_decay=0.01"]).contains("optimizer.epsilon_decay"));
    assert_eq!(small(&["data.valid=''"]).data.valid, None);
}

#[test]
fn broken_toml_is_an_error_naming_its_line() {
    let error = parse("name = \"x\"\n[data\nkind = 1\n", &[]).expect_err("broken").to_string();
    assert!(error.starts_with("small.toml:2: this is not TOML: "), "{error}");
    let twice = parse(&SMALLEST.replace("units = 8", "layers = 8"), &[]).expect_err("twice").to_string();
    assert!(twice.starts_with("small.toml:10: "), "{twice}");
}

#[test]
fn a_recipe_that_cannot_be_read_names_its_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("none.toml");
    assert!(Recipe::load(&path, &[]).expect_err("missing").to_string().contains("none.toml: cannot be read"));
    std::fs::write(&path, b"name = \"x\"\n# \xff\n").expect("written");
    assert!(Recipe::load(&path, &[]).expect_err("not UTF-8").to_string().contains("none.toml:2: this is not UTF-8"));
}

#[test]
fn feature_options_name_the_key_that_they_refuse() {
    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Options {
        num_mel_bins: usize,
        pitch: Option<bool>,
    }
    let options = small(&["features.num_mel_bins=40"]).features_as::<Options>().expect("valid");
    assert_eq!(options, Options { num_mel_bins: 40, pitch: None });
    let error = small(&["features.num_mel_bin=40"]).features_as::<Options>().expect_err("misspelt").to_string();
    assert!(error.starts_with("features.num_mel_bin: unknown field"), "{error}");
    assert!(error.contains("The nearest known key is features.num_mel_bins."), "{error}");
    let error = small(&["features.num_mel_bins=many"]).features_as::<Options>().expect_err("a word").to_string();
    assert!(error.starts_with("features.num_mel_bins: invalid type"), "{error}");
}

#[test]
fn every_recipe_of_the_project_can_be_read() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes");
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&folder).expect("the folder recipes") {
        let path = entry.expect("an entry").path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            let recipe = Recipe::load(&path, &[]).unwrap_or_else(|error| panic!("{error}"));
            let filled = recipe.filled().expect("it can be written");
            assert_eq!(Recipe::parse(&filled, &path, &folder, &[]).expect("filled"), recipe);
            assert_eq!(path.file_stem().and_then(|stem| stem.to_str()), Some(recipe.name.as_str()), "file and name");
            names.push(recipe.name);
        }
    }
    names.sort();
    let expected = [
        "an4-ctc",
        "an4-ctc-dropout",
        "an4-ctc-freeze-bottom",
        "wsj-ctc",
        "wsj-ctc-dropout",
        "wsj-subset",
        "wsj-subset-classifier",
    ];
    assert!(expected.iter().all(|name| names.iter().any(|other| other == name)), "{names:?}");
}

proptest::proptest! {
    #[test]
    fn no_damage_to_a_recipe_makes_it_panic(from in 0..250usize, length in 0..40usize, text in ".{0,12}", set in "[a-z.=\\[\\]{}\"0-9-]{0,20}") {
        let from = from.min(SMALLEST.len());
        let to = (from + length).min(SMALLEST.len());
        let damaged = format!("{}{text}{}", &SMALLEST[..from], &SMALLEST[to..]);
        // Whatever comes out, an error says where.
        for result in [parse(&damaged, &[]), parse(SMALLEST, &[&set])] {
            if let Err(error) = result {
                let error = error.to_string();
                proptest::prop_assert!(error.starts_with("small.toml") || error.starts_with("--set"), "{error}");
            }
        }
    }
}
