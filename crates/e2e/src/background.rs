//! A command that runs beside the test.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, ExitStatus};
use std::time::Duration;

use anyhow::{Context as _, bail};

use crate::eventually;

/// A running command; dies when dropped.
pub struct Background {
    pub(crate) child: Child,
    pub(crate) output: PathBuf,
}

// === impl Background ===

impl Background {
    /// What it has written so far, to both of its outputs.
    #[must_use]
    pub fn output(&self) -> String {
        fs::read(&self.output)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// Waits until it has written `text`.
    ///
    /// # Errors
    /// When it has not, in `limit`.
    pub fn says(&self, text: &str, limit: Duration) -> anyhow::Result<()> {
        eventually(
            &format!("\"{text}\" from a command"),
            limit,
            || match self.output() {
                output if output.contains(text) => Ok(Some(())),
                output => bail!("it wrote: {output}"),
            },
        )
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it does not end in `limit`.
    pub fn ended(&mut self, limit: Duration) -> anyhow::Result<ExitStatus> {
        let status = eventually("the end of a command", limit, || {
            Ok(self.child.try_wait()?)
        });
        status.with_context(|| format!("it wrote: {}", self.output()))
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
