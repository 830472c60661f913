//! Processes that outlive the one that started them: recognised by more than their number, and waited for through a
//! pidfd, so it does not matter whose children they are.

use std::io;
use std::os::fd::OwnedFd;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use tokio::io::unix::AsyncFd;

/// A process, told apart from later ones of the same number by when it began.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProcessId {
    pub pid: i32,
    /// Clock ticks since boot.
    pub start_time: u64,
    /// Numbers and ticks start again at boot.
    pub boot_id: String,
}

/// A running process.
pub struct Process {
    id: ProcessId,
    pidfd: AsyncFd<OwnedFd>,
}

// === impl ProcessId ===

impl ProcessId {
    /// Identifies a process that runs now.
    ///
    /// # Errors
    /// When there is none of this number.
    pub fn of(pid: i32) -> io::Result<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let (state, start_time) = parse_stat(&stat)
            .ok_or_else(|| io::Error::other("/proc/<pid>/stat is not as known"))?;
        if matches!(state, 'Z' | 'X') {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(Self {
            pid,
            start_time,
            boot_id: boot_id()?,
        })
    }

    /// Opens the process, if it still runs.
    ///
    /// # Errors
    /// When the kernel has no pidfds or no descriptor is left.
    pub fn open(&self) -> io::Result<Option<Process>> {
        let Some(pid) = Pid::from_raw(self.pid) else {
            return Ok(None);
        };
        let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            Err(rustix::io::Errno::SRCH) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        };
        // Looked at after opening: the number can't have changed hands in between.
        match Self::of(self.pid) {
            Ok(now) if now == *self => {
                // SAFETY: the descriptor is owned by the AsyncFd: it stays open, and the same, as long as it is registered.
                #[expect(unsafe_code)]
                let pidfd = unsafe { AsyncFd::register(pidfd) }?;
                Ok(Some(Process { id: now, pidfd }))
            }
            _ => Ok(None),
        }
    }
}

// === impl Process ===

impl Process {
    #[must_use]
    pub fn id(&self) -> &ProcessId {
        &self.id
    }

    /// Resolves when the process has ended.
    pub async fn ended(&self) {
        // An error can only mean that the runtime is going down.
        let _ = self.pidfd.readable().await;
    }

    /// Sends a signal; a process that has ended is fine.
    pub fn signal(&self, signal: Signal) {
        if let Err(errno) = pidfd_send_signal(self.pidfd.get_ref(), signal)
            && errno != rustix::io::Errno::SRCH
        {
            tracing::warn!(pid = self.id.pid, %errno, "cannot signal a process");
        }
    }

    /// Asks the process to end, and kills it after `grace`.
    pub async fn stop(&self, grace: std::time::Duration) {
        self.signal(Signal::TERM);
        if tokio::time::timeout(grace, self.ended()).await.is_err() {
            tracing::warn!(
                pid = self.id.pid,
                "a process did not end in time and is killed"
            );
            self.signal(Signal::KILL);
            self.ended().await;
        }
    }
}

/// State and start time. The command's name, in parentheses, may hold anything.
fn parse_stat(stat: &str) -> Option<(char, u64)> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

fn boot_id() -> io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?
        .trim()
        .to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_parentheses_do_not_confuse() {
        let stat = "12 (a) b) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 20";
        assert_eq!(parse_stat(stat), Some(('S', 4242)));
        assert_eq!(parse_stat("12 (a"), None);
    }

    #[tokio::test]
    async fn a_process_is_found_again_until_it_ends() {
        let mut child = std::process::Command::new("sleep")
            .arg("100")
            .spawn()
            .unwrap();
        let id = ProcessId::of(child.id().cast_signed()).unwrap();
        let process = id.open().unwrap().unwrap();
        process.stop(std::time::Duration::from_secs(5)).await;
        child.wait().unwrap();
        assert!(id.open().unwrap().is_none());
        let other = ProcessId {
            start_time: 1,
            ..ProcessId::of(std::process::id().cast_signed()).unwrap()
        };
        assert!(other.open().unwrap().is_none());
    }
}
