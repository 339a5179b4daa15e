use super::*;
use crate::files::faults::{Disk, with_crash, with_disk_of};
use crate::train::number;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Rest {
    step: u64,
    #[serde(with = "number::float")]
    best_loss: f64,
}

/// A state whose every file tells which step it is from: a mixture shows.
fn save(folder: &Path, step: u64) -> Result<()> {
    let value = [step as f32; 300];
    let shape = [3, 100];
    let weights = [NamedTensor { name: "ctc.weight", shape: &shape, data: &value }];
    let optimizer = [NamedTensor { name: "ctc.weight.squares", shape: &shape, data: &value }];
    let tensors = |tensors| Content::Tensors { tensors, metadata: &[] };
    // Every third step is the best so far.
    let best = if step.is_multiple_of(3) { Content::SameAs("weights") } else { Content::Kept };
    let parts = [
        Part { name: "weights", content: tensors(&weights) },
        Part { name: "best", content: best },
        Part { name: "optimizer", content: tensors(&optimizer) },
    ];
    save_state(folder, &parts, &Rest { step, best_loss: f64::INFINITY })?;
    publish_part(folder, "best", &folder.join("best.safetensors"))
}

/// Loads and checks that all parts are of one step; gives that step.
fn load(folder: &Path) -> Option<u64> {
    let state = load_state::<Rest>(folder).unwrap()?;
    let step = state.rest.step;
    let value = |part: &str, tensor| state.part(part).unwrap().get(tensor, &[3, 100]).unwrap()[299] as u64;
    assert_eq!(value("weights", "ctc.weight"), step);
    assert_eq!(value("optimizer", "ctc.weight.squares"), step);
    assert_eq!(value("best", "ctc.weight"), step - step % 3);
    assert_eq!(state.rest.best_loss, f64::INFINITY);
    Some(step)
}

fn state_files(folder: &Path) -> usize {
    part_files(folder).len()
}

#[test]
fn a_state_comes_back_and_the_one_before_it_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(load(folder.path()), None);
    for step in 0..7 {
        save(folder.path(), step).unwrap();
        assert_eq!(load(folder.path()), Some(step));
    }
    // Weights and optimizer of step 6; its best weights are the weights.
    assert_eq!(state_files(folder.path()), 2);
    let best = load_weights(folder.path().join("best.safetensors")).unwrap();
    assert_eq!(best.get("ctc.weight", &[3, 100]).unwrap()[0], 6.0);
}

#[test]
fn the_same_state_has_the_same_bytes() {
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    (0..4).for_each(|step| save(one.path(), step).unwrap());
    (3..4).for_each(|step| save(other.path(), step).unwrap());
    let bytes = |folder: &Path| fs::read(folder.join(STATE_FILE)).unwrap();
    assert_eq!(bytes(one.path()), bytes(other.path()));
}

#[test]
fn a_crash_before_any_single_operation_leaves_the_old_state_or_the_new_one() {
    // Both a step with new best weights and one that keeps them.
    for (old, new) in [(2, 3), (3, 4)] {
        let before = tempfile::tempdir().unwrap();
        (0..=old).for_each(|step| save(before.path(), step).unwrap());
        let mut crashes = 0;
        for crash_before in 0.. {
            // The files as they are in `before`: none is ever changed in place.
            let folder = tempfile::tempdir().unwrap();
            for entry in fs::read_dir(before.path()).unwrap() {
                let entry = entry.unwrap();
                fs::hard_link(entry.path(), folder.path().join(entry.file_name())).unwrap();
            }
            let (outcome, trace) = with_crash(Some(crash_before), || save(folder.path(), new));
            let found = load(folder.path()).unwrap();
            assert!(found == old || found == new, "crash before operation {crash_before}: {found}");
            assert!(outcome.is_err() || found == new);
            // The run goes on from there and clears away what the crash left.
            files::remove_stale_temporaries(folder.path());
            (found + 1..=new + 1).for_each(|step| save(folder.path(), step).unwrap());
            assert_eq!(load(folder.path()), Some(new + 1));
            assert!(fs::read_dir(folder.path()).unwrap().count() <= 5, "something is left over");
            if trace.len() < crash_before {
                break;
            }
            crashes += 1;
        }
        // Three files of at least five operations each: the test has really been through them.
        assert!(crashes >= 15, "{crashes}");
    }
}

#[test]
fn a_power_cut_at_any_instant_leaves_the_old_state_or_the_new_one() {
    for (old, new) in [(2, 3), (3, 4)] {
        let folder = tempfile::tempdir().unwrap();
        (0..=old).for_each(|step| save(folder.path(), step).unwrap());
        let mut disk = Disk::of(folder.path());
        let (outcome, trace) = with_crash(None, || save(folder.path(), new));
        outcome.unwrap();
        let mut seen = std::collections::BTreeSet::new();
        for instant in 0..=trace.len() {
            for content in disk.after_power_cut() {
                let after = tempfile::tempdir().unwrap();
                for (path, bytes) in content {
                    fs::write(after.path().join(path.file_name().unwrap()), bytes).unwrap();
                }
                let found = load(after.path()).unwrap();
                assert!(found == old || found == new, "power cut after operation {instant}: {found}");
                seen.insert(found);
            }
            if let Some(happened) = trace.get(instant) {
                disk.apply(happened);
            }
        }
        assert_eq!(seen.len(), 2);
    }
}

#[test]
fn a_full_disk_keeps_the_state_before_it() {
    let folder = tempfile::tempdir().unwrap();
    save(folder.path(), 3).unwrap();
    for room in [0, 100, 1500, 2000, 2800, 3200] {
        let error = with_disk_of(room, || save(folder.path(), 4)).unwrap_err().to_string();
        assert!(error.contains("cannot be written") && error.contains("Free some space"), "{error}");
        assert_eq!(load(folder.path()), Some(3));
    }
    save(folder.path(), 4).unwrap();
    assert_eq!(load(folder.path()), Some(4));
}

const KILL_TEST_FOLDER: &str = "HEADFIRST_TEST_STATE_FOLDER";

#[test]
fn killed_at_random_instants_it_goes_on_from_the_last_state_it_reported() {
    // This test runs itself as the process that is killed.
    if let Some(folder) = std::env::var_os(KILL_TEST_FOLDER) {
        let folder = Path::new(&folder);
        let start = load(folder).map_or(0, |step| step + 1);
        for step in start.. {
            save(folder, step).unwrap();
            // With a mark, since the test harness may print on the same line.
            println!("\nsaved:{step}");
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let mut last = None;
    for delay in [1u64, 3, 9, 2, 14, 5, 21, 7, 11, 4, 17, 6] {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "--nocapture",
                "train::checkpoint::tests::killed_at_random_instants_it_goes_on_from_the_last_state_it_reported",
            ])
            .env(KILL_TEST_FOLDER, folder.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let saved = |line: String| line.strip_prefix("saved:").map(|step| step.parse::<u64>().unwrap());
        // Killed some time after its first state, wherever it then is.
        let first = lines.by_ref().find_map(|line| saved(line.unwrap()));
        std::thread::sleep(Duration::from_millis(delay));
        child.kill().unwrap();
        child.wait().unwrap();
        let reported = lines.filter_map(|line| saved(line.unwrap_or_default())).last().or(first).unwrap();
        let found = load(folder.path()).unwrap();
        assert!(found >= reported && Some(found) > last, "reported {reported}, found {found}, before {last:?}");
        last = Some(found);
    }
}

#[test]
fn a_damaged_file_is_named_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    save(folder.path(), 3).unwrap();
    let mut names = part_files(folder.path());
    names.push(STATE_FILE.to_string());
    for name in names {
        let path = folder.path().join(&name);
        let whole = fs::read(&path).unwrap();
        let message = |content: Option<&[u8]>| {
            match content {
                Some(content) => fs::write(&path, content).unwrap(),
                None => fs::remove_file(&path).unwrap(),
            }
            load_state::<Rest>(folder.path()).map(|state| state.is_some()).map_err(|error| error.to_string())
        };
        // One bit of each byte in turn for the small state.json, of some in a part.
        for place in (0..whole.len()).step_by(1 + whole.len() / 500) {
            let mut flipped = whole.clone();
            flipped[place] ^= 1;
            match message(Some(&flipped)) {
                Err(error) => {
                    assert!(error.contains(&format!("remove {}", folder.path().join(STATE_FILE).display())), "{error}");
                }
                // White space is no damage.
                Ok(_) => assert!(name == STATE_FILE && whole[place].is_ascii_whitespace(), "{name}: {place}"),
            }
        }
        assert!(message(Some(&whole[..whole.len() / 2])).unwrap_err().contains(&name));
        if name != STATE_FILE {
            assert!(message(None).unwrap_err().contains(&name));
        }
        assert_eq!(message(Some(&whole)), Ok(true));
    }
}

#[test]
fn a_state_of_another_version_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    save(folder.path(), 3).unwrap();
    #[derive(Debug, Deserialize)]
    struct Other {
        #[expect(dead_code, reason = "read by serde alone")]
        epoch: u64,
    }
    let error = load_state::<Other>(folder.path()).unwrap_err().to_string();
    assert!(error.contains("another version") && error.contains("epoch"), "{error}");
    let error = load_state::<Rest>(folder.path()).unwrap().unwrap().part("sums").unwrap_err().to_string();
    assert!(error.contains("no part named sums"), "{error}");
}

#[test]
fn a_removed_state_leaves_the_published_weights() {
    let folder = tempfile::tempdir().unwrap();
    save(folder.path(), 3).unwrap();
    remove_state(folder.path()).unwrap();
    assert_eq!((load(folder.path()), state_files(folder.path())), (None, 0));
    assert!(load_weights(folder.path().join("best.safetensors")).is_ok());
}

#[test]
fn a_part_kept_from_no_state_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let part = Part { name: "best", content: Content::Kept };
    assert!(save_state(folder.path(), &[part], &1).unwrap_err().to_string().contains("best is to be kept"));
    let part = Part { name: "best", content: Content::SameAs("weights") };
    assert!(save_state(folder.path(), &[part], &1).unwrap_err().to_string().contains("which is not in it"));
}
