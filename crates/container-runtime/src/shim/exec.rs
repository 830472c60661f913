//! Running a process in a container that runs, in a short-lived process forked off the shim.
//!
//! Not libcontainer's tenant: that one leaves out the seccomp filter, which would make `kubectl exec` a way around it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;

use libcontainer::syscall::syscall::create_syscall;
use nix::sched::{CloneFlags, setns};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{
    ForkResult, Gid, Uid, chdir, dup2_stderr, dup2_stdin, dup2_stdout, fork, setgroups, setsid,
};

use super::create::{Stdio, exec as exec_program, report, set_environment};
use super::protocol::ExecProcess;
use crate::cgroup::Cgroup;

/// A running process: its pid and, with a tty, the tty's master.
#[derive(Debug)]
pub struct Executed {
    pub pid: i32,
    pub master: Option<OwnedFd>,
}

/// Starts the process. Runs in the helper process and returns once the program runs (or can't). `stdio` is `None` with a tty.
pub fn exec(
    init: i32,
    cgroup: &PathBuf,
    process: &ExecProcess,
    stdio: Option<Stdio>,
) -> Result<Executed, String> {
    // Opened while the node's filesystems are in sight.
    let cgroup_files = Cgroup::at(cgroup)
        .open_procs()
        .map_err(|error| format!("opening the container's cgroup: {error}"))?;
    let pidfd = rustix::process::pidfd_open(
        rustix::process::Pid::from_raw(init).ok_or("the container has no process")?,
        rustix::process::PidfdFlags::empty(),
    )
    .map_err(|error| format!("opening the container's process: {error}"))?;
    setns(
        &pidfd,
        CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWUTS
            | CloneFlags::CLONE_NEWNET
            | CloneFlags::CLONE_NEWPID
            | CloneFlags::CLONE_NEWCGROUP
            | CloneFlags::CLONE_NEWNS,
    )
    .map_err(|error| format!("entering the container: {error}"))?;

    let (master, stdio) = match stdio {
        Some(stdio) => (None, stdio),
        None => {
            let pty = nix::pty::openpty(None, None)
                .map_err(|error| format!("opening a tty in the container: {error}"))?;
            set_cloexec(&pty.master)?;
            let duplicate = |fd: &OwnedFd| {
                fd.try_clone()
                    .map_err(|error| format!("duplicating the tty: {error}"))
            };
            let stdio = Stdio {
                stdin: duplicate(&pty.slave)?,
                stdout: duplicate(&pty.slave)?,
                stderr: pty.slave,
            };
            (Some(pty.master), stdio)
        }
    };

    let (mut failure, report_failure) =
        std::io::pipe().map_err(|error| format!("making a pipe: {error}"))?;
    // A pid namespace is entered by a child only.
    // SAFETY: the helper has a single thread.
    match unsafe { fork() }.map_err(|error| format!("forking: {error}"))? {
        ForkResult::Child => {
            drop(failure);
            let error = run(process, &cgroup_files, stdio, master.is_some());
            report(report_failure.as_raw_fd(), &error);
            std::process::exit(128);
        }
        ForkResult::Parent { child } => {
            drop(report_failure);
            drop(stdio);
            let mut error = String::new();
            failure
                .read_to_string(&mut error)
                .map_err(|error| format!("waiting for the program: {error}"))?;
            if !error.is_empty() {
                return Err(error);
            }
            Ok(Executed {
                pid: child.as_raw(),
                master,
            })
        }
    }
}

/// The child: becomes the process. Returns only on failure.
fn run(process: &ExecProcess, cgroup: &[File], stdio: Stdio, tty: bool) -> String {
    match prepare(process, cgroup, stdio, tty) {
        Ok(()) => exec_program(process.process.args().as_deref().unwrap_or_default()),
        Err(error) => error,
    }
}

fn prepare(request: &ExecProcess, cgroup: &[File], stdio: Stdio, tty: bool) -> Result<(), String> {
    let process = &request.process;
    let user = process.user();
    let syscall = create_syscall();
    for mut procs in cgroup {
        // "0" is the writer, whatever its pid is in the reader's namespace.
        procs
            .write_all(b"0")
            .map_err(|error| format!("joining the container's cgroup: {error}"))?;
    }
    if let Some(score) = process.oom_score_adj() {
        let _ = std::fs::write("/proc/self/oom_score_adj", score.to_string());
    }
    setsid().map_err(|error| format!("setsid: {error}"))?;
    if tty {
        let _ = nix::unistd::fchown(stdio.stdin.as_fd(), Some(Uid::from_raw(user.uid())), None);
        rustix::process::ioctl_tiocsctty(&stdio.stdin)
            .map_err(|error| format!("setting the controlling tty: {error}"))?;
    }
    dup2_stdin(&stdio.stdin)
        .and_then(|()| dup2_stdout(&stdio.stdout))
        .and_then(|()| dup2_stderr(&stdio.stderr))
        .map_err(|error| format!("connecting the standard streams: {error}"))?;
    for rlimit in process.rlimits().iter().flatten() {
        syscall
            .set_rlimit(rlimit)
            .map_err(|error| format!("setting a resource limit: {error}"))?;
    }
    umask(
        user.umask()
            .and_then(Mode::from_bits)
            .unwrap_or(Mode::from_bits_truncate(0o022)),
    );
    let no_new_privileges = process.no_new_privileges().unwrap_or(false);
    if no_new_privileges {
        nix::sys::prctl::set_no_new_privs().map_err(|error| format!("no_new_privs: {error}"))?;
    }
    // Before the user changes, whose rights may not suffice; tried again after for directories only they may enter.
    let early = chdir(process.cwd());
    let groups: Vec<Gid> = user
        .additional_gids()
        .iter()
        .flatten()
        .map(|gid| Gid::from_raw(*gid))
        .collect();
    setgroups(&groups).map_err(|error| format!("setting the groups: {error}"))?;
    let filter = || match &request.seccomp {
        Some(seccomp) => libcontainer::seccomp::initialize_seccomp(seccomp)
            .map(drop)
            .map_err(|error| format!("loading the seccomp filter: {error}")),
        None => Ok(()),
    };
    become_user(Uid::from_raw(user.uid()), Gid::from_raw(user.gid()))
        .map_err(|error| format!("setting the user: {error}"))?;
    libcontainer::capabilities::reset_effective(syscall.as_ref())
        .map_err(|error| format!("setting capabilities: {error}"))?;
    // Without no_new_privs a filter may only be loaded with CAP_SYS_ADMIN, which goes with the others.
    if !no_new_privileges {
        filter()?;
    }
    if let Some(capabilities) = process.capabilities() {
        libcontainer::capabilities::drop_privileges(capabilities, syscall.as_ref())
            .map_err(|error| format!("dropping capabilities: {error}"))?;
    }
    if early.is_err() {
        chdir(process.cwd())
            .map_err(|error| format!("chdir to {}: {error}", process.cwd().display()))?;
    }
    set_environment(process.env().iter().flatten().map(|variable| {
        let (key, value) = variable.split_once('=').unwrap_or((variable, ""));
        (key.to_owned(), value.to_owned())
    }));
    if no_new_privileges {
        filter()?;
    }
    Ok(())
}

/// Changes the user but keeps the permitted capabilities, which are dropped to the wanted ones afterwards.
fn become_user(uid: Uid, gid: Gid) -> nix::Result<()> {
    nix::sys::prctl::set_keepcaps(true)?;
    nix::unistd::setresgid(gid, gid, gid)?;
    nix::unistd::setresuid(uid, uid, uid)?;
    nix::sys::prctl::set_keepcaps(false)
}

fn set_cloexec(fd: &OwnedFd) -> Result<(), String> {
    nix::fcntl::fcntl(
        fd,
        nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC),
    )
    .map(drop)
    .map_err(|error| format!("fcntl: {error}"))
}
