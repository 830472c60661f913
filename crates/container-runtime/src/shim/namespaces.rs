//! The namespaces of a sandbox: the shim itself lives in them, so there is no pause container.

use std::io::{Read, Write};

use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::{ForkResult, Pid, fork, sethostname};

use super::protocol::ShimConfig;

/// Enters new namespaces as the sandbox wants. Returns the init of the shared pid namespace, if there is one.
pub fn enter(config: &ShimConfig) -> Result<Option<i32>, String> {
    let mut flags = CloneFlags::empty();
    flags.set(CloneFlags::CLONE_NEWNET, config.new_net);
    flags.set(CloneFlags::CLONE_NEWIPC, config.new_ipc);
    flags.set(CloneFlags::CLONE_NEWUTS, config.new_uts);
    if !flags.is_empty() {
        unshare(flags).map_err(|error| format!("making the sandbox's namespaces: {error}"))?;
    }
    if config.new_uts && !config.hostname.is_empty() {
        sethostname(&config.hostname).map_err(|error| format!("setting the hostname: {error}"))?;
    }
    for (key, value) in &config.sysctls {
        let path = format!("/proc/sys/{}", key.replace('.', "/"));
        std::fs::write(&path, value)
            .map_err(|error| format!("setting sysctl {key} to {value:?}: {error}"))?;
    }
    if config.new_pid {
        pid_namespace().map(Some)
    } else {
        Ok(None)
    }
}

/// Makes a pid namespace with an init that only reaps. `unshare` would move all later children of the caller there,
/// so a process in between does it and leaves the init to the shim, its subreaper.
fn pid_namespace() -> Result<i32, String> {
    let (mut reader, mut writer) =
        std::io::pipe().map_err(|error| format!("making a pipe: {error}"))?;
    // SAFETY: the shim has a single thread.
    match unsafe { fork() }.map_err(|error| format!("forking: {error}"))? {
        ForkResult::Child => {
            drop(reader);
            let made = unshare(CloneFlags::CLONE_NEWPID).and_then(|()| {
                // SAFETY: as above.
                unsafe { fork() }
            });
            match made {
                Ok(ForkResult::Child) => {
                    drop(writer);
                    // The runtime waits for the end of our output, which this process would hold open.
                    if let Ok(null) = std::fs::File::options().write(true).open("/dev/null") {
                        let _ = nix::unistd::dup2_stdout(&null);
                    }
                    reap_forever()
                }
                Ok(ForkResult::Parent { child }) => {
                    let _ = writer.write_all(&child.as_raw().to_ne_bytes());
                }
                Err(error) => {
                    let _ = writer.write_all(&(-(error as i32)).to_ne_bytes());
                }
            }
            std::process::exit(0)
        }
        ForkResult::Parent { child } => {
            drop(writer);
            let mut bytes = [0u8; 4];
            let read = reader.read_exact(&mut bytes);
            let _ = waitpid(child, None);
            read.map_err(|error| format!("making the pid namespace: {error}"))?;
            match i32::from_ne_bytes(bytes) {
                pid if pid > 0 => Ok(pid),
                errno => Err(format!(
                    "making the pid namespace: {}",
                    nix::Error::from_raw(-errno)
                )),
            }
        }
    }
}

/// The init of a shared pid namespace. SIGCHLD is blocked, as in all of the shim's processes, so none is missed.
fn reap_forever() -> ! {
    // It has no use without the shim, and its end is the end of the namespace's processes.
    let _ = nix::sys::prctl::set_pdeathsig(Signal::SIGKILL);
    let mut children = SigSet::empty();
    children.add(Signal::SIGCHLD);
    loop {
        while let Ok(status) = waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
            if status == nix::sys::wait::WaitStatus::StillAlive {
                break;
            }
        }
        let _ = children.wait();
    }
}
