//! What holds for every walk, whatever the results are.

// Not the whole prelude: proptest's own trait `Strategy` has the name of our type.
use proptest::prelude::{Just, any, prop_assert, prop_assert_eq, prop_oneof, proptest};

use super::tests::{id, plan, train};
use super::*;
use crate::cascade::Inner;

fn any_strategy() -> impl proptest::strategy::Strategy<Value = Strategy> {
    prop_oneof![
        Just(Strategy::None),
        Just(Strategy::Greedy),
        Just(Strategy::CutSearch(Inner::First)),
        Just(Strategy::CutSearch(Inner::Always)),
        Just(Strategy::Exhaustive),
        Just(Strategy::FreezeBottom),
    ]
}

/// A result for every stage, the same in every walk: few distinct values, so that ties happen, and NaN among them.
fn result_of(stage: &str, salt: u64) -> f64 {
    let hash = stage
        .bytes()
        .fold(salt ^ 0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    match (hash >> 33) % 9 {
        8 => f64::NAN,
        value => value as f64,
    }
}

proptest! {
    #[test]
    fn exhaustive_trains_each_composition_once_and_each_prefix_before_its_extension(groups in 1usize..9) {
        let plan = plan(Strategy::Exhaustive, groups);
        let (mut results, mut done) = (Results::new(), Vec::<StageId>::new());
        while let Next::Ready(stages) = plan.next(&results) {
            // The last that is ready, so that the order differs from the plan's own.
            let stage = stages[stages.len() - 1].clone();
            prop_assert!(!done.contains(&stage.id));
            match &stage.source {
                Source::Stage(parent) => prop_assert!(done.contains(parent)),
                other => prop_assert_eq!(other, &Source::Nothing),
            }
            results.insert(stage.id.clone(), 1.0);
            done.push(stage.id);
        }
        prop_assert_eq!(done.len(), 1 << (groups - 1));
    }

    #[test]
    fn a_stopped_search_goes_on_to_the_same_end(strategy in any_strategy(), groups in 2usize..7, salt in any::<u64>(), stop in 0usize..20) {
        let plan = plan(strategy, groups);
        let (order, all, best) = train(&plan, |name| result_of(name, salt));
        let mut results: Results = order.iter().take(stop).map(|name| (id(name), result_of(name, salt))).collect();
        let mut resumed = order.iter().take(stop).cloned().collect::<Vec<_>>();
        let finished = loop {
            match plan.next(&results) {
                Next::Finished { best } => break best.map(|id| id.to_string()),
                Next::Ready(stages) => {
                    let name = stages[0].id.to_string();
                    results.insert(stages[0].id.clone(), result_of(&name, salt));
                    resumed.push(name);
                }
            }
        };
        prop_assert_eq!(&resumed, &order);
        prop_assert_eq!(finished, best);
        for name in &order {
            prop_assert_eq!(plan.accepted(&id(name), &results), plan.accepted(&id(name), &all));
        }
    }

    #[test]
    fn stages_that_run_side_by_side_come_to_the_same_end(groups in 2usize..7, salt in any::<u64>(), reinit_seeds in 1u64..4) {
        let options = PlanOptions { reinit_seeds: (1..=reinit_seeds).collect(), ..PlanOptions::new(1) };
        for strategy in [Strategy::Greedy, Strategy::CutSearch(Inner::Always), Strategy::Exhaustive] {
            let plan = Plan::new(strategy, groups, options.clone()).expect("a plan");
            let (order, _, best) = train(&plan, |name| result_of(name, salt));
            let mut results = Results::new();
            while let Next::Ready(stages) = plan.next(&results) {
                for stage in stages {
                    let value = result_of(&stage.id.to_string(), salt);
                    results.insert(stage.id, value);
                }
            }
            prop_assert_eq!(results.len(), order.len());
            prop_assert_eq!(plan.best(&results).map(|id| id.to_string()), best);
        }
    }

    #[test]
    fn no_walk_trains_more_than_was_foretold(strategy in any_strategy(), groups in 2usize..7, salt in any::<u64>()) {
        let plan = plan(strategy, groups);
        let (mut results, mut left) = (Results::new(), plan.most_left(&Results::new()));
        while let Next::Ready(stages) = plan.next(&results) {
            let value = result_of(&stages[0].id.to_string(), salt);
            results.insert(stages[0].id.clone(), value);
            let now = plan.most_left(&results);
            prop_assert!(now < left, "{} stages were left, now {}", left, now);
            left = now;
        }
        prop_assert_eq!(left, 0);
    }

    #[test]
    fn every_stage_freezes_or_trains_each_group_and_takes_trained_groups_from_its_source(
        strategy in any_strategy(), groups in 2usize..7, salt in any::<u64>(),
    ) {
        let plan = plan(strategy, groups);
        let (mut results, mut done) = (Results::new(), Vec::<Stage>::new());
        while let Next::Ready(stages) = plan.next(&results) {
            for stage in &stages {
                let mut all = [stage.frozen.clone(), stage.trained.clone()].concat();
                all.sort_unstable();
                prop_assert_eq!(all, (0..groups).collect::<Vec<_>>());
                prop_assert!(!stage.trained.is_empty());
                match &stage.source {
                    Source::Stage(parent) => {
                        let parent = done.iter().find(|other| other.id == *parent).expect("the source is trained");
                        prop_assert!(plan.accepted(&parent.id, &results) == Some(true));
                        // What the parent froze stays frozen, and something that it trained is frozen now.
                        prop_assert!(parent.frozen.iter().all(|group| stage.frozen.contains(group)));
                        prop_assert!(parent.trained.iter().any(|group| stage.frozen.contains(group)));
                    }
                    source => prop_assert_eq!((source, stage.frozen.len()), (&Source::Nothing, 0)),
                }
            }
            let stage = stages[0].clone();
            results.insert(stage.id.clone(), result_of(&stage.id.to_string(), salt));
            done.push(stage);
        }
    }
}
