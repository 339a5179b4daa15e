//! How a user names weights: `RUN` means its best stage, `RUN/STAGE` the best epoch of a stage, `RUN/STAGE@EPOCH` an epoch
//! that was kept.

use std::path::{Path, PathBuf};

use super::run_folder::{LOG, RECIPE, RESULT, RunFolder};
use super::weights::{Weights, load_weights};
use crate::error::{Error, Result};

/// Weights of a run that are there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WeightsReference {
    /// The run's folder.
    pub run: PathBuf,
    /// The stage's id.
    pub stage: String,
    /// None: the best epoch.
    pub epoch: Option<usize>,
}

impl WeightsReference {
    /// The file with the weights.
    pub fn file(&self) -> PathBuf {
        let stage = self.run.join(&self.stage);
        match self.epoch {
            None => stage.join("best.safetensors"),
            Some(epoch) => stage.join(format!("epoch-{epoch}.safetensors")),
        }
    }

    /// Opens the weights. Those that a finished stage ended with are held against the checksum in the run's result, those that were kept of an epoch
    /// against the one in its log.
    ///
    /// # Errors
    /// Those of [`load_weights`]; weights that are no longer what the stage or the epoch ended with.
    pub fn load(&self) -> Result<Weights> {
        // Before the weights: a stage that ends in between replaces them once more, and then writes its result.
        let expected = self.expected_checksum()?;
        let weights = load_weights(self.file())?;
        match expected {
            Some(expected) if expected != weights.checksum().0 => {
                let (what, place) = if self.epoch.is_some() { ("epoch", LOG) } else { ("stage", RESULT) };
                let problem = format!("is not what the {what} ended with: it does not have the checksum in {place}");
                Err(Error::file(weights.path(), problem).remedy(
                    "Restore it from a copy; if it was replaced on purpose, evaluate it with --recipe and --weights",
                ))
            }
            _ => Ok(weights),
        }
    }

    /// None: the stage or the epoch has not ended, or a version before trained it. An epoch that a killed process kept and the log does not have is
    /// kept anew when the run goes on.
    fn expected_checksum(&self) -> Result<Option<String>> {
        let run = RunFolder::open(&self.run)?;
        let Some(epoch) = self.epoch else {
            let stages = run.read_result()?.map(|result| result.stages).unwrap_or_default();
            return Ok(stages.into_iter().find(|stage| stage.stage == self.stage).and_then(|stage| stage.best_sha256));
        };
        let mut records = run.read_log()?.into_iter();
        let ended = records.find(|record| record.stage == self.stage && record.epoch == epoch);
        Ok(ended.and_then(|record| record.kept_sha256))
    }
}

/// Finds the weights that `text` names: `RUN`, `RUN/STAGE`, `RUN@EPOCH` or `RUN/STAGE@EPOCH`.
///
/// # Errors
/// There is no such run, stage or epoch; lists those that there are.
pub fn parse_reference(text: &str) -> Result<WeightsReference> {
    // A folder may have an @ in its name.
    if let Some((path, epoch)) = text.rsplit_once('@')
        && !Path::new(text).exists()
        && !epoch.contains('/')
    {
        let epoch = epoch.parse().ok().filter(|&epoch| epoch > 0).ok_or_else(|| {
            Error::file(text, format!("{epoch:?} after the @ is no epoch"))
                .remedy("Write RUN/STAGE@EPOCH, where EPOCH is a number from 1")
        })?;
        return resolve_reference(path, Some(epoch));
    }
    resolve_reference(text, None)
}

/// [`parse_reference`] of a path to a run or a stage and an epoch. Errors likewise.
pub fn resolve_reference(path: impl AsRef<Path>, epoch: Option<usize>) -> Result<WeightsReference> {
    let path = path.as_ref();
    let Some(run) = path.ancestors().find(|folder| folder.join(RECIPE).is_file()) else {
        return Err(RunFolder::open(path).err().unwrap_or_else(|| Error::file(path, "there is no such run")))
            .map_err(|error| error.remedy("Name a run's folder: RUN, RUN/STAGE or RUN/STAGE@EPOCH"));
    };
    let run_folder = RunFolder::open(run)?;
    // Both are paths from the same folder: what is left over is the stage.
    let stage = path.strip_prefix(run).map(|stage| stage.to_string_lossy().into_owned()).unwrap_or_default();
    let stage = if stage.is_empty() { best_stage(&run_folder)? } else { stage };
    let reference = WeightsReference { run: run.to_path_buf(), stage, epoch };
    if reference.file().is_file() { Ok(reference) } else { Err(missing(&run_folder, &reference)) }
}

fn best_stage(run: &RunFolder) -> Result<String> {
    run.read_result()?.and_then(|result| result.best).ok_or_else(|| {
        let error =
            Error::file(run.path(), "no stage of this run has ended with a finite result yet, so none is its best");
        error.remedy(match run.stages() {
            stages if stages.is_empty() => format!("Train it first: {}", run.go_on(&[])),
            stages => format!("Name one of the stages that have weights: {}", with_run(run, &stages)),
        })
    })
}

fn missing(run: &RunFolder, reference: &WeightsReference) -> Error {
    let stages = run.stages();
    let stage = &reference.stage;
    if !stages.contains(stage) {
        let error = Error::file(run.path(), format!("has no weights of a stage named {stage}"));
        return error.remedy(match stages.is_empty() {
            true => "It has none of any stage yet".to_string(),
            false => format!("It has {}", with_run(run, &stages)),
        });
    }
    let folder = run.stage(stage);
    let Some(epoch) = reference.epoch else {
        return Error::file(reference.file(), "is missing")
            .remedy("Restore it from a copy, or name an epoch: RUN/STAGE@EPOCH");
    };
    let error = Error::file(&folder.path, format!("the weights of epoch {epoch} were not kept"));
    let kept: Vec<_> = folder.kept_epochs().iter().map(usize::to_string).collect();
    error.remedy(match kept.is_empty() {
        true => {
            "Only the best epoch's were (leave out the @EPOCH); training.keep = \"all\" keeps every epoch's".to_string()
        }
        false => format!("Those of these epochs were: {}", kept.join(", ")),
    })
}

fn with_run(run: &RunFolder, stages: &[String]) -> String {
    stages.iter().map(|stage| format!("{}/{stage}", run.path().display())).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::record::RunResult;
    use crate::train::run_folder::StartFiles;
    use std::fs;

    fn run(path: &Path, best: Option<&str>) -> RunFolder {
        let run = RunFolder::create(path).unwrap();
        run.write_start(&StartFiles { recipe: "name = \"r\"\n", ..StartFiles::default() }).unwrap();
        for stage in ["joint", "1-4"] {
            fs::write(run.create_stage(stage).unwrap().best(), "").unwrap();
        }
        fs::write(run.stage("joint").epoch(11), "").unwrap();
        fs::write(run.stage("joint").epoch(2), "").unwrap();
        run.write_result(&RunResult {
            name: "r".into(),
            model: "blstm-ctc".into(),
            strategy: "greedy".into(),
            device: "cpu".into(),
            groups: vec![],
            stages: vec![],
            best: best.map(Into::into),
            bests: Vec::new(),
            start_sha256: Default::default(),
            finished: false,
        })
        .unwrap();
        run
    }

    #[test]
    fn a_run_a_stage_and_an_epoch_are_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("an4@home");
        run(&path, Some("1-4"));
        let found = |suffix: &str| parse_reference(&format!("{}{suffix}", path.display())).unwrap();
        assert_eq!(found(""), WeightsReference { run: path.clone(), stage: "1-4".into(), epoch: None });
        assert_eq!(found("/").file(), path.join("1-4/best.safetensors"));
        assert_eq!(found("/joint").file(), path.join("joint/best.safetensors"));
        assert_eq!(found("/joint@11").file(), path.join("joint/epoch-11.safetensors"));
        assert_eq!(resolve_reference(path.join("joint"), Some(2)).unwrap().epoch, Some(2));
    }

    #[test]
    fn what_is_not_there_is_an_error_that_lists_what_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run");
        run(&path, None);
        let error = |suffix: &str| parse_reference(&format!("{}{suffix}", path.display())).unwrap_err().to_string();
        assert!(error("").contains("none is its best") && error("").contains("run/1-4, "), "{}", error(""));
        assert!(error("/1-3").contains("stage named 1-3") && error("/1-3").contains("run/joint"), "{}", error("/1-3"));
        assert!(error("/joint@3").contains("epoch 3 were not kept") && error("/joint@3").contains("2, 11"));
        assert!(error("/1-4@3").contains("keep = \"all\""), "{}", error("/1-4@3"));
        assert!(error("/joint@last").contains("\"last\" after the @ is no epoch"));
        assert!(error("/joint@0").contains("is no epoch"));
        assert!(error("-other").contains("there is no such run"), "{}", error("-other"));
        let no_run = parse_reference(&folder.path().display().to_string()).unwrap_err().to_string();
        assert!(no_run.contains("holds no run"), "{no_run}");
    }
}
