//! A stage's classifier is the same from its first batch to its last, through every resumption.

use super::StageRun;
use crate::error::{Error, Result, Subject};
use crate::train::checkpoint::STATE_FILE;
use crate::train::position::Position;
use crate::train::run_folder::StageFolder;
use crate::train::task::Task;
use crate::train::weights::Weights;

/// Of a stage that goes on: `classifier` must be the file that it began with. The run that it is from may have trained on since.
pub(super) fn check_unchanged(position: &Position, classifier: &Weights, stage: &StageFolder) -> Result<()> {
    if position.classifier.as_ref().is_none_or(|began_with| *began_with == classifier.checksum().0) {
        return Ok(());
    }
    let id = stage.path.file_name().unwrap_or_default().display();
    let problem = format!(
        "is not the classifier that the stage {id} began with: it has changed since, or its run has another best stage now"
    );
    Err(Error::file(classifier.path(), problem).remedy(format!(
        "Restore it from a copy, or remove {} and go on with --resume: that stage is then trained anew below this classifier",
        stage.path.join(STATE_FILE).display()
    )))
}

impl<T: Task> StageRun<'_, T> {
    /// A frozen parameter never changes: this is what finds it if one did.
    pub(super) fn check_frozen(&self) -> Result<()> {
        let Some(classifier) = self.start.classifier else { return Ok(()) };
        let parameters = &self.learner.parameters;
        for index in (0..parameters.len()).filter(|&index| !parameters.is_trainable(index)) {
            let spec = &parameters.specs()[index];
            let original = classifier.get(&spec.name, &spec.shape)?;
            let value = parameters.value(index).host();
            // Of a device that failed it is zeros, which prove nothing.
            self.session.device.check()?;
            if !value.iter().zip(&*original).all(|(a, b)| a.to_bits() == b.to_bits()) {
                let file = classifier.path().display();
                let problem = format!("the frozen parameter {} is not what it is in {file}", spec.name);
                return Err(Error::new(Subject::Stage(self.id.clone()), problem).remedy(
                    "If that file is the one that the stage began with, it is a fault of the program: please report it",
                ));
            }
        }
        Ok(())
    }
}
