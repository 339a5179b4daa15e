//! The papers: layer groups, cuts, stages and the strategies that walk them. It knows no tensor and no file.
//!
//! | word | meaning |
//! |---|---|
//! | layer group | the smallest thing a cut can freeze; a model lists its groups bottom to top, 0 is the lowest |
//! | composition | an ordered sum of the number of groups, read from the top: `M(1,1,3)` of five groups. All parts but the last are frozen |
//! | stage | one training: which groups are frozen, where their weights come from, with which seed the others start |
//! | strategy | decides from the results so far which stages can be trained next |
//!
//! [`Plan::next`] is a pure function of the results: a strategy is tested without training anything, the stages it names can be
//! trained side by side, and a stopped search goes on by asking again with the results that it already has.
//!
//! A stage is keyed by its composition, not by the order in which stages run. `M(a, ..., b, rest)` takes its frozen groups from
//! `M(a, ..., b + rest)`, its [parent](Composition::parent): so each frozen layer is the one most recently retrained, and stages
//! that share a prefix are trained once.
//!
//! Sources: ICASSP 2021 is "Train your classifier first: cascade neural networks training from upper layers to lower layers";
//! ICLR 2020 is "Top-down training for neural networks" (under review).

mod composition;
mod id;
mod plan;
mod stage;
mod strategy;

pub use composition::Composition;
pub use id::{StageId, StageKind};
pub use plan::{Next, Plan, PlanOptions, Results, best, better};
pub use stage::{Source, Stage};
pub use strategy::{Inner, Strategy};
