//! Each optimiser against PyTorch's own updates (tests/fixtures/optimizers.py) and against its definition in f64.

use super::*;

/// Half an ulp of f32, relative: the most that one rounding can add.
const ROUNDING: f64 = f32::EPSILON as f64 / 2.0;
/// Roundings in one update of one element, counted in Adadelta's formulas, the longest; its states included.
const ROUNDINGS_PER_STEP: f64 = 18.0;

fn hyper(learning_rate: f64, epsilon: f64, weight_decay: f64) -> Hyper {
    Hyper { learning_rate, epsilon, weight_decay, step: 0, gradient_scale: 1.0 }
}

/// Updates `parameter` once for each of `gradients`; gives the parameter after each update, and the states at the end.
fn run(method: Method, mut hyper: Hyper, start: &[f32], gradients: &[Vec<f32>]) -> (Vec<Vec<f32>>, Vec<Vec<f32>>) {
    let mut parameter = start.to_vec();
    let mut states = vec![vec![0.0; start.len()]; method.state_names().len()];
    let mut trajectory = Vec::new();
    for gradient in gradients {
        hyper.step += 1;
        let mut views: Vec<&mut [f32]> = states.iter_mut().map(Vec::as_mut_slice).collect();
        method.step(&hyper, &mut parameter, gradient, &mut views);
        trajectory.push(parameter.clone());
    }
    (trajectory, states)
}

#[derive(Deserialize)]
struct Fixture {
    start: Vec<f32>,
    gradients: Vec<Vec<f32>>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    kind: String,
    options: serde_json::Map<String, serde_json::Value>,
    parameters: Vec<Vec<f32>>,
    states: std::collections::BTreeMap<String, Vec<f32>>,
}

impl Case {
    fn number(&self, name: &str) -> f64 {
        self.options.get(name).and_then(serde_json::Value::as_f64).unwrap_or(0.0)
    }

    fn method(&self) -> Method {
        match self.kind.as_str() {
            "adadelta" => Method::Adadelta { rho: self.number("rho") },
            "sgd" => Method::Sgd {
                momentum: self.number("momentum"),
                dampening: self.number("dampening"),
                nesterov: self.options.get("nesterov").is_some_and(|value| value == true),
            },
            "adam" => Method::Adam { beta1: self.number("beta1"), beta2: self.number("beta2") },
            other => panic!("the fixture has the unknown kind {other}"),
        }
    }
}

fn fixture() -> Fixture {
    serde_json::from_str(include_str!("../../tests/fixtures/optimizers.json"))
        .expect("the fixture is JSON of this form")
}

#[test]
fn every_optimizer_moves_as_pytorch_does() {
    let fixture = fixture();
    let mut kinds = std::collections::BTreeSet::new();
    for case in &fixture.cases {
        kinds.insert(case.kind.clone());
        let hyper = hyper(case.number("lr"), case.number("eps"), case.number("weight_decay"));
        let (trajectory, states) = run(case.method(), hyper, &fixture.start, &fixture.gradients);

        for element in 0..fixture.start.len() {
            // Every rounding is relative to a term no larger than the farthest the element has been plus the way that it has gone.
            let mut farthest = f64::from(fixture.start[element].abs());
            let mut way = 0.0;
            let mut before = fixture.start[element];
            for (step, (ours, theirs)) in trajectory.iter().zip(&case.parameters).enumerate() {
                let (ours, theirs) = (ours[element], theirs[element]);
                farthest = farthest.max(f64::from(theirs.abs()));
                way += f64::from((theirs - before).abs());
                before = theirs;
                let tolerance = ROUNDING * ROUNDINGS_PER_STEP * (step + 1) as f64 * (farthest + way);
                let difference = f64::from((ours - theirs).abs());
                let options = &case.options;
                assert!(
                    difference <= tolerance,
                    "{} {options:?}, step {step}, element {element}: {ours} against {theirs}",
                    case.kind
                );
            }
        }

        let names = case.method().state_names();
        assert_eq!(names.len(), case.states.len(), "{}: the same states", case.kind);
        for (name, ours) in names.iter().zip(&states) {
            let theirs = &case.states[*name];
            let largest = theirs.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
            for (ours, theirs) in ours.iter().zip(theirs) {
                // Averages of squares keep their relative precision; signed averages may cancel, so against the largest.
                let scale = if name.contains("square") || name.contains("delta") { theirs.abs() } else { largest };
                let tolerance = ROUNDING * ROUNDINGS_PER_STEP * fixture.gradients.len() as f64 * f64::from(scale);
                let difference = f64::from((ours - theirs).abs());
                assert!(difference <= tolerance, "{} {name}: {ours} against {theirs}", case.kind);
            }
        }
    }
    assert_eq!(kinds.into_iter().collect::<Vec<_>>(), ["adadelta", "adam", "sgd"]);
}

/// Compares within the roundings of `steps` updates that each move by about `reach` or less.
fn assert_close(ours: f32, expected: f64, steps: f64, reach: f64) {
    let tolerance = ROUNDING * ROUNDINGS_PER_STEP * steps * reach;
    assert!((f64::from(ours) - expected).abs() <= tolerance, "{ours} against {expected}");
}

#[test]
fn adadelta_agrees_with_a_step_worked_by_hand() {
    // square = .1 * 4 = .4; delta = sqrt(.01) / sqrt(.41) * 2; accumulated = .1 * delta^2; p = 1 - .5 * delta.
    let delta = 0.1 / 0.41f64.sqrt() * 2.0;
    let (p, states) = run(Method::Adadelta { rho: 0.9 }, hyper(0.5, 0.01, 0.0), &[1.0], &[vec![2.0]]);
    assert_close(p[0][0], 1.0 - 0.5 * delta, 1.0, 1.0);
    assert_close(states[0][0], 0.4, 1.0, 0.4);
    assert_close(states[1][0], 0.1 * delta * delta, 1.0, 0.01);
}

#[test]
fn sgd_agrees_with_two_steps_worked_by_hand() {
    // Damped: buffers 2, then .5 * 2 + .75 * 4 = 4; p = 1 - .1 * 2 - .1 * 4.
    let damped = Method::Sgd { momentum: 0.5, dampening: 0.25, nesterov: false };
    let (p, _) = run(damped, hyper(0.1, 0.0, 0.0), &[1.0], &[vec![2.0], vec![4.0]]);
    assert_close(p[1][0], 0.4, 2.0, 1.0);
    // Nesterov: buffers 2, then 5; directions 2 + .5 * 2 = 3, then 4 + .5 * 5 = 6.5.
    let nesterov = Method::Sgd { momentum: 0.5, dampening: 0.0, nesterov: true };
    let (p, _) = run(nesterov, hyper(0.1, 0.0, 0.0), &[1.0], &[vec![2.0], vec![4.0]]);
    assert_close(p[1][0], 1.0 - 0.3 - 0.65, 2.0, 1.0);
}

#[test]
fn adam_agrees_with_two_steps_worked_by_hand() {
    // With gradients 1 and 1 both corrected averages are 1 at every step, so each step is lr / (1 + eps).
    let (p, _) = run(Method::Adam { beta1: 0.9, beta2: 0.999 }, hyper(0.25, 0.5, 0.0), &[1.0], &[vec![1.0], vec![1.0]]);
    // beta2's correction divides by 1 - .999^t, which magnifies the rounding of (1 - beta2) in the average by nothing but itself.
    assert_close(p[0][0], 1.0 - 0.25 / 1.5, 1.0, 1.0);
    assert_close(p[1][0], 1.0 - 0.5 / 1.5, 2.0, 1.0);
}

const METHODS: [Method; 5] = [
    Method::Adadelta { rho: 0.95 },
    Method::Sgd { momentum: 0.0, dampening: 0.0, nesterov: false },
    Method::Sgd { momentum: 0.9, dampening: 0.1, nesterov: false },
    Method::Sgd { momentum: 0.9, dampening: 0.0, nesterov: true },
    Method::Adam { beta1: 0.9, beta2: 0.999 },
];

fn made_up(length: usize, seed: usize) -> Vec<f32> {
    (0..length).map(|i| ((i * 7919 + seed * 104_729) % 10_007) as f32 / 5_003.0 - 1.0).collect()
}

#[test]
fn an_update_has_the_same_bits_with_any_number_of_threads_and_for_any_place_in_the_parameter() {
    let length = 2 * CHUNK + 77;
    let (start, gradients) = (made_up(length, 1), [made_up(length, 2), made_up(length, 3)]);
    for method in METHODS {
        let with_threads = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
            pool.install(|| run(method, hyper(0.1, 1e-6, 0.01), &start, &gradients))
        };
        let (one, three) = (with_threads(1), with_threads(3));
        assert!(one == three, "{method:?}: threads changed the result");
        // The tail alone, which other lanes of other vectors compute.
        let from = CHUNK + 5;
        let tails = gradients.each_ref().map(|gradient| gradient[from..].to_vec());
        let (tail, _) = run(method, hyper(0.1, 1e-6, 0.01), &start[from..], &tails);
        assert!(tail[1] == one.0[1][from..], "{method:?}: the place changed the result");
    }
}

#[test]
fn a_gradient_scale_acts_as_scaled_gradients_do() {
    let (start, gradient) = (made_up(50, 4), made_up(50, 5));
    let doubled: Vec<f32> = gradient.iter().map(|g| 2.0 * g).collect();
    for method in METHODS {
        let mut halving = hyper(0.1, 1e-6, 0.01);
        halving.gradient_scale = 0.5;
        let scaled = run(method, halving, &start, &[doubled.clone(), doubled.clone()]);
        let plain = run(method, hyper(0.1, 1e-6, 0.01), &start, &[gradient.clone(), gradient.clone()]);
        assert_eq!(scaled, plain, "{method:?}");
    }
}

#[test]
fn a_zero_gradient_from_the_start_moves_nothing_without_weight_decay() {
    for method in METHODS {
        let (trajectory, _) = run(method, hyper(0.1, 1e-8, 0.0), &[0.5, -2.0], &[vec![0.0; 2], vec![0.0; 2]]);
        assert_eq!(trajectory[1], [0.5, -2.0], "{method:?}");
    }
}
