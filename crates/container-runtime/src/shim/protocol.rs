//! What the runtime and a shim say to each other.
//!
//! One JSON message per packet of a `SOCK_SEQPACKET` unix socket, file descriptors beside it as `SCM_RIGHTS`.
//! Whatever could grow large (the OCI bundle, an exec's process) goes through a file that the message names.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::PathBuf;

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, recvmsg, sendmsg};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Bytes that a message may have.
pub const MAX_MESSAGE: usize = 128 * 1024;
/// Descriptors that a message may carry: stdin, stdout and stderr.
const MAX_FDS: usize = 3;

/// What a shim is started with; the file named by `fluyt shim <file>`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ShimConfig {
    /// The sandbox's id.
    pub id: String,
    /// Where to listen.
    pub socket: PathBuf,
    /// Where exits are kept, one file per container.
    pub exits: PathBuf,
    /// Set in the sandbox's UTS namespace, if it has one of its own.
    pub hostname: String,
    pub new_net: bool,
    pub new_ipc: bool,
    pub new_uts: bool,
    /// The containers share a pid namespace, which an init of the shim holds.
    pub new_pid: bool,
    /// Of the pod, set in its namespaces: `net.ipv4.tcp_syncookies` → `1`.
    pub sysctls: Vec<(String, String)>,
}

/// What a shim says on its standard output once it listens (or fails to).
#[derive(Debug, Serialize, Deserialize)]
pub struct Ready {
    pub error: Option<String>,
    /// The init that holds the shared pid namespace.
    pub pid_namespace: Option<i32>,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Request {
    pub id: u64,
    pub operation: Operation,
}

#[derive(Debug, Serialize, Deserialize)]
pub enum Operation {
    Create(Create),
    /// Answered once the container's program runs, or couldn't be executed.
    Start {
        container: String,
    },
    /// Sends a signal to the container's first process, or to all of them.
    Kill {
        container: String,
        signal: i32,
        all: bool,
    },
    /// Forgets an exited container.
    Delete {
        container: String,
    },
    /// Descriptors: stdin, stdout, stderr; none with a tty, whose master comes back with the answer.
    Exec(Exec),
    /// Descriptors: those of stdin, stdout, stderr whose flag is set, in that order.
    Attach {
        container: String,
        stdin: bool,
        stdout: bool,
        stderr: bool,
    },
    Resize {
        container: String,
        columns: u16,
        rows: u16,
    },
    ReopenLog {
        container: String,
    },
    State,
    /// Ends the shim, and with it the sandbox's namespaces. Refused while a container runs.
    Shutdown,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Create {
    pub container: String,
    /// The OCI bundle, with its `config.json` and an empty `rootfs`.
    pub bundle: PathBuf,
    /// Where libcontainer keeps its state.
    pub state: PathBuf,
    /// What is mounted on `rootfs`, in the container's mount namespace only. `None`: it is mounted already.
    pub overlay: Option<Overlay>,
    /// Created in the root filesystem if missing.
    pub working_directory: PathBuf,
    pub log: Option<PathBuf>,
    pub stdin: bool,
    pub stdin_once: bool,
    pub tty: bool,
    /// As in the OCI spec, relative to the root of the hierarchies.
    pub cgroup: PathBuf,
    /// The container doesn't own a pid namespace, so its end doesn't end its processes.
    pub kill_all: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Overlay {
    /// Topmost first.
    pub lower: Vec<PathBuf>,
    pub upper: PathBuf,
    pub work: PathBuf,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Exec {
    pub container: String,
    /// An [`ExecProcess`] as JSON. The shim removes the file.
    pub process: PathBuf,
    pub tty: bool,
}

/// A process to run in a container.
#[derive(Debug, Serialize, Deserialize)]
pub struct ExecProcess {
    /// As of the container's own process, with `args` and `terminal` replaced.
    pub process: oci_spec::runtime::Process,
    pub seccomp: Option<oci_spec::runtime::LinuxSeccomp>,
}

/// How a container ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// 128 + signal if a signal ended it, as shells do.
    pub code: i32,
    /// Nanoseconds since the epoch.
    pub finished_at: i64,
    pub out_of_memory: bool,
    /// Why it could not be started, if it couldn't.
    pub start_error: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct ContainerState {
    pub container: String,
    pub pid: i32,
    pub started: bool,
    pub exit: Option<Exit>,
}

#[derive(Debug, Serialize, Deserialize)]
pub enum Message {
    Answer {
        id: u64,
        result: Result<Answer, String>,
    },
    Exited {
        container: String,
        exit: Exit,
    },
    /// To the connection that started it.
    ExecExited {
        exec: u64,
        code: i32,
    },
}

#[derive(Debug, Serialize, Deserialize)]
pub enum Answer {
    Done,
    Created {
        pid: i32,
    },
    /// With a tty, its master is beside the message.
    Exec {
        exec: u64,
        pid: i32,
    },
    State {
        containers: Vec<ContainerState>,
        pid_namespace: Option<i32>,
    },
}

/// Sends a message as one packet. Never waits: `WouldBlock` if the peer doesn't keep up.
pub fn send<T: Serialize>(socket: BorrowedFd<'_>, message: &T, fds: &[RawFd]) -> io::Result<()> {
    let bytes = serde_json::to_vec(message)?;
    if bytes.len() > MAX_MESSAGE {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "message too large",
        ));
    }
    let rights = [ControlMessage::ScmRights(fds)];
    let control: &[ControlMessage<'_>] = if fds.is_empty() { &[] } else { &rights };
    sendmsg::<UnixAddr>(
        socket.as_raw_fd(),
        &[IoSlice::new(&bytes)],
        control,
        MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT,
        None,
    )?;
    Ok(())
}

/// Receives one packet. `None` when the peer is gone.
pub fn receive<T: DeserializeOwned>(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut control = nix::cmsg_space!([RawFd; MAX_FDS]);
    let mut fds = Vec::new();
    let length = {
        let mut parts = [IoSliceMut::new(buffer)];
        let received = recvmsg::<UnixAddr>(
            socket.as_raw_fd(),
            &mut parts,
            Some(&mut control),
            MsgFlags::MSG_CMSG_CLOEXEC,
        )?;
        for message in received.cmsgs()? {
            if let ControlMessageOwned::ScmRights(received) = message {
                // SAFETY: the kernel just made these descriptors for us, and nothing else knows them.
                fds.extend(
                    received
                        .into_iter()
                        .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }),
                );
            }
        }
        received.bytes
    };
    if length == 0 {
        return Ok(None);
    }
    let message = serde_json::from_slice(&buffer[..length])?;
    Ok(Some((message, fds)))
}
