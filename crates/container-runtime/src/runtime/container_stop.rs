//! StopContainer.

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::container::{Container, Phase};
use super::{Error, Result, Runtime};
use crate::shim::protocol::Operation;

impl Runtime {
    /// Ends a container: its stop signal, and SIGKILL after `timeout` seconds. A missing one is fine.
    pub async fn stop_container(self: &Arc<Self>, id: &str, timeout: i64) -> Result<()> {
        let Ok(container) = self.container(id) else {
            return Ok(());
        };
        // One stop with a long grace period must not hold up another that is in a hurry, so no turn is taken.
        if container.phase() == Phase::Exited {
            return Ok(());
        }
        // A container that never started has no program to tell.
        if container.phase() == Phase::Running && timeout > 0 {
            let record = container.record();
            self.signal(&container, stop_signal(&record.stop_signal), false)
                .await?;
            let grace = Duration::from_secs(timeout.unsigned_abs());
            if tokio::time::timeout(grace, container.exited())
                .await
                .is_ok()
            {
                return Ok(());
            }
        }
        self.signal(&container, Signal::SIGKILL, true).await?;
        container.exited().await;
        Ok(())
    }

    async fn signal(&self, container: &Container, signal: Signal, all: bool) -> Result<()> {
        let Ok(shim) = container.sandbox.shim() else {
            // Its end is on the way: the shim took its containers along.
            return Ok(());
        };
        let operation = Operation::Kill {
            container: container.id.clone(),
            signal: signal as i32,
            all,
        };
        match shim.call(operation, &[]).await {
            Ok(_) => Ok(()),
            Err(_) if container.phase() == Phase::Exited => Ok(()),
            Err(error) => Err(Error::internal("failed to kill container", error)),
        }
    }
}

/// The image's stop signal: a name with or without `SIG`, or a number.
fn stop_signal(text: &str) -> Signal {
    let upper = text.to_ascii_uppercase();
    let name = if upper.starts_with("SIG") {
        upper
    } else {
        format!("SIG{upper}")
    };
    Signal::from_str(&name)
        .ok()
        .or_else(|| Signal::try_from(text.parse::<i32>().ok()?).ok())
        .unwrap_or(Signal::SIGTERM)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_names_or_numbers() {
        assert_eq!(stop_signal("SIGQUIT"), Signal::SIGQUIT);
        assert_eq!(stop_signal("int"), Signal::SIGINT);
        assert_eq!(stop_signal("9"), Signal::SIGKILL);
        assert_eq!(stop_signal(""), Signal::SIGTERM);
    }
}
