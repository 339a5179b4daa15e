//! Walks worked out by hand from the printed algorithms.

use super::*;
use crate::cascade::Inner;

pub(super) fn id(text: &str) -> StageId {
    text.parse().expect("an id")
}

pub(super) fn plan(strategy: Strategy, groups: usize) -> Plan {
    Plan::new(strategy, groups, PlanOptions::new(1)).expect("a valid plan")
}

fn results(pairs: &[(&str, f64)]) -> Results {
    pairs.iter().map(|(text, value)| (id(text), *value)).collect()
}

fn ready(plan: &Plan, results: &Results) -> Vec<Stage> {
    match plan.next(results) {
        Next::Ready(stages) => stages,
        Next::Finished { best } => panic!("already finished, best {best:?}"),
    }
}

/// Trains one stage after the other, always the first that is ready, with the result that `oracle` gives. Returns the ids in the
/// order of training, the results, and the best.
pub(super) fn train(plan: &Plan, oracle: impl Fn(&str) -> f64) -> (Vec<String>, Results, Option<String>) {
    let (mut order, mut results) = (Vec::new(), Results::new());
    loop {
        match plan.next(&results) {
            Next::Finished { best } => return (order, results, best.map(|id| id.to_string())),
            Next::Ready(stages) => {
                let name = stages[0].id.to_string();
                results.insert(stages[0].id.clone(), oracle(&name));
                order.push(name);
            }
        }
    }
}

fn walk(plan: &Plan, table: &[(&str, f64)]) -> (Vec<String>, Option<String>) {
    let oracle =
        |name: &str| table.iter().find(|(id, _)| *id == name).unwrap_or_else(|| panic!("{name} was trained")).1;
    let (order, _, best) = train(plan, oracle);
    assert_eq!(order.len(), table.len(), "every stage of the table is trained: {order:?}");
    (order, best)
}

fn some(text: &str) -> Option<String> {
    Some(text.to_string())
}

#[test]
fn none_trains_jointly_and_stops() {
    assert_eq!(walk(&plan(Strategy::None, 5), &[("joint", 12.0)]), (vec!["joint".into()], some("joint")));
    let joint = &ready(&plan(Strategy::None, 5), &Results::new())[0];
    assert_eq!((joint.title.as_str(), &joint.source, joint.reinit_seed), ("joint", &Source::Nothing, None));
    assert_eq!((joint.frozen.clone(), joint.trained.clone()), (vec![], vec![0, 1, 2, 3, 4]));
}

#[test]
fn greedy_runs_to_the_lowest_group_while_the_error_falls() {
    // ICASSP 2021, Table 2: seeds 1 and 2 stop at the lowest layer.
    let table = [("joint", 12.4), ("1-4", 12.0), ("1-1-3", 11.5), ("1-1-1-2", 11.0), ("1-1-1-1-1", 10.8)];
    let (order, best) = walk(&plan(Strategy::Greedy, 5), &table);
    assert_eq!(order, ["joint", "1-4", "1-1-3", "1-1-1-2", "1-1-1-1-1"]);
    assert_eq!(best, some("1-1-1-1-1"));
}

#[test]
fn greedy_stops_when_the_error_rises_and_gives_out_the_stage_before() {
    // ICASSP 2021, Table 2: seed 3 ends at M(1,1,1,2).
    let table = [("joint", 12.6), ("1-4", 12.0), ("1-1-3", 11.8), ("1-1-1-2", 11.5), ("1-1-1-1-1", 11.9)];
    let plan = plan(Strategy::Greedy, 5);
    assert_eq!(walk(&plan, &table).1, some("1-1-1-2"));
    let results = results(&table);
    assert_eq!(plan.accepted(&id("1-1-1-2"), &results), Some(true));
    assert_eq!(plan.accepted(&id("1-1-1-1-1"), &results), Some(false));
    assert_eq!(plan.accepted(&id("2-3"), &results), None);
}

#[test]
fn greedy_goes_on_at_a_tie_and_gives_out_the_later_of_equals() {
    let table = [("joint", 12.0), ("1-2", 12.0), ("1-1-1", 12.0)];
    assert_eq!(walk(&plan(Strategy::Greedy, 3), &table).1, some("1-1-1"));
}

#[test]
fn greedy_freezes_each_group_as_it_was_most_recently_retrained() {
    let plan = plan(Strategy::Greedy, 5);
    let stage = &ready(&plan, &results(&[("joint", 3.0), ("1-4", 2.0)]))[0];
    assert_eq!(stage.id, id("1-1-3"));
    assert_eq!(stage.title, "M(1,1,3)");
    assert_eq!(stage.source, Source::Stage(id("1-4")));
    assert_eq!((stage.frozen.clone(), stage.trained.clone()), (vec![3, 4], vec![0, 1, 2]));
    assert_eq!(stage.reinit_seed, Some(1));
}

#[test]
fn cut_search_does_not_accept_a_tie_and_freezes_one_group_more() {
    // No improvement anywhere: the classifier always comes from joint, the last network accepted.
    let table = [("joint", 10.0), ("1-4", 10.0), ("2-3", 11.0), ("3-2", 12.0), ("4-1", 10.0)];
    for inner in [Inner::First, Inner::Always] {
        let (order, best) = walk(&plan(Strategy::CutSearch(inner), 5), &table);
        assert_eq!(order, ["joint", "1-4", "2-3", "3-2", "4-1"]);
        assert_eq!(best, some("joint"));
    }
    let retry = &ready(&plan(Strategy::CutSearch(Inner::First), 5), &results(&table[..2]))[0];
    assert_eq!((retry.title.as_str(), &retry.source), ("M(2,3)", &Source::Stage(id("joint"))));
    assert_eq!(retry.frozen, [3, 4]);
}

#[test]
fn cut_search_goes_on_below_the_first_cut_that_helped() {
    // ICLR 2020, section 5: on noisy data the first accepted cut freezes the softmax and the top two BLSTMs.
    let table = [("joint", 30.0), ("1-4", 31.0), ("2-3", 30.5), ("3-2", 24.0), ("3-1-1", 23.4)];
    let (order, best) = walk(&plan(Strategy::CutSearch(Inner::First), 5), &table);
    assert_eq!(order, ["joint", "1-4", "2-3", "3-2", "3-1-1"]);
    assert_eq!(best, some("3-1-1"));
}

#[test]
fn the_inner_loop_runs_in_the_first_round_only_or_in_every_round() {
    let table = [("joint", 10.0), ("1-4", 9.0), ("1-1-3", 9.5), ("1-2-2", 8.0), ("1-2-1-1", 8.5)];
    let (order, best) = walk(&plan(Strategy::CutSearch(Inner::First), 5), &table[..3]);
    assert_eq!((order.len(), best), (3, some("1-4")), "after the first acceptance a failure ends the search");
    let always = plan(Strategy::CutSearch(Inner::Always), 5);
    let (order, best) = walk(&always, &table);
    assert_eq!(order, ["joint", "1-4", "1-1-3", "1-2-2", "1-2-1-1"]);
    assert_eq!(best, some("1-2-2"));
    let retry = &ready(&always, &results(&table[..3]))[0];
    assert_eq!((&retry.source, retry.title.as_str()), (&Source::Stage(id("1-4")), "M(1,2,2)"));
    assert_eq!(always.accepted(&id("1-1-3"), &results(&table)), Some(false));
}

#[test]
fn a_retry_of_the_first_round_that_helps_ends_the_retries() {
    let table = [("joint", 10.0), ("1-4", 11.0), ("2-3", 9.0), ("2-1-2", 9.0)];
    let (_, best) = walk(&plan(Strategy::CutSearch(Inner::First), 5), &table);
    assert_eq!(best, some("2-3"));
}

#[test]
fn a_result_that_is_not_finite_counts_as_worse() {
    for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        assert_eq!(walk(&plan(Strategy::Greedy, 3), &[("joint", 9.0), ("1-2", bad)]).1, some("joint"));
        let table = [("joint", 9.0), ("1-2", bad), ("2-1", 8.0)];
        assert_eq!(walk(&plan(Strategy::CutSearch(Inner::First), 3), &table).1, some("2-1"));
        let table = [("joint", 9.0), ("1-2", bad), ("2-1", 9.5)];
        assert_eq!(walk(&plan(Strategy::Exhaustive, 3), &table).1, some("joint"), "M(1,1,1) has no classifier to take");
        let table = [("joint", 9.0), ("bottom-1", bad)];
        assert_eq!(walk(&plan(Strategy::FreezeBottom, 3), &table).1, some("joint"));
        assert_eq!(plan(Strategy::FreezeBottom, 3).accepted(&id("bottom-1"), &results(&table)), Some(false));
    }
}

#[test]
fn nothing_is_built_on_a_joint_network_that_diverged() {
    let fixed = Strategy::Fixed(vec![vec![1, 1, 1]]);
    for strategy in
        [Strategy::Greedy, Strategy::CutSearch(Inner::Always), Strategy::Exhaustive, fixed, Strategy::FreezeBottom]
    {
        let plan = plan(strategy, 3);
        assert_eq!(plan.next(&results(&[("joint", f64::NAN)])), Next::Finished { best: None });
        assert_eq!(plan.accepted(&id("joint"), &results(&[("joint", f64::NAN)])), Some(false));
    }
}

#[test]
fn exhaustive_trains_a_shared_prefix_once() {
    let plan = plan(Strategy::Exhaustive, 5);
    let (order, _, _) = train(&plan, |_| 1.0);
    assert_eq!(order.len(), 16, "every composition trained on its own would take 48 trainings");
    let parts_of_all_compositions: usize = order.iter().map(|name| name.split('-').count()).sum();
    assert_eq!(parts_of_all_compositions, 48);
}

#[test]
fn exhaustive_offers_all_that_can_run_side_by_side() {
    let plan = plan(Strategy::Exhaustive, 4);
    let names = |done: &[(&str, f64)]| -> Vec<String> {
        ready(&plan, &results(done)).iter().map(|stage| stage.id.to_string()).collect()
    };
    assert_eq!(names(&[]), ["joint"]);
    assert_eq!(names(&[("joint", 5.0)]), ["1-3", "2-2", "3-1"]);
    assert_eq!(names(&[("joint", 5.0), ("2-2", 9.0)]), ["1-3", "3-1", "2-1-1"]);
    assert_eq!(names(&[("joint", 5.0), ("1-3", 9.0)]), ["2-2", "3-1", "1-1-2", "1-2-1"]);
}

#[test]
fn of_equal_results_the_one_with_the_fewest_cuts_wins_an_exhaustive_search() {
    let (_, _, best) = train(&plan(Strategy::Exhaustive, 4), |name| if name == "joint" { 2.0 } else { 1.0 });
    assert_eq!(best, some("1-3"));
}

#[test]
fn fixed_trains_the_listed_compositions_and_the_way_to_them_whatever_the_results() {
    let plan = plan(Strategy::Fixed(vec![vec![1, 1, 1, 2], vec![1, 2, 2], vec![1, 1, 1, 2]]), 5);
    let (order, _, best) = train(&plan, |name| name.len() as f64);
    assert_eq!(order, ["joint", "1-4", "1-1-3", "1-2-2", "1-1-1-2"]);
    assert_eq!(best, some("1-4"));
    assert_eq!(train(&self::plan(Strategy::Fixed(vec![vec![5]]), 5), |_| 1.0).0, ["joint"]);
}

#[test]
fn freeze_bottom_keeps_the_lowest_group_of_the_joint_network() {
    let plan = plan(Strategy::FreezeBottom, 5);
    let control = &ready(&plan, &results(&[("joint", 12.4)]))[0];
    assert_eq!((control.id.to_string(), control.title.as_str()), ("bottom-1".to_string(), "freeze-bottom"));
    assert_eq!((control.frozen.clone(), control.trained.clone()), (vec![0], vec![1, 2, 3, 4]));
    assert_eq!((&control.source, &control.composition), (&Source::Stage(id("joint")), &None));
    assert_eq!(walk(&plan, &[("joint", 12.4), ("bottom-1", 13.1)]).1, some("joint"));
    assert_eq!(walk(&plan, &[("joint", 12.4), ("bottom-1", 12.1)]).1, some("bottom-1"));
}

#[test]
fn a_model_of_one_group_is_trained_jointly() {
    for strategy in
        [Strategy::Greedy, Strategy::CutSearch(Inner::First), Strategy::Exhaustive, Strategy::Fixed(vec![vec![1]])]
    {
        assert_eq!(walk(&plan(strategy, 1), &[("joint", 1.0)]).1, some("joint"));
    }
    assert!(Plan::new(Strategy::FreezeBottom, 1, PlanOptions::new(1)).is_err());
}

#[test]
fn with_a_classifier_from_another_run_nothing_is_trained_jointly() {
    let options = PlanOptions { external_classifiers: 1, classifier_groups: 2, ..PlanOptions::new(1) };
    let one_stage = Plan::new(Strategy::None, 5, options.clone()).expect("a plan");
    let first = &ready(&one_stage, &Results::new())[0];
    assert_eq!(
        (first.id.to_string(), first.title.as_str(), &first.source),
        ("2-3".into(), "M(2,3)", &Source::External(0))
    );
    assert_eq!((first.frozen.clone(), first.trained.clone(), first.reinit_seed), (vec![3, 4], vec![0, 1, 2], Some(1)));
    assert_eq!(train(&one_stage, |_| 1.0).0, ["2-3"]);

    let greedy = Plan::new(Strategy::Greedy, 5, options.clone()).expect("a plan");
    assert_eq!(walk(&greedy, &[("2-3", 15.6), ("2-1-2", 15.0), ("2-1-1-1", 16.0)]).1, some("2-1-2"));
    let second = &ready(&greedy, &results(&[("2-3", 15.6)]))[0];
    assert_eq!(second.source, Source::Stage(id("2-3")));

    let searched = Plan::new(Strategy::CutSearch(Inner::First), 5, options.clone()).expect("a plan");
    assert_eq!(train(&searched, |name| if name == "2-3" { 1.0 } else { 2.0 }).0, ["2-3", "2-1-2", "2-2-1"]);
    let fixed = Strategy::Fixed(vec![vec![2, 1, 2]]);
    assert_eq!(train(&Plan::new(fixed, 5, options.clone()).expect("a plan"), |_| 1.0).0, ["2-3", "2-1-2"]);

    let error =
        Plan::new(Strategy::Fixed(vec![vec![1, 4]]), 5, options.clone()).expect_err("begins elsewhere").to_string();
    assert!(error.starts_with("cascade.compositions: [1, 4] does not begin with the external classifier"), "{error}");
    assert!(Plan::new(Strategy::FreezeBottom, 5, options.clone()).is_err());
    for classifier_groups in [0, 5, 6] {
        let options = PlanOptions { classifier_groups, ..options.clone() };
        let error = Plan::new(Strategy::None, 5, options).expect_err("nothing to freeze or to train").to_string();
        assert!(error.starts_with("cascade.classifier_groups: is "), "{error}");
    }
}

#[test]
fn several_classifiers_have_a_cascade_each() {
    // ICASSP 2021, Figure 2: the classifiers of several epochs, each with a feature extractor trained below it.
    let options = PlanOptions { external_classifiers: 3, classifier_groups: 2, ..PlanOptions::new(1) };
    let plan = Plan::new(Strategy::None, 5, options).expect("a plan");
    let stages = ready(&plan, &Results::new());
    assert_eq!(stages.iter().map(|s| s.id.to_string()).collect::<Vec<_>>(), ["2-3.from1", "2-3.from2", "2-3.from3"]);
    assert_eq!(stages[2].source, Source::External(2));
    assert_eq!(stages[2].title, "M(2,3), classifier 3");
    let (_, _, best) = train(&plan, |name| if name.ends_with('2') { 12.0 } else { 13.0 });
    assert_eq!(best, some("2-3.from2"));
}

#[test]
fn reinitialisation_seeds_share_the_joint_stage_and_then_go_their_own_way() {
    // ICASSP 2021, Table 4: one baseline, the lower layers retrained from three seeds.
    let options = PlanOptions { reinit_seeds: vec![1, 2], ..PlanOptions::new(1) };
    let plan = Plan::new(Strategy::Greedy, 3, options).expect("a plan");
    let oracle = |name: &str| match name {
        "joint" => 9.0,
        "1-2.reinit1" => 9.5,
        "1-2.reinit2" => 8.0,
        _ => 7.0,
    };
    let (order, all, best) = train(&plan, oracle);
    assert_eq!(order, ["joint", "1-2.reinit1", "1-2.reinit2", "1-1-1.reinit2"]);
    assert_eq!(best, some("1-1-1.reinit2"));
    assert_eq!(plan.accepted(&id("1-2.reinit1"), &all), Some(false));
    let last = &ready(&plan, &results(&[("joint", 9.0), ("1-2.reinit1", 9.5), ("1-2.reinit2", 8.0)]))[0];
    assert_eq!((&last.source, last.reinit_seed), (&Source::Stage(id("1-2.reinit2")), Some(2)));
    assert_eq!(last.title, "M(1,1,1), reinit 2");
}

#[test]
fn an_id_tells_a_seed_only_where_it_tells_stages_apart() {
    let second = |options: PlanOptions| {
        let plan = Plan::new(Strategy::Greedy, 3, options).expect("a plan");
        let outline = plan.outline();
        (outline[0].id.to_string(), outline[1].id.to_string())
    };
    let pair = |one: &str, other: &str| (one.to_string(), other.to_string());
    assert_eq!(second(PlanOptions::new(4)), pair("joint", "1-2"));
    assert_eq!(second(PlanOptions { reinit_seeds: vec![4], ..PlanOptions::new(4) }), pair("joint", "1-2"));
    assert_eq!(second(PlanOptions { reinit_seeds: vec![7], ..PlanOptions::new(4) }), pair("joint", "1-2.reinit7"));
    assert_eq!(second(PlanOptions { several_seeds: true, ..PlanOptions::new(4) }), pair("joint.seed4", "1-2.seed4"));
    let error = Plan::new(Strategy::Greedy, 3, PlanOptions { reinit_seeds: vec![7, 7], ..PlanOptions::new(4) });
    assert!(error.expect_err("twice").to_string().starts_with("cascade.reinit_seeds: lists 7 twice"));
}

#[test]
fn results_of_another_seed_or_plan_change_nothing() {
    let plan = plan(Strategy::Greedy, 3);
    let own = results(&[("joint", 9.0)]);
    let mixed =
        results(&[("joint", 9.0), ("joint.seed2", 1.0), ("1-2.reinit5", 1.0), ("bottom-1", 1.0), ("1-1-2", 1.0)]);
    assert_eq!(plan.next(&own), plan.next(&mixed));
    assert_eq!(plan.best(&mixed), Some(id("joint")));
}

#[test]
fn the_outline_is_the_longest_way() {
    let count = |strategy: Strategy| plan(strategy, 5).outline().len();
    assert_eq!(count(Strategy::None), 1);
    assert_eq!(count(Strategy::Greedy), 5);
    assert_eq!(count(Strategy::CutSearch(Inner::First)), 5);
    assert_eq!(count(Strategy::CutSearch(Inner::Always)), 5);
    assert_eq!(count(Strategy::Exhaustive), 16);
    assert_eq!(count(Strategy::Fixed(vec![vec![1, 1, 1, 2], vec![2, 3]])), 5);
    assert_eq!(count(Strategy::FreezeBottom), 2);
    let greedy = plan(Strategy::Greedy, 5);
    assert_eq!(greedy.most_left(&results(&[("joint", -3.0), ("1-4", -4.0)])), 3);
    assert_eq!(greedy.most_left(&results(&[("joint", 3.0), ("1-4", 4.0)])), 0);
}

#[test]
fn an_exhaustive_search_out_of_reach_is_an_error_with_a_remedy() {
    let message = Plan::new(Strategy::Exhaustive, 40, PlanOptions::new(1)).expect_err("2^39 trainings").to_string();
    assert!(message.starts_with("cascade.strategy: \"exhaustive\" over 40 layer groups"), "{message}");
    assert!(Plan::new(Strategy::Greedy, 0, PlanOptions::new(1)).is_err());
}

#[test]
fn the_recipes_words_make_the_strategy() {
    let of =
        |strategy: &str, inner: &str, compositions: &[Vec<usize>]| Strategy::from_recipe(strategy, inner, compositions);
    for name in Strategy::NAMES {
        let compositions = if name == "fixed" { vec![vec![1, 4]] } else { vec![] };
        assert_eq!(of(name, "always", &compositions).expect(name).name(), name);
    }
    assert_eq!(of("cut-search", "first", &[]).expect("known"), Strategy::CutSearch(Inner::First));
    let message = of("gredy", "first", &[]).expect_err("misspelt").to_string();
    assert!(message.contains("does not know \"gredy\"") && message.contains("\"greedy\" is the nearest"), "{message}");
    assert!(of("cut-search", "second", &[]).expect_err("unknown").to_string().starts_with("cascade.inner"));
    assert!(of("fixed", "first", &[]).expect_err("empty").to_string().starts_with("cascade.compositions: is empty"));
    let message = of("greedy", "first", &[vec![1, 4]]).expect_err("would be ignored").to_string();
    assert!(message.starts_with("cascade.compositions: is given"), "{message}");
}

#[test]
fn the_lowest_finite_value_is_the_best_and_the_first_of_equals() {
    assert_eq!(best([("a", f64::NAN), ("b", 2.0), ("c", 1.0), ("d", 1.0), ("e", f64::NEG_INFINITY)]), Some("c"));
    assert_eq!(best([("a", f64::NAN), ("b", f64::INFINITY)]), None);
    assert_eq!(better(f64::NAN, f64::INFINITY), Ordering::Equal);
    assert_eq!(better(1.0, f64::NAN), Ordering::Less);
}
