//! Configuration files that take effect when they change.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use futures::StreamExt as _;
use inotify::{EventStream, Inotify, WatchMask};
use tokio_util::sync::CancellationToken;

/// After a change, this long without another one: files are written in pieces.
const SETTLE: Duration = Duration::from_millis(50);

/// Calls `apply` with the content of a file whenever that becomes another one. The directory is watched, since files of
/// mounted volumes change by renaming a link beside them.
pub fn spawn(
    path: PathBuf,
    shutdown: CancellationToken,
    apply: impl Fn(String) + Send + 'static,
) -> anyhow::Result<()> {
    let path = std::path::absolute(path)?;
    let mut known = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let directory = path.parent().unwrap_or_else(|| Path::new("/"));
    let mut changes = Changes::of(directory, shutdown)?;
    tokio::spawn(async move {
        while changes.next().await {
            match tokio::fs::read_to_string(&path).await {
                Ok(content) if content != known && !content.trim().is_empty() => {
                    known.clone_from(&content);
                    apply(content);
                }
                Ok(_) => {}
                Err(error) => tracing::debug!(%error, path = %path.display(), "not readable"),
            }
        }
    });
    Ok(())
}

/// Changes of what is in a directory.
pub struct Changes {
    directory: PathBuf,
    events: EventStream<Vec<u8>>,
    shutdown: CancellationToken,
}

impl Changes {
    /// Those from now on, until shutdown.
    ///
    /// # Errors
    /// When it cannot be watched.
    pub fn of(directory: &Path, shutdown: CancellationToken) -> anyhow::Result<Self> {
        let inotify = Inotify::init().context("inotify")?;
        let changes =
            WatchMask::CLOSE_WRITE | WatchMask::MOVE | WatchMask::CREATE | WatchMask::DELETE;
        inotify
            .watches()
            .add(directory, changes)
            .with_context(|| directory.display().to_string())?;
        Ok(Self {
            directory: directory.to_owned(),
            events: inotify.into_event_stream(vec![0; 4096])?,
            shutdown,
        })
    }

    /// Waits until something has changed, and for the change to be over; false once there are no more.
    pub async fn next(&mut self) -> bool {
        tokio::select! {
            event = self.events.next() => match event {
                Some(Ok(_)) => {}
                Some(Err(error)) => {
                    tracing::warn!(%error, directory = %self.directory.display(), "a watch failed");
                }
                None => return false,
            },
            () = self.shutdown.cancelled() => return false,
        }
        while let Ok(Some(_)) = tokio::time::timeout(SETTLE, self.events.next()).await {}
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_may_be_named_without_its_directory() {
        let shutdown = CancellationToken::new();
        let file = PathBuf::from("Cargo.toml");
        spawn(file, shutdown.clone(), |_| {}).unwrap();
        shutdown.cancel();
    }
}
