//! Making a container with libcontainer, in a short-lived process forked off the shim.
//!
//! libcontainer changes its process (dumpable, OOM score, working directory) and allocates freely, so the shim itself
//! never calls it. The container's first process becomes the shim's child when the helper ends: the shim is its subreaper.

use std::collections::HashMap;
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::oci_spec::runtime::Spec;
use libcontainer::syscall::syscall::SyscallType;
use libcontainer::workload::{Executor, ExecutorError, ExecutorValidationError};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal, signal, sigprocmask};
use nix::unistd::execvp;

use super::protocol::{Create, Overlay};
use crate::in_root;

/// Where libcontainer hands over the terminal of a container, in its bundle.
const CONSOLE: &str = "console.sock";

/// The ends of the container's standard streams that the container gets.
#[derive(Debug)]
pub struct Stdio {
    pub stdin: OwnedFd,
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
}

/// A made container: the pid of its first process, which waits to be started, and the tty's master.
#[derive(Debug)]
pub struct Created {
    pub pid: i32,
    pub master: Option<OwnedFd>,
}

/// Makes the container. Runs in the helper process. `stdio` is `None` with a tty. Whoever holds the other end of
/// `exec_error` learns why the program could not be executed, or sees it closed by a successful `execve`.
pub fn create(
    request: &Create,
    stdio: Option<Stdio>,
    exec_error: OwnedFd,
) -> Result<Created, String> {
    let rootfs = request.bundle.join("rootfs");
    if let Some(overlay) = &request.overlay {
        mount_overlay(overlay, &rootfs)
            .map_err(|error| format!("mounting the root filesystem: {error}"))?;
    }
    in_root::create_dir_all(&rootfs, &request.working_directory)
        .map_err(|error| format!("creating the working directory: {error}"))?;

    let state = request.state.join(&request.container);
    // What a crashed attempt left behind would be taken for a living container.
    let _ = fs::remove_dir_all(&state);

    let console = request.bundle.join(CONSOLE);
    let mut builder = ContainerBuilder::new(request.container.clone(), SyscallType::default())
        .with_root_path(&request.state)
        .map_err(describe)?
        .with_executor(Program {
            exec_error: exec_error.as_raw_fd(),
        });
    let listener = match stdio {
        Some(stdio) => {
            builder = builder
                .with_stdin(stdio.stdin)
                .with_stdout(stdio.stdout)
                .with_stderr(stdio.stderr);
            None
        }
        None => {
            let _ = fs::remove_file(&console);
            // The path may be longer than an address of a socket: it is bound from within its directory.
            let listener = fs::File::open(&request.bundle)
                .and_then(|bundle| {
                    let short = format!("/proc/self/fd/{}/{CONSOLE}", bundle.as_raw_fd());
                    std::os::unix::net::UnixListener::bind(short)
                })
                .map_err(|error| format!("listening on {}: {error}", console.display()))?;
            builder = builder.with_console_socket(Some(&console));
            Some(listener)
        }
    };
    let container = builder
        .as_init(&request.bundle)
        .with_systemd(false)
        .with_detach(true)
        .build()
        .map_err(describe)?;
    let pid = container
        .pid()
        .ok_or("libcontainer made a container without a process")?
        .as_raw();
    let master = match listener {
        Some(listener) => Some(
            receive_master(&listener)
                .map_err(|error| format!("receiving the container's tty: {error}"))?,
        ),
        None => None,
    };
    Ok(Created { pid, master })
}

/// The whole chain of causes: libcontainer's own messages are only the outermost.
fn describe(error: impl std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        cause = inner.source();
    }
    text
}

/// Mounts the container's root in a mount namespace of our own, which libcontainer's is a copy of: when the
/// container's last process ends, so does the mount, and nobody has to undo it.
fn mount_overlay(overlay: &Overlay, target: &Path) -> nix::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(
        None::<&str>,
        "/",
        None::<&str>,
        MsFlags::MS_REC | MsFlags::MS_SLAVE,
        None::<&str>,
    )?;
    mount_overlay_relative(overlay, target)
}

/// Mounts the overlay in the mount namespace of the caller.
pub fn mount_overlay_here(overlay: &Overlay, target: &Path) -> nix::Result<()> {
    mount_with(overlay, target, |path| path.to_owned())
}

/// Mounts the overlay with its layers' paths relative to their common directory, where it changes to for the moment:
/// so the options of an image with many layers stay below a page.
fn mount_overlay_relative(overlay: &Overlay, target: &Path) -> nix::Result<()> {
    let Some(base) = overlay
        .lower
        .first()
        .and_then(|path| path.parent()?.parent())
    else {
        return mount_overlay_here(overlay, target);
    };
    nix::unistd::chdir(base)?;
    let mounted = mount_with(overlay, target, |path| {
        path.strip_prefix(base).unwrap_or(path).to_owned()
    });
    nix::unistd::chdir("/")?;
    mounted
}

fn mount_with(
    overlay: &Overlay,
    target: &Path,
    name: impl Fn(&Path) -> PathBuf,
) -> nix::Result<()> {
    let mut options = b"lowerdir=".to_vec();
    for (index, lower) in overlay.lower.iter().enumerate() {
        if index > 0 {
            options.push(b':');
        }
        options.extend_from_slice(name(lower).as_os_str().as_bytes());
    }
    options.extend_from_slice(b",upperdir=");
    options.extend_from_slice(overlay.upper.as_os_str().as_bytes());
    options.extend_from_slice(b",workdir=");
    options.extend_from_slice(overlay.work.as_os_str().as_bytes());
    let options = CString::new(options).map_err(|_| nix::Error::EINVAL)?;
    mount(
        Some("overlay"),
        target,
        Some("overlay"),
        MsFlags::empty(),
        Some(options.as_c_str()),
    )
}

fn receive_master(listener: &std::os::unix::net::UnixListener) -> io::Result<OwnedFd> {
    use nix::sys::socket::{ControlMessageOwned, MsgFlags, UnixAddr, recvmsg};
    use std::os::fd::FromRawFd;

    let (connection, _) = listener.accept()?;
    let mut name = [0u8; 256];
    let mut parts = [io::IoSliceMut::new(&mut name)];
    let mut control = nix::cmsg_space!([RawFd; 1]);
    let received = recvmsg::<UnixAddr>(
        connection.as_fd().as_raw_fd(),
        &mut parts,
        Some(&mut control),
        MsgFlags::MSG_CMSG_CLOEXEC,
    )?;
    for message in received.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = message
            && let [fd] = fds[..]
        {
            // SAFETY: the kernel just made this descriptor for us, and nothing else knows it.
            return Ok(unsafe { OwnedFd::from_raw_fd(fd) });
        }
    }
    Err(io::Error::other("no descriptor came with the message"))
}

/// Runs the container's program, and tells the shim if that fails. libcontainer's own executor looks for the program
/// already when the container is made, where Kubernetes expects it to fail when it is started.
#[derive(Clone)]
struct Program {
    exec_error: RawFd,
}

// === impl Program ===

impl Executor for Program {
    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let args = spec
            .process()
            .as_ref()
            .and_then(|process| process.args().as_ref())
            .ok_or(ExecutorError::InvalidArg)?;
        let error = exec(args);
        report(self.exec_error, &error);
        Err(ExecutorError::Other(error))
    }

    fn validate(&self, _spec: &Spec) -> Result<(), ExecutorValidationError> {
        Ok(())
    }

    fn setup_envs(
        &self,
        envs: HashMap<String, String>,
    ) -> Result<(), libcontainer::workload::ExecutorSetEnvsError> {
        set_environment(envs.into_iter());
        Ok(())
    }
}

/// Replaces the process's environment.
pub fn set_environment(variables: impl Iterator<Item = (String, String)>) {
    let old: Vec<_> = std::env::vars_os().map(|(key, _)| key).collect();
    for key in old {
        // SAFETY: the helper has a single thread.
        unsafe { std::env::remove_var(key) };
    }
    for (key, value) in variables {
        if key.is_empty() || key.contains(['=', '\0']) || value.contains('\0') {
            continue;
        }
        // SAFETY: as above.
        unsafe { std::env::set_var(key, value) };
    }
}

/// Replaces the process by the program; returns only if that failed, with runc's words.
pub fn exec(args: &[String]) -> String {
    // Rust ignores SIGPIPE and the shim blocks SIGCHLD; a program starts with neither.
    // SAFETY: setting the default disposition runs no code of ours in a handler.
    let _ = unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) };
    let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None);
    let program = args.first().map(String::as_str).unwrap_or_default();
    let converted: Result<Vec<CString>, _> = args
        .iter()
        .map(|arg| CString::new(arg.as_bytes()))
        .collect();
    let Ok(converted) = converted else {
        return format!("exec: {program:?}: argument contains a NUL byte");
    };
    let Some(name) = converted.first().filter(|name| !name.is_empty()) else {
        return "exec: no command specified".to_owned();
    };
    match execvp(name, &converted) {
        Err(nix::Error::ENOENT) if !program.contains('/') => {
            format!("exec: {program:?}: executable file not found in $PATH: unknown")
        }
        Err(nix::Error::ENOENT) => {
            format!("exec: {program:?}: stat {program}: no such file or directory: unknown")
        }
        Err(nix::Error::EACCES) => format!("exec: {program:?}: permission denied: unknown"),
        Err(errno) => format!("exec: {program:?}: {}: unknown", errno.desc()),
        Ok(never) => match never {},
    }
}

/// Writes to a descriptor that is known by number only, because it crossed forks.
pub fn report(fd: RawFd, text: &str) {
    // SAFETY: the number names the pipe that our caller keeps open until the process ends.
    let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) };
    let _ = nix::unistd::write(fd, text.as_bytes());
}
