//! The search over a recording. It accepts the recording in chunks, as a live recogniser would, or at once.
//!
//! The ballast of the correlation depends on the signal's mean energy, which in chunks is known better and better: when frame
//! `recompute_frame` is reached, or at the end if that comes first, the frames so far are searched again with what is known then.

use crate::audio::pitch::viterbi::Step;
use crate::audio::pitch::{PitchExtractor, RawPitch, correlation::Products};

/// Relative change of the mean energy from which on the beginning is searched again.
const ENERGY_TOLERANCE: f32 = 0.01;

/// What the search keeps of a frame.
struct Frame {
    /// The cheapest predecessor of each lag.
    predecessors: Vec<u16>,
    /// The correlation at each lag, without ballast.
    nccf: Vec<f32>,
    /// The lag on the cheapest path as it was last traced.
    best: Option<u16>,
}

/// What a second search of a frame needs.
struct Revisable {
    /// The correlation at each lag, with ballast.
    nccf: Vec<f32>,
    mean_norm: f32,
    mean_square: f32,
}

/// Sums over the signal, for its mean energy.
#[derive(Clone, Copy, Default)]
struct Energy {
    sum: f64,
    sum_of_squares: f64,
    samples: usize,
}

impl Energy {
    fn add(&mut self, signal: &[f32]) {
        self.sum += signal.iter().map(|&sample| f64::from(sample)).sum::<f64>();
        self.sum_of_squares += signal.iter().map(|&sample| f64::from(sample) * f64::from(sample)).sum::<f64>();
        self.samples += signal.len();
    }

    fn mean_square(&self) -> f64 {
        let count = self.samples as f64;
        self.sum_of_squares / count - (self.sum / count).powi(2)
    }
}

pub(super) struct Tracker<'a> {
    extractor: &'a PitchExtractor,
    /// The recording so far.
    input: Vec<f32>,
    /// The recording at `resample_frequency`, as far as it is determined.
    signal: Vec<f32>,
    /// Over `signal`, up to the last chunk.
    energy: Energy,
    frames: Vec<Frame>,
    revisable: Vec<Revisable>,
    /// The cost of the cheapest path to each lag of the last frame; the smallest is 0.
    costs: Vec<f32>,
    /// Lag and correlation of each frame on the cheapest path.
    path: Vec<(u16, f32)>,
    /// Frames at the end of `path` that may still change, as far as `max_frames_latency` allows to wait for them.
    latency: usize,
    finished: bool,
}

impl<'a> Tracker<'a> {
    pub fn new(extractor: &'a PitchExtractor) -> Self {
        Tracker {
            extractor,
            input: Vec::new(),
            signal: Vec::new(),
            energy: Energy::default(),
            frames: Vec::new(),
            revisable: Vec::new(),
            costs: vec![0.0; extractor.lags.len()],
            path: Vec::new(),
            latency: 0,
            finished: false,
        }
    }

    /// The pitch of the frames that are known, from frame `first` on.
    pub fn ready_from(&self, first: usize) -> Vec<RawPitch> {
        let known = &self.path[first.min(self.path.len() - self.latency)..self.path.len() - self.latency];
        known.iter().map(|&(lag, nccf)| RawPitch { nccf, pitch: 1.0 / self.extractor.lags[usize::from(lag)] }).collect()
    }

    /// Says that no chunk follows.
    pub fn finish(&mut self) {
        self.finished = true;
        self.accept(&[]);
        let options = &self.extractor.options;
        if self.frames.len() < options.recompute_frame && !options.nccf_ballast_online {
            self.search_again();
        }
        self.latency = 0;
    }

    pub fn accept(&mut self, chunk: &[f32]) {
        let extractor = self.extractor;
        let options = &extractor.options;
        self.input.extend_from_slice(chunk);
        let before = self.signal.len();
        extractor.decimator.extend(&self.input, self.finished, &mut self.signal);
        let mut energy = self.energy;
        self.energy.add(&self.signal[before..]);
        if !options.nccf_ballast_online {
            energy = self.energy;
        }

        let first = self.frames.len();
        let count = self.frames_available();
        if count <= first {
            return;
        }
        let mut products = Products::default();
        let (mut nccf, mut window) = (Vec::new(), vec![0.0; extractor.correlator.reach()]);
        let mut with_ballast = Vec::with_capacity(count - first);
        let mut end_of_energy = before;
        for index in first..count {
            let end = self.copy_window(index, &mut window);
            if options.nccf_ballast_online && end > end_of_energy {
                energy.add(&self.signal[end_of_energy..end]);
                end_of_energy = end;
            }
            let mean_square = energy.mean_square();
            extractor.correlator.products(&mut window, &mut products);
            products.nccf(self.ballast(mean_square) as f32, &mut nccf);
            let mut resampled = Vec::with_capacity(extractor.lags.len());
            extractor.interpolator.read(&nccf, &mut resampled);
            let revisable =
                Revisable { nccf: resampled, mean_norm: products.mean_norm(), mean_square: mean_square as f32 };
            with_ballast.push(revisable);

            products.nccf(0.0, &mut nccf);
            let mut resampled = Vec::with_capacity(extractor.lags.len());
            extractor.interpolator.read(&nccf, &mut resampled);
            let predecessors = vec![0; extractor.lags.len()];
            self.frames.push(Frame { predecessors, nccf: resampled, best: None });
        }
        for (index, revisable) in (first..count).zip(with_ballast) {
            self.step(index, &revisable.nccf);
            if index < options.recompute_frame {
                self.revisable.push(revisable);
            }
            if index + 1 == options.recompute_frame && !options.nccf_ballast_online {
                self.search_again();
            }
        }
        self.trace();
    }

    /// Frames that the signal determines so far; at the end also those whose longest lags reach beyond it.
    fn frames_available(&self) -> usize {
        let (samples, shift) = (self.signal.len(), self.extractor.frame_shift);
        let correlator = &self.extractor.correlator;
        let needed = if self.finished { correlator.window } else { correlator.reach() };
        if samples < needed {
            return 0;
        }
        if self.extractor.options.snip_edges {
            return (samples - needed) / shift + 1;
        }
        let covered = if self.finished { samples } else { samples - needed / 2 };
        (covered as f32 / shift as f32 + 0.5) as usize
    }

    /// Copies what frame `index` reads of the signal, zeros beyond its ends. Returns where in the signal it ends.
    fn copy_window(&self, index: usize, window: &mut [f32]) -> usize {
        let (length, shift) = (window.len(), self.extractor.frame_shift);
        let start = if self.extractor.options.snip_edges {
            (index * shift) as isize
        } else {
            ((index as f64 + 0.5) * shift as f64) as isize - (length / 2) as isize
        };
        let skipped = start.min(0).unsigned_abs().min(length);
        let begin = (start.max(0) as usize).min(self.signal.len());
        let end = (begin + length - skipped).min(self.signal.len());
        window.fill(0.0);
        window[skipped..skipped + (end - begin)].copy_from_slice(&self.signal[begin..end]);
        end
    }

    fn ballast(&self, mean_square: f64) -> f64 {
        (mean_square * self.extractor.correlator.window as f64).powi(2) * self.extractor.options.nccf_ballast
    }

    /// Extends the cheapest paths to frame `index`. Equation 5 of the paper: lag L costs 1 - nccf (1 - soft_min_f0 L).
    fn step(&mut self, index: usize, nccf: &[f32]) {
        let options = &self.extractor.options;
        let ratio = f64::from(options.delta_pitch as f32);
        let factor = (1.0 + ratio).ln().powi(2) as f32 * options.penalty_factor as f32;
        let soft_min_f0 = options.soft_min_f0 as f32;
        let mut costs = vec![0.0; self.costs.len()];
        let predecessors = &mut self.frames[index].predecessors;
        Step { previous: &self.costs, factor, predecessors, costs: &mut costs }.run();
        for ((cost, nccf), lag) in costs.iter_mut().zip(nccf).zip(&self.extractor.lags) {
            *cost += 1.0 - nccf + soft_min_f0 * lag * nccf;
        }
        // Only differences matter; kept small, they keep their precision.
        let smallest = costs.iter().copied().fold(f32::INFINITY, f32::min);
        costs.iter_mut().for_each(|cost| *cost -= smallest);
        self.costs = costs;
        self.frames[index].best = None;
    }

    /// Traces the cheapest path back to where it joins the one that was traced before.
    fn trace(&mut self) {
        let smallest = |best: usize, lag: usize| if self.costs[lag] < self.costs[best] { lag } else { best };
        let mut lag = (1..self.costs.len()).fold(0, smallest) as u16;
        self.path.resize(self.frames.len(), (0, 0.0));
        for (frame, place) in self.frames.iter_mut().zip(&mut self.path).rev() {
            if frame.best == Some(lag) {
                break;
            }
            frame.best = Some(lag);
            *place = (lag, frame.nccf[usize::from(lag)]);
            lag = frame.predecessors[usize::from(lag)];
        }
        self.latency = self.undecided();
    }

    /// Frames at the end on which the paths do not yet agree, at most `max_frames_latency`.
    fn undecided(&self) -> usize {
        let most = self.extractor.options.max_frames_latency;
        let (mut low, mut high) = (0, self.costs.len() - 1);
        for (latency, frame) in self.frames.iter().rev().take(most).enumerate() {
            (low, high) = (frame.predecessors[low].into(), frame.predecessors[high].into());
            if low == high {
                return latency;
            }
        }
        most.min(self.frames.len())
    }

    /// Searches the revisable frames again if the mean energy is another now. Scaling the correlation by the mean change of its
    /// denominator stands for correlating again.
    fn search_again(&mut self) {
        let revisable = std::mem::take(&mut self.revisable);
        if revisable.is_empty() {
            return;
        }
        let mean_square = self.energy.mean_square() as f32;
        let differs = |old: f32| (old - mean_square).abs() > ENERGY_TOLERANCE * (old.abs() + mean_square.abs());
        if !revisable.iter().any(|frame| differs(frame.mean_square)) {
            return;
        }
        let ballast = self.ballast(f64::from(mean_square)) as f32;
        self.costs.fill(0.0);
        for (index, mut frame) in revisable.into_iter().enumerate() {
            let old = self.ballast(f64::from(frame.mean_square)) as f32;
            let scale = ((old + frame.mean_norm) / (ballast + frame.mean_norm)).sqrt();
            // Silence has neither ballast nor energy, and no correlation to scale.
            if scale.is_finite() {
                frame.nccf.iter_mut().for_each(|nccf| *nccf *= scale);
            }
            self.step(index, &frame.nccf);
        }
        self.trace();
    }
}
