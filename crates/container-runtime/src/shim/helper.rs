//! Forking a helper process off the shim: it does one thing that the shim must not do itself, reports, and ends.

use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::unistd::{ForkResult, fork};

use super::protocol::{receive, send};

/// A helper that runs: the socket its result will come from.
#[derive(Debug)]
pub struct Helper {
    pub socket: OwnedFd,
}

/// What a helper did: the pid of the process it made and a tty's master.
pub type Outcome = Result<(i32, Option<OwnedFd>), String>;

/// Forks and runs `work` in the child, which keeps only the descriptors in `keep` (and the standard ones) of ours:
/// a container that isn't started yet would otherwise hold other containers' pipes open.
pub fn spawn(keep: &[RawFd], work: impl FnOnce() -> Outcome) -> Result<Helper, String> {
    let (ours, theirs) = socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC,
    )
    .map_err(|error| format!("making a socket pair: {error}"))?;
    // SAFETY: the shim has a single thread.
    match unsafe { fork() }.map_err(|error| format!("forking: {error}"))? {
        ForkResult::Child => {
            let mut kept = keep.to_vec();
            kept.push(theirs.as_raw_fd());
            close_others(kept);
            let outcome = work();
            let (result, fds) = match &outcome {
                Ok((pid, master)) => (
                    Ok(*pid),
                    master.iter().map(AsRawFd::as_raw_fd).collect::<Vec<_>>(),
                ),
                Err(error) => (Err(error.clone()), Vec::new()),
            };
            let _ = send::<Result<i32, String>>(theirs.as_fd(), &result, &fds);
            // SAFETY: ends the process without running the shim's destructors, whose descriptors are closed already.
            unsafe { nix::libc::_exit(0) }
        }
        ForkResult::Parent { .. } => Ok(Helper { socket: ours }),
    }
}

/// What the helper reported; to be called when its socket is readable.
pub fn outcome(socket: &OwnedFd, buffer: &mut [u8]) -> Outcome {
    match receive::<Result<i32, String>>(socket.as_fd(), buffer) {
        Ok(Some((Ok(pid), fds))) => Ok((pid, fds.into_iter().next())),
        Ok(Some((Err(error), _))) => Err(error),
        Ok(None) => Err("the helper process died".to_owned()),
        Err(error) => Err(format!("reading the helper's result: {error}")),
    }
}

fn close_others(mut keep: Vec<RawFd>) {
    keep.sort_unstable();
    let mut first = 3u32;
    for fd in keep {
        let fd = fd.unsigned_abs();
        if fd < first {
            continue;
        }
        if fd > first {
            close_range(first, fd - 1);
        }
        first = fd + 1;
    }
    close_range(first, u32::MAX);
}

fn close_range(first: u32, last: u32) {
    // SAFETY: the helper uses none of these descriptors, and never runs their owners' destructors.
    unsafe { nix::libc::close_range(first, last, 0) };
}
