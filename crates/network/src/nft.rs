//! Applying an nftables script as one transaction.

use std::path::Path;
use std::process::Stdio;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::{Context, Error, Result};

/// Applies `script` atomically in the namespace of the process, or in the one at `namespace`.
pub async fn apply(script: String, namespace: Option<&Path>) -> Result<()> {
    let mut command = Command::new("nft");
    command
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let mut child = match namespace {
        None => command.spawn().context(|| "running nft".to_owned())?,
        // The child inherits the namespace of the thread that starts it.
        Some(path) => {
            let runtime = tokio::runtime::Handle::current();
            crate::netns::run_in(path, move || {
                let _context = runtime.enter();
                command.spawn()
            })?
        }
    };
    if let Some(mut stdin) = child.stdin.take() {
        // A failed write means that nft is gone; its exit status says why.
        let _ = stdin.write_all(script.as_bytes()).await;
    }
    let output = child
        .wait_with_output()
        .await
        .context(|| "waiting for nft".to_owned())?;
    if output.status.success() {
        return Ok(());
    }
    Err(Error::Nft(
        String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    ))
}
