//! Who computes what, and when everyone may go on.
//!
//! The panels of all directions form one list, and each worker owns an even share of it for all time steps, so a weight is read
//! by one core only. Two workers on two directions share nothing and never wait. Any other number meets at a barrier after every time
//! step: 0.13 microseconds for two that run (measured), against 160 for a step of 2 x 16 x 320 on two cores.
//!
//! Slicing the batch instead would need no barrier, but every core would read all weights at every step, for half as many rows: with
//! H = 1150 and 20 rows, 21 MB at 5 operations a byte. One core alone, its last-level cache to itself, takes 5 % longer over 10
//! rows twice than over 20 rows once. So the rule needs no tuning: units, always. Bits depend on neither.

use super::Shape;
use super::product::Scratch;
use pulp::Simd;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Multiply-adds that a worker should find in a time step: below some 2.5 microseconds of them, waiting costs more than it saves.
const SMALLEST_SHARE: usize = 100_000;
/// Turns of the waiting loop before the core is offered to someone else: some 30 microseconds.
const SPINS: usize = 1000;

/// How many workers a layer of this shape should have, of `available` threads.
pub fn size(shape: &Shape, available: usize) -> usize {
    if shape.steps() == 0 {
        return 1;
    }
    let weights = 4 * shape.hidden * shape.hidden * shape.directions;
    let step = weights * shape.rows() / shape.steps();
    // Directions are independent: a second worker for a second direction costs one task, not a barrier at every step.
    let least = if step * shape.steps() > 1 << 20 { shape.directions } else { 1 };
    (step / SMALLEST_SHARE).max(least).min(available).max(1)
}

/// One direction of a pass over time. A panel is what one product gives: some vectors of units, whose owner alone writes them.
pub trait Layer: Sync {
    /// Vectors of units in a panel.
    const UNIT_VECTORS: usize;

    /// The `number`-th time step of the pass, for the units of one panel.
    ///
    /// # Safety
    /// The operands have the lengths that `shape` says, nobody else has this panel, and the steps before are complete for all panels.
    unsafe fn step<S: Simd>(
        &self,
        simd: S,
        shape: &Shape,
        direction: usize,
        number: usize,
        panel: usize,
        scratch: &mut Scratch,
    );

    /// What follows the last step.
    ///
    /// # Safety
    /// As for [`step`](Self::step).
    #[inline(always)]
    unsafe fn finish<S: Simd>(&self, _: S, _: &Shape, _direction: usize, _panel: usize, _: &mut Scratch) {}
}

/// Runs a pass: one of `layers` for each direction, whose operands have been held against `shape`.
#[inline(always)]
pub fn run_layers<S: Simd, L: Layer>(simd: S, shape: &Shape, layers: &[L], workers: usize) {
    let panels = shape.hidden.div_ceil(L::UNIT_VECTORS * S::F32_LANES);
    let work = |worker: usize, barrier: Option<&Barrier>| {
        let mine = share(panels * layers.len(), workers, worker);
        // The kernels are compiled for the instruction set of `simd` only inside `vectorize`.
        simd.vectorize(Worker { simd, shape, layers, panels, mine, barrier });
    };
    if workers == 1 {
        work(0, None);
    } else if workers == layers.len() {
        rayon::join(|| work(0, None), || work(1, None));
    } else {
        run(workers, |worker, barrier| work(worker, Some(barrier)));
    }
}

/// Splits `count` things among `workers` as evenly as whole things go.
fn share(count: usize, workers: usize, worker: usize) -> Range<usize> {
    count * worker / workers..count * (worker + 1) / workers
}

/// A worker with its share of the panels, counted through all directions.
struct Worker<'a, S, L> {
    simd: S,
    shape: &'a Shape<'a>,
    layers: &'a [L],
    /// Of one direction.
    panels: usize,
    mine: Range<usize>,
    barrier: Option<&'a Barrier>,
}

impl<S: Simd, L: Layer> pulp::NullaryFnOnce for Worker<'_, S, L> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Worker { simd, shape, layers, panels, mine, barrier } = self;
        let mut scratch = Scratch::new();
        for number in 0..shape.steps() {
            for panel in mine.clone() {
                let direction = panel / panels;
                // SAFETY: the caller held the operands against the shape; this worker alone owns the panel, and the step before is
                // complete (same worker, or behind the barrier).
                unsafe { layers[direction].step(simd, shape, direction, number, panel % panels, &mut scratch) };
            }
            if let Some(barrier) = barrier {
                barrier.wait();
            }
        }
        for panel in mine {
            let direction = panel / panels;
            // SAFETY: as above; all steps are complete.
            unsafe { layers[direction].finish(simd, shape, direction, panel % panels, &mut scratch) };
        }
    }
}

/// Runs `body(worker, barrier)` for all workers at once, this thread being the first.
///
/// Workers are threads of their own: tasks of a pool might wait for each other while some never start. That costs tens of microseconds
/// for each (0.5 ms on a busy machine) in a layer that takes tens of milliseconds.
pub fn run(workers: usize, body: impl Fn(usize, &Barrier) + Sync) {
    let barrier = &Barrier::new(workers);
    let body = |worker| {
        let _guard = Poison(barrier);
        body(worker, barrier);
    };
    std::thread::scope(|scope| {
        for worker in 1..workers {
            scope.spawn(move || body(worker));
        }
        body(0);
    });
}

/// A barrier that spins: the threads of a team run, and meet thousands of times a second.
pub struct Barrier {
    workers: usize,
    arrived: AtomicUsize,
    generation: AtomicUsize,
    broken: AtomicBool,
}

impl Barrier {
    fn new(workers: usize) -> Self {
        Barrier {
            workers,
            arrived: AtomicUsize::new(0),
            generation: AtomicUsize::new(0),
            broken: AtomicBool::new(false),
        }
    }

    /// Returns when all workers have called it; what each wrote before is then visible to all.
    pub fn wait(&self) {
        if self.workers == 1 {
            return;
        }
        let generation = self.generation.load(Ordering::Acquire);
        // AcqRel: the last to arrive takes over everyone's writes, and passes them on by the release below.
        if self.arrived.fetch_add(1, Ordering::AcqRel) + 1 == self.workers {
            self.arrived.store(0, Ordering::Relaxed);
            self.generation.store(generation.wrapping_add(1), Ordering::Release);
            return;
        }
        let mut spins = 0;
        while self.generation.load(Ordering::Acquire) == generation {
            assert!(!self.broken.load(Ordering::Relaxed), "another worker of this LSTM failed");
            spins += 1;
            if spins < SPINS {
                std::hint::spin_loop();
            } else {
                // More workers than free cores: let the one we wait for have this one.
                std::thread::yield_now();
            }
        }
    }
}

/// Frees the others from the barrier if a worker panics.
struct Poison<'a>(&'a Barrier);

impl Drop for Poison<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.broken.store(true, Ordering::Relaxed);
        }
    }
}
