//! Attach: a client gets a container's output from now on, and may send it input.

use super::container::Phase;
use super::exec::{forward_input, forward_output, input_pipe, output_pipe};
use super::{Error, ExecStreams, Result, Runtime};
use crate::shim::protocol::Operation;

/// A client's ends of a container's streams.
pub type AttachStreams = ExecStreams;

impl Runtime {
    /// Connects a client with a container until the container ends or the client goes.
    pub async fn attach(&self, id: &str, mut streams: AttachStreams) -> Result<()> {
        let container = self.container(id)?;
        let record = container.record();
        if record.phase != Phase::Running {
            return Err(Error::FailedPrecondition(format!(
                "container is in {:?} state",
                record.phase
            )));
        }
        let tty = record.config.tty;
        let mut fds = Vec::new();
        let stdin = match &streams.stdin {
            Some(_) if record.config.stdin => {
                let (sender, reader) = input_pipe()?;
                fds.push(reader);
                Some(sender)
            }
            _ => None,
        };
        let mut output = |wanted: bool| -> Result<_> {
            if !wanted {
                return Ok(None);
            }
            let (receiver, writer) = output_pipe()?;
            fds.push(writer);
            Ok(Some(receiver))
        };
        let stdout = output(streams.stdout.is_some())?;
        // A tty has one stream of output.
        let stderr = output(streams.stderr.is_some() && !tty)?;
        let shim = container.sandbox.shim()?;
        shim.call(
            Operation::Attach {
                container: container.id.clone(),
                stdin: stdin.is_some(),
                stdout: stdout.is_some(),
                stderr: stderr.is_some(),
            },
            &fds,
        )
        .await
        .map_err(|error| Error::internal("failed to attach", error))?;
        // The shim has its own copies; ours would keep the streams from ending.
        drop(fds);

        let input = forward_input(streams.stdin.take(), stdin);
        let (out, err) = (streams.stdout.take(), streams.stderr.take());
        let output = async {
            let stdout = async {
                if let Some(stdout) = stdout {
                    forward_output(stdout, out).await;
                }
            };
            let stderr = async {
                if let Some(stderr) = stderr {
                    forward_output(stderr, err).await;
                }
            };
            tokio::join!(stdout, stderr);
        };
        let resize = async {
            while let Some(size) = streams.resize.recv().await {
                let operation = Operation::Resize {
                    container: container.id.clone(),
                    columns: size.columns,
                    rows: size.rows,
                };
                if let Err(error) = shim.call(operation, &[]).await {
                    tracing::debug!(container = container.id, error, "resizing a tty");
                }
            }
        };
        tokio::pin!(input, output, resize);
        let mut input_open = true;
        let mut resize_open = true;
        loop {
            tokio::select! {
                () = &mut output => return Ok(()),
                () = &mut input, if input_open => input_open = false,
                () = &mut resize, if resize_open => resize_open = false,
            }
        }
    }
}
