//! The runtime's end of a shim: starting one, finding one again, and talking to it.

use std::collections::HashMap;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use parking_lot::Mutex;
use tokio::io::AsyncReadExt;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};

use super::protocol::{
    Answer, Exit, MAX_MESSAGE, Message, Operation, Ready, Request, ShimConfig, receive, send,
};

/// What a shim tells without being asked.
#[derive(Debug)]
pub enum Event {
    Exited {
        container: String,
        exit: Exit,
    },
    /// The shim is gone: it was shut down, or killed.
    Gone,
}

/// What came back for an operation.
#[derive(Debug)]
pub struct Reply {
    pub answer: Answer,
    pub fds: Vec<OwnedFd>,
    /// The exit code of an exec, once it is over. An error if the shim is gone.
    pub exec_exit: Option<oneshot::Receiver<i32>>,
}

/// A connection to a shim. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ShimClient {
    connection: Arc<Connection>,
}

#[derive(Debug)]
struct Connection {
    socket: AsyncFd<OwnedFd>,
    waiting: Mutex<HashMap<u64, oneshot::Sender<Result<Reply, String>>>>,
    next: AtomicU64,
}

/// Starts a shim and waits until it listens. Returns its pid and what it said.
pub async fn spawn(
    command: &[OsString],
    config_path: &Path,
    log: &Path,
) -> anyhow::Result<(i32, Ready)> {
    let (program, arguments) = command
        .split_first()
        .ok_or_else(|| anyhow::anyhow!("no shim command"))?;
    let log = std::fs::File::options()
        .create(true)
        .append(true)
        .open(log)?;
    let mut child = tokio::process::Command::new(program)
        .args(arguments)
        .arg(config_path)
        .arg0("fluyt-shim")
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()?;
    let pid = child
        .id()
        .and_then(|pid| i32::try_from(pid).ok())
        .unwrap_or_default();
    let mut said = Vec::new();
    if let Some(mut stdout) = child.stdout.take() {
        stdout.read_to_end(&mut said).await?;
    }
    // Reaps it whenever it ends, if that is before we do.
    tokio::spawn(async move { child.wait().await });
    let ready: Ready = serde_json::from_slice(&said)
        .map_err(|_| anyhow::anyhow!("the shim died before it was ready"))?;
    match &ready.error {
        Some(error) => anyhow::bail!("{error}"),
        None => Ok((pid, ready)),
    }
}

/// Writes the configuration that [`spawn`] names.
pub fn write_config(config: &ShimConfig, path: &Path) -> io::Result<()> {
    std::fs::write(path, serde_json::to_vec(config)?)
}

// === impl ShimClient ===

impl ShimClient {
    /// Connects to the shim that listens on `path`. Events go to `events` until [`Event::Gone`].
    pub fn connect(path: &Path, events: mpsc::UnboundedSender<Event>) -> io::Result<Self> {
        let fd = socket(
            AddressFamily::Unix,
            SockType::SeqPacket,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            None,
        )?;
        connect(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
        let connection = Arc::new(Connection {
            // SAFETY: the descriptor belongs to the `AsyncFd`, which deregisters it before closing it.
            socket: unsafe { AsyncFd::register(fd) }?,
            waiting: Mutex::new(HashMap::new()),
            next: AtomicU64::new(1),
        });
        // Lives as long as the shim: there is no reason to stop listening to one.
        tokio::spawn(read(Arc::clone(&connection), events));
        Ok(Self { connection })
    }

    /// Performs an operation. `fds` are lent to the shim for it.
    pub async fn call(&self, operation: Operation, fds: &[OwnedFd]) -> Result<Reply, String> {
        let connection = &self.connection;
        let id = connection.next.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        connection.waiting.lock().insert(id, sender);
        let request = Request { id, operation };
        let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let sent = connection
            .socket
            .async_io(tokio::io::Interest::WRITABLE, |socket| {
                send(socket.as_fd(), &request, &raw)
            })
            .await;
        if let Err(error) = sent {
            connection.waiting.lock().remove(&id);
            return Err(format!("talking to the shim: {error}"));
        }
        receiver
            .await
            .unwrap_or_else(|_| Err("the shim is gone".to_owned()))
    }
}

async fn read(connection: Arc<Connection>, events: mpsc::UnboundedSender<Event>) {
    let mut buffer = vec![0; MAX_MESSAGE];
    let mut execs: HashMap<u64, oneshot::Sender<i32>> = HashMap::new();
    loop {
        let received = connection
            .socket
            .async_io(tokio::io::Interest::READABLE, |socket| {
                receive::<Message>(socket.as_fd(), &mut buffer)
            })
            .await;
        let (message, fds) = match received {
            Ok(Some(received)) => received,
            Ok(None) => break,
            Err(error) => {
                tracing::debug!(%error, "reading from a shim");
                break;
            }
        };
        match message {
            Message::Answer { id, result } => {
                let waiting = connection.waiting.lock().remove(&id);
                let reply = result.map(|answer| {
                    let exec_exit = match &answer {
                        Answer::Exec { exec, .. } => {
                            let (sender, receiver) = oneshot::channel();
                            execs.insert(*exec, sender);
                            Some(receiver)
                        }
                        _ => None,
                    };
                    Reply {
                        answer,
                        fds,
                        exec_exit,
                    }
                });
                if let Some(waiting) = waiting {
                    // The caller may have given up.
                    let _ = waiting.send(reply);
                }
            }
            Message::Exited { container, exit } => {
                let _ = events.send(Event::Exited { container, exit });
            }
            Message::ExecExited { exec, code } => {
                if let Some(waiting) = execs.remove(&exec) {
                    let _ = waiting.send(code);
                }
            }
        }
    }
    connection.waiting.lock().clear();
    let _ = events.send(Event::Gone);
}
