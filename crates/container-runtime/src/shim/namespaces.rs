//! The namespaces of a sandbox: the shim itself lives in them, so there is no pause container.

use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::{Pid, sethostname};

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

/// Makes a pid namespace with an init that only reaps. `unshare` would move all later children of the shim there, so
/// the init is cloned into it directly.
fn pid_namespace() -> Result<i32, String> {
    let flags = nix::libc::CLONE_NEWPID | nix::libc::SIGCHLD;
    // SAFETY: without a stack of its own it is a fork, and the shim has a single thread.
    let pid = unsafe { nix::libc::syscall(nix::libc::SYS_clone, flags, 0, 0, 0, 0) };
    match pid {
        0 => {
            // The runtime waits for the end of our output, which this process would hold open.
            if let Ok(null) = std::fs::File::options().write(true).open("/dev/null") {
                let _ = nix::unistd::dup2_stdout(&null);
            }
            reap_forever()
        }
        pid if pid > 0 => {
            i32::try_from(pid).map_err(|_| "making the pid namespace: strange pid".to_owned())
        }
        _ => Err(format!(
            "making the pid namespace: {}",
            std::io::Error::last_os_error()
        )),
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
