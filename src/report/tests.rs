//! Pages made from generated records: that they are whole, say what they should, and let nothing through unescaped.

use crate::cascade::{Plan, PlanOptions, Source, Strategy};
use crate::train::record::{GroupRecord, LayerMovement, MemoryRecord, Scores, StageResult, Transcript};

use super::*;

/// A finished stage of a five-group network whose numbers all follow from its id and `cer`.
fn stage(id: &str, title: &str, frozen: &[usize], from: Option<&str>, cer: f64, accepted: bool) -> StageResult {
    let trained = 5 - frozen.len() as u64;
    let scores = |cer: f64| Scores {
        loss: cer * 0.9,
        utterances: Some(100),
        cer: Some(cer),
        wer: Some(cer * 2.4),
        ..Scores::default()
    };
    let layers =
        ["encoder.blstm.0", "encoder.proj.0", "encoder.blstm.1", "encoder.proj.1", "encoder.blstm.2", "encoder.proj.2"];
    StageResult {
        stage: id.to_string(),
        title: title.to_string(),
        frozen_groups: frozen.to_vec(),
        classifier_from: from.map(str::to_string),
        seed: 1,
        epochs: 22,
        best_epoch: 17,
        best_sha256: None,
        averaged_epochs: None,
        valid: scores(cer),
        test: Some(scores(cer * 0.52)),
        criterion: "cer".to_string(),
        criterion_value: cer,
        accepted,
        seconds: 408.0 * (0.6 + 0.08 * trained as f64),
        memory: MemoryRecord {
            parameters: 26_808_528,
            gradients: 5_361_705 * trained,
            optimizer_state: 10_723_410 * trained,
            kept_activations: 61_000_000 + 17_000_000 * trained,
            peak: 160_000_000 + 33_000_000 * trained,
            arena: 0,
            process_peak: 410_000_000,
        },
        device: None,
        products: None,
        movement: layers
            .iter()
            .enumerate()
            .filter(|(index, _)| !frozen.contains(&(index / 2)))
            .map(|(index, layer)| LayerMovement {
                layer: layer.to_string(),
                sum_absolute_change: 18_798.4 + 4_000.0 * index as f64 + 300.0 * cer,
            })
            .collect(),
        samples: vec![
            Transcript {
                utterance: "fash-an251-b".into(),
                reference: "YES".into(),
                hypothesis: if cer < 16.0 { "YES" } else { "YES S" }.into(),
            },
            Transcript {
                utterance: "fash-an253-b".into(),
                reference: "GO ENTER SIX TWENTY FOUR".into(),
                hypothesis: if cer < 16.0 { "GO ENTER SIX TWENTY FOR" } else { "ENTER SICKS TWENTY FOR" }.into(),
            },
        ],
    }
}

#[test]
fn where_the_last_epochs_are_averaged_the_page_does_not_say_that_the_best_epochs_weights_were_kept() {
    let mut data = greedy_run();
    let kept = ["whose weights were kept", "from the end of epoch 1 to the best epoch"];
    let page = render(&[data.clone()]);
    assert!(kept.iter().all(|text| page.contains(text)));
    data.result.stages.iter_mut().for_each(|stage| stage.averaged_epochs = Some(10));
    let page = render(&[data]);
    assert!(!kept.iter().any(|text| page.contains(text)));
    assert!(
        page.contains("the average of the last 10 epochs") && page.contains("epoch with the lowest validation loss")
    );
}

fn epochs(stage: &str, number: usize, end: f64) -> Vec<EpochRecord> {
    let at = |epoch: usize| {
        end + (95.0 - end) * (-(epoch as f64 - 1.0) / 3.2).exp()
            + if epoch > 17 { 0.12 * (epoch as f64 - 17.0) } else { 0.0 }
    };
    (1..=number)
        .map(|epoch| EpochRecord {
            stage: stage.to_string(),
            epoch,
            train_loss: at(epoch) * 0.8 - 0.4 * epoch as f64 * 0.5,
            valid_loss: at(epoch) * 0.9,
            valid_cer: Some(at(epoch)),
            valid_wer: Some((at(epoch) * 2.1).min(100.0)),
            valid_perplexity: None,
            best: epoch <= 17,
            kept_sha256: None,
            step: 29 * epoch as u64,
            learning_rate: 1.0,
            gradient_norm: 12.0,
            skipped_updates: 0,
            infeasible_utterances: 0,
            train_seconds: 22.0,
            valid_seconds: 2.0,
        })
        .collect()
}

fn run(name: &str, strategy: &str, stages: Vec<StageResult>, best: Option<&str>, finished: bool) -> RunData {
    let epochs = stages.iter().flat_map(|stage| epochs(&stage.stage, stage.epochs, stage.criterion_value)).collect();
    let names = ["blstm-1", "blstm-2", "blstm-3", "blstm-4", "softmax"];
    let groups = names.iter().map(|name| GroupRecord {
        name: name.to_string(),
        parameters: if *name == "softmax" { 9_000 } else { 1_848_640 },
    });
    RunData {
        result: RunResult {
            name: name.to_string(),
            model: "blstm-ctc".to_string(),
            strategy: strategy.to_string(),
            device: "cpu, 2 threads".to_string(),
            groups: groups.collect(),
            stages,
            best: best.map(str::to_string),
            bests: best.map(str::to_string).into_iter().collect(),
            start_sha256: Default::default(),
            finished,
        },
        epochs,
        path: format!("runs/{name}"),
    }
}

fn greedy_run() -> RunData {
    let stages = vec![
        stage("joint", "joint", &[], None, 17.23, true),
        stage("1-4", "M(1,4)", &[4], Some("joint"), 17.08, true),
        stage("1-1-3", "M(1,1,3)", &[3, 4], Some("1-4"), 15.09, true),
        stage("1-1-1-2", "M(1,1,1,2)", &[2, 3, 4], Some("1-1-3"), 16.61, false),
    ];
    run("an4-ctc", "greedy", stages, Some("1-1-3"), true)
}

fn cut_search_run() -> RunData {
    let stages = vec![
        stage("joint", "joint", &[], None, 16.9, true),
        stage("1-4", "M(1,4)", &[4], Some("joint"), 17.4, false),
        stage("2-3", "M(2,3)", &[3, 4], Some("joint"), 16.1, true),
        stage("2-1-2", "M(2,1,2)", &[2, 3, 4], Some("2-3"), 16.0, true),
    ];
    run("an4-cut-search", "cut-search", stages, Some("2-1-2"), true)
}

/// The sixteen stages of five groups, as the strategy itself names them.
fn exhaustive_run() -> RunData {
    let plan = Plan::new(Strategy::Exhaustive, 5, PlanOptions::new(1)).expect("a plan");
    let stages = plan.outline().into_iter().enumerate().map(|(index, planned)| {
        let from = match &planned.source {
            Source::Stage(parent) => Some(parent.to_string()),
            _ => None,
        };
        let cer = 17.2 - ((index * 7) % 11) as f64 * 0.25;
        stage(&planned.id.to_string(), &planned.title, &planned.frozen, from.as_deref(), cer, true)
    });
    run("an4-exhaustive", "exhaustive", stages.collect(), None, true)
}

fn seeds_run() -> RunData {
    let mut stages = Vec::new();
    for (seed, base) in [(1, 17.2), (2, 17.9), (3, 16.8)] {
        let id = |kind: &str| format!("{kind}.seed{seed}");
        stages.push(stage(&id("joint"), &format!("joint, seed {seed}"), &[], None, base, true));
        stages.push(stage(&id("1-4"), &format!("M(1,4), seed {seed}"), &[4], Some(&id("joint")), base - 0.4, true));
        stages.push(stage(
            &id("1-1-3"),
            &format!("M(1,1,3), seed {seed}"),
            &[3, 4],
            Some(&id("1-4")),
            base - 1.5,
            true,
        ));
    }
    let mut data = run("an4-three-seeds", "greedy", stages, Some("1-1-3.seed3"), true);
    data.result.bests = (1..=3).map(|seed| format!("1-1-3.seed{seed}")).collect();
    data
}

/// Every opened tag of these kinds is closed: a page that a browser does not have to guess at.
fn assert_whole(page: &str) {
    for tag in [
        "html", "body", "main", "section", "article", "div", "table", "tr", "svg", "g", "figure", "details", "dl",
        "dd", "p", "span", "b",
    ] {
        let opened = page.matches(&format!("<{tag}>")).count() + page.matches(&format!("<{tag} ")).count();
        let closed = page.matches(&format!("</{tag}>")).count();
        assert_eq!(opened, closed, "<{tag}>");
    }
    assert!(
        !page.contains("NaN") && !page.contains("inf%") && !page.contains("\"inf"),
        "a number that no browser reads"
    );
    for outside in ["http://", "https://", "<script", "@import", "<link"] {
        assert!(!page.contains(outside), "{outside}: the file must stand alone");
    }
}

#[test]
fn the_best_stage_is_held_against_joint_training() {
    let page = render(&[greedy_run()]);
    assert_whole(&page);
    assert!(page.contains("<b>17.23<small> %</small></b>") && page.contains("<b>15.09<small> %</small></b>"));
    assert!(page.contains("<b>12.4 % lower</b>"), "100 (17.23 - 15.09) / 17.23");
    assert!(page.contains("✕ rejected") && page.contains("★ best"));
    assert!(page.contains("nothing") && page.contains("softmax, blstm-4"), "what is frozen, by name");
}

#[test]
fn every_row_of_the_table_has_a_cell_for_every_column() {
    let mut unfinished = seeds_run();
    unfinished.epochs.extend(epochs("joint.seed4", 4, 30.0));
    for data in [greedy_run(), unfinished] {
        let page = render(&[data]);
        let table = page
            .split("<table class=\"stages\">")
            .nth(1)
            .and_then(|rest| rest.split("</table>").next())
            .expect("a table");
        let cells = |row: &str| row.matches("<td").count() + row.matches("<th").count() - row.matches("<thead").count();
        let (head, body) = table.split_once("<tbody>").expect("a body");
        let columns = cells(head.rsplit("<tr>").next().expect("the head's last row"));
        let rows: Vec<&str> = body.split("</tr>").filter(|row| row.contains("<tr")).collect();
        assert!(rows.len() >= 4);
        for row in rows {
            assert_eq!(cells(row), columns, "{row}");
        }
    }
}

#[test]
fn the_control_is_called_so_and_not_judged() {
    let stages = vec![
        stage("joint", "joint", &[], None, 17.23, true),
        stage("bottom-1", "freeze-bottom", &[0], Some("joint"), 21.57, true),
    ];
    let page = render(&[run("control", "freeze-bottom", stages, Some("joint"), true)]);
    assert!(page.contains("◇ control") && !page.contains("✓ accepted"));
}

#[test]
fn every_stage_has_a_line_in_every_chart() {
    let page = render(&[greedy_run()]);
    for title in ["Validation loss", "Validation CER, %", "Validation WER, %", "Training loss"] {
        let chart = page.split(&format!("<figure><figcaption>{title}")).nth(1).expect(title);
        let chart = chart.split("</figure>").next().expect("the chart's end");
        assert_eq!(chart.matches("<path class=\"line").count(), 4, "{title}");
        assert_eq!(chart.matches("<circle class=\"ring").count(), 4, "{title}: the epoch that was kept");
    }
    assert!(!page.contains("Validation perplexity"), "speech has none");
}

#[test]
fn arrows_lead_from_the_stage_whose_weights_are_frozen() {
    let page = render(&[greedy_run()]);
    assert_eq!(
        page.matches("<path class=\"arrow\"").count(),
        1 + 2 + 3,
        "one into each frozen box, from the column before"
    );
    assert_eq!(page.matches("<rect class=\"frozen\"").count(), 1 + 2 + 3);
    assert_eq!(page.matches("<rect class=\"trained\"").count(), 20 - 6);
    let page = render(&[cut_search_run()]);
    assert_eq!(page.matches("<path class=\"arrow\"").count(), 1 + 1 + 3, "from joint to M(2,3) over M(1,4): one arc");
}

#[test]
fn a_layer_that_moved_further_than_in_joint_training_says_how_much() {
    let mut data = greedy_run();
    data.result.stages[0].movement[0].sum_absolute_change = 20_000.0;
    data.result.stages[1].movement[0].sum_absolute_change = 24_500.0;
    let page = render(&[data]);
    assert!(page.contains("24,500<small>×1.23</small>"), "24500 / 20000 = 1.225");
    let column = |layer: &str| page.find(&format!("<th class=\"n\">{layer}</th>")).expect("a column");
    assert!(column("proj.2") < column("blstm.0"), "the top layer comes first, as in ICLR 2020, Table 1");
}

#[test]
fn nothing_from_a_record_reaches_the_page_unescaped() {
    let evil = "<script>alert('x')</script>\"&";
    let mut data = greedy_run();
    let result = &mut data.result;
    for text in [&mut result.name, &mut result.model, &mut result.strategy, &mut result.device, &mut data.path] {
        *text = evil.to_string();
    }
    result.groups.iter_mut().for_each(|group| group.name = evil.to_string());
    for stage in &mut result.stages {
        stage.title = evil.to_string();
        stage.criterion = evil.to_string();
        stage.classifier_from = Some(evil.to_string());
        stage.movement.iter_mut().for_each(|movement| movement.layer = evil.to_string());
        for sample in &mut stage.samples {
            (sample.utterance, sample.reference, sample.hypothesis) =
                (evil.to_string(), evil.to_string(), format!("{evil}{evil}"));
        }
    }
    data.epochs.extend(epochs(evil, 3, 50.0));
    for page in [render(&[data.clone()]), render(&[data.clone(), data])] {
        assert_whole(&page);
        assert!(!page.contains("alert('x')") && !page.contains("<script"));
        assert!(page.contains("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;&quot;&amp;"));
    }
}

#[test]
fn an_empty_run_and_no_run_at_all_make_a_page_that_says_so() {
    let page = render(&[]);
    assert_whole(&page);
    assert!(page.contains("There is no run to report"));
    let mut empty = run("", "none", vec![], None, false);
    empty.path = "runs/empty".to_string();
    let page = render(&[empty.clone()]);
    assert_whole(&page);
    assert!(page.contains("No epoch has been trained yet") && page.contains("<h1>runs/empty</h1>"));
    assert!(!page.contains("<section>"));
    empty.result.groups.clear();
    assert_whole(&render(&[empty]));
}

#[test]
fn one_stage_has_nothing_to_be_compared_with() {
    let page = render(&[run(
        "joint-only",
        "none",
        vec![stage("joint", "joint", &[], None, 17.23, true)],
        Some("joint"),
        true,
    )]);
    assert_whole(&page);
    assert!(page.contains("Joint training is the only stage so far") && !page.contains("% lower"));
}

#[test]
fn a_stage_in_training_has_its_curves_and_its_row() {
    let mut data = run("half", "greedy", vec![stage("joint", "joint", &[], None, 17.23, true)], Some("joint"), false);
    data.epochs.extend(epochs("1-4", 4, 30.0));
    let page = render(&[data.clone()]);
    assert_whole(&page);
    assert!(page.contains("unfinished: 1 stage so far") && page.contains("in training") && page.contains("M(1,4)"));
    data.result.stages.clear();
    data.result.best = None;
    let page = render(&[data]);
    assert_whole(&page);
    assert!(page.contains("The first stage is still being trained") && page.contains("Validation loss"));
}

#[test]
fn numbers_that_are_not_finite_are_said_in_words_and_break_the_line() {
    let mut data = greedy_run();
    data.result.stages[3].criterion_value = f64::NAN;
    data.result.stages[3].valid = Scores { loss: f64::INFINITY, cer: Some(f64::NAN), ..Scores::default() };
    data.result.stages[3].seconds = f64::NAN;
    data.result.stages[3].movement[0].sum_absolute_change = f64::NAN;
    for epoch in data.epochs.iter_mut().filter(|epoch| epoch.stage == "1-1-1-2" && epoch.epoch > 3) {
        (epoch.valid_loss, epoch.train_loss, epoch.valid_cer) = (f64::NAN, f64::NEG_INFINITY, Some(f64::NAN));
    }
    let page = render(&[data.clone()]);
    assert_whole(&page);
    assert!(page.contains("epoch 4: not finite") && page.contains("<td class=\"n\">not finite</td>"));
    for epoch in &mut data.epochs {
        (epoch.valid_loss, epoch.train_loss, epoch.valid_cer, epoch.valid_wer) =
            (f64::NAN, f64::NAN, Some(f64::NAN), None);
    }
    for stage in &mut data.result.stages {
        stage.criterion_value = f64::NAN;
    }
    data.result.best = None;
    let page = render(&[data]);
    assert_whole(&page);
    assert!(page.contains("No stage has a finite result") && page.contains("No value is finite"));
}

#[test]
fn a_text_run_is_told_in_perplexity_without_per_cent() {
    let mut data = greedy_run();
    for stage in &mut data.result.stages {
        stage.criterion = "perplexity".to_string();
        stage.criterion_value *= 4.0;
        stage.samples.clear();
        stage.valid =
            Scores { loss: 4.2, perplexity: Some(stage.criterion_value), tokens: Some(217_646), ..Scores::default() };
        stage.test = None;
    }
    for epoch in &mut data.epochs {
        (epoch.valid_perplexity, epoch.valid_cer, epoch.valid_wer) = (epoch.valid_cer, None, None);
    }
    let page = render(&[data]);
    assert_whole(&page);
    assert!(page.contains("Best stage, validation perplexity") && page.contains("Validation perplexity"));
    assert!(page.contains("<b>60.36<small></small></b>"));
    assert!(!page.contains("CER, %") && !page.contains("<h2>Transcripts</h2>"));
}

#[test]
fn seeds_are_told_as_mean_and_spread() {
    let page = render(&[seeds_run()]);
    assert_whole(&page);
    // Joint: 17.2, 17.9, 16.8; mean 17.3, standard deviation 0.557.
    assert!(page.contains("17.30 <small>± 0.56</small>"));
    assert!(page.contains("15.80 <small>± 0.56</small>"), "M(1,1,3), and the best of each seed");
    assert!(page.contains("<tr class=\"best\"><th scope=\"row\">best of each seed</th><td class=\"n\">3</td>"));
    assert!(page.contains("<b>8.7 % lower</b>"), "100 (17.3 - 15.8) / 17.3");
    assert_eq!(page.matches("<svg class=\"picture\"").count(), 3, "a picture for each seed");
    assert!(!render(&[greedy_run()]).contains("± standard deviation"));
}

#[test]
fn a_seed_that_diverged_is_said_and_not_averaged() {
    let mut data = seeds_run();
    data.result.stages[4].criterion_value = f64::NAN;
    let page = render(&[data]);
    assert_whole(&page);
    // M(1,4) of the seeds 1 and 3: 16.8 and 16.4.
    assert!(page.contains("16.60 <small>± 0.28</small> <small>1 not finite</small>"));
}

#[test]
fn of_several_runs_those_with_seeds_show_means() {
    let page = render(&[greedy_run(), seeds_run()]);
    assert_whole(&page);
    let table =
        page.split("<table class=\"runs\">").nth(1).and_then(|rest| rest.split("</table>").next()).expect("the table");
    assert!(table.contains("<b>17.30 <small>± 0.56</small></b> %") && !table.contains("seed 1"));
    assert!(table.contains("8.7 % lower</b> <small>best of each seed"));
}

#[test]
fn a_classifier_of_another_run_is_named() {
    let first = stage("2-3", "M(2,3)", &[3, 4], Some("runs/full/joint@11"), 15.6, true);
    let page = render(&[run("transfer", "none", vec![first], Some("2-3"), true)]);
    assert_whole(&page);
    assert!(page.contains("its classifier comes from <code>runs/full/joint@11</code>"));
    assert_eq!(page.matches("<path class=\"arrow outside\"").count(), 2);
}

#[test]
fn several_runs_stand_side_by_side() {
    let control = vec![
        stage("joint", "joint", &[], None, 17.23, true),
        stage("bottom-1", "freeze-bottom", &[0], Some("joint"), 21.57, true),
    ];
    let page =
        render(&[greedy_run(), cut_search_run(), run("an4-control", "freeze-bottom", control, Some("joint"), true)]);
    assert_whole(&page);
    let table =
        page.split("<table class=\"runs\">").nth(1).and_then(|rest| rest.split("</table>").next()).expect("the table");
    for title in ["joint", "M(1,4)", "M(1,1,3)", "M(1,1,1,2)", "M(2,3)", "M(2,1,2)", "freeze-bottom"] {
        assert!(table.contains(&format!("<th scope=\"row\">{title}</th>")), "{title}");
    }
    for id in ["run-1", "run-2", "run-3"] {
        assert!(page.contains(&format!("href=\"#{id}\"")) && page.contains(&format!("<article id=\"{id}\"")));
    }
    assert!(table.contains("12.4 % lower") && page.contains("The other stage did not improve on joint training"));
}

#[test]
fn a_wide_search_has_a_column_and_a_row_for_each_stage() {
    let page = render(&[exhaustive_run()]);
    assert_whole(&page);
    assert_eq!(page.matches("<g class=\"column ").count(), 16);
    assert_eq!(page.matches("class=\"badge ").count(), 16);
}

#[test]
fn the_utterances_with_the_most_errors_come_first() {
    let page = render(&[greedy_run()]);
    let place = |id: &str| page.find(&format!("<h4>{id}</h4>")).expect("an utterance");
    assert!(place("fash-an253-b") < place("fash-an251-b"), "the stages have eight errors there, and two here");
}

#[test]
fn stages_that_share_a_colour_share_an_entry_of_the_legend() {
    let page = render(&[exhaustive_run()]);
    let legend = page.split("<h2>Learning curves</h2>").nth(1).expect("curves");
    let legend = legend.split("</p>").next().expect("the legend's end");
    // Joint training, six with a colour of their own, nine others, and what the ring means.
    assert_eq!(legend.matches("<span>").count(), 9);
    assert!(legend.contains("9 others"));
}

#[test]
fn the_same_records_make_the_same_bytes() {
    assert_eq!(render(&[greedy_run(), seeds_run()]), render(&[greedy_run(), seeds_run()]));
}

/// With `REPORT_PAGES=FOLDER` the pages are left there, to be looked at in a browser.
#[test]
fn a_run_of_every_kind_makes_a_whole_page() {
    let mut unfinished =
        run("an4-unfinished", "greedy", vec![stage("joint", "joint", &[], None, 17.23, true)], Some("joint"), false);
    unfinished.epochs.extend(epochs("1-4", 4, 30.0));
    let pages = [
        ("greedy", vec![greedy_run()]),
        ("cut-search", vec![cut_search_run()]),
        ("seeds", vec![seeds_run()]),
        ("unfinished", vec![unfinished]),
        ("several", vec![greedy_run(), cut_search_run(), seeds_run()]),
        ("exhaustive", vec![exhaustive_run()]),
    ];
    let folder = std::env::var_os("REPORT_PAGES").map(std::path::PathBuf::from);
    for (name, runs) in pages {
        let page = render(&runs);
        assert_whole(&page);
        if let Some(folder) = &folder {
            std::fs::write(folder.join(format!("{name}.html")), page).expect("the folder can be written");
        }
    }
}
