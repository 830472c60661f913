//! The shim's event loop.

mod containers;
mod execs;
mod streams;

use std::collections::HashMap;
use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::signal::{SigHandler, SigSet, Signal, signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, accept4, bind, listen, socket,
};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, setsid};

use super::container::Container;
use super::helper::{self, Helper};
use super::log::Stream;
use super::namespaces;
use super::protocol::{
    Answer, MAX_MESSAGE, Message, Operation, Ready, Request, ShimConfig, receive, send,
};

struct Shim {
    config: ShimConfig,
    epoll: Epoll,
    listener: OwnedFd,
    signals: SignalFd,
    pid_namespace: Option<i32>,
    sources: HashMap<u64, Source>,
    next_token: u64,
    clients: HashMap<u64, OwnedFd>,
    containers: HashMap<String, Container>,
    execs: HashMap<i32, RunningExec>,
    helpers: HashMap<u64, PendingHelper>,
    /// Who waits for a container's program to be executed.
    starts: HashMap<String, Caller>,
    /// Exits of processes that no helper has told us about yet.
    orphans: HashMap<i32, i32>,
    buffer: Vec<u8>,
    last_exec: u64,
}

/// What a watched descriptor is.
#[derive(Clone, Debug)]
enum Source {
    Listener,
    Signals,
    Client,
    Helper,
    ExecError(String),
    Output(String, Stream),
    Input(String),
    InputFrom(String),
    Sink(String),
}

/// Who gets an answer.
#[derive(Clone, Copy, Debug)]
struct Caller {
    client: u64,
    request: u64,
}

struct RunningExec {
    client: u64,
    exec: u64,
}

struct PendingHelper {
    helper: Helper,
    caller: Caller,
    work: Work,
}

enum Work {
    Create(Box<Container>),
    Exec,
}

type Outcome<T> = Result<T, String>;

/// Runs the shim until it is told to shut down.
pub fn main(config: &Path) -> ! {
    let mut shim = match Shim::start(config) {
        Ok(shim) => shim,
        Err(error) => {
            announce(&Ready {
                error: Some(error),
                pid_namespace: None,
            });
            std::process::exit(1);
        }
    };
    announce(&Ready {
        error: None,
        pid_namespace: shim.pid_namespace,
    });
    shim.run()
}

/// Tells the runtime that started us how it went, and lets go of its pipe.
fn announce(ready: &Ready) {
    if let Ok(json) = serde_json::to_vec(ready) {
        let _ = io::stdout().write_all(&json);
        let _ = io::stdout().flush();
    }
    if let Ok(null) = fs::File::options().write(true).open("/dev/null") {
        let _ = nix::unistd::dup2_stdout(&null);
    }
}

// === impl Shim ===

impl Shim {
    fn start(config: &Path) -> Outcome<Self> {
        let text =
            fs::read(config).map_err(|error| format!("reading {}: {error}", config.display()))?;
        let config: ShimConfig = serde_json::from_slice(&text)
            .map_err(|error| format!("parsing {}: {error}", config.display()))?;
        // Before Rust's own start-up, as in a test, nothing has done this yet.
        // SAFETY: ignoring a signal runs no code of ours in a handler.
        let _ = unsafe { signal(Signal::SIGPIPE, SigHandler::SigIgn) };
        // A leader of its own, so that no terminal or job control of the runtime reaches the containers.
        let _ = setsid();
        nix::sys::prctl::set_child_subreaper(true).map_err(|error| error.to_string())?;
        // Containers' scores are set explicitly; the shim itself should be the last to go.
        let _ = fs::write("/proc/self/oom_score_adj", "-998");
        let mut handled = SigSet::empty();
        handled.add(Signal::SIGCHLD);
        // A shim ends when it is told to, not when a session does.
        handled.add(Signal::SIGTERM);
        handled.add(Signal::SIGINT);
        handled.add(Signal::SIGHUP);
        handled.thread_block().map_err(|error| error.to_string())?;
        let signals =
            SignalFd::with_flags(&handled, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
                .map_err(|error| error.to_string())?;
        let pid_namespace = namespaces::enter(&config)?;
        let listener = listen_on(&config.socket)
            .map_err(|error| format!("listening on {}: {error}", config.socket.display()))?;
        let epoll =
            Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(|error| error.to_string())?;
        let mut shim = Self {
            config,
            epoll,
            listener,
            signals,
            pid_namespace,
            sources: HashMap::new(),
            next_token: 1,
            clients: HashMap::new(),
            containers: HashMap::new(),
            execs: HashMap::new(),
            helpers: HashMap::new(),
            starts: HashMap::new(),
            orphans: HashMap::new(),
            buffer: vec![0; MAX_MESSAGE],
            last_exec: 0,
        };
        let token = shim.token(Source::Listener);
        add(&shim.epoll, &shim.listener, EpollFlags::EPOLLIN, token)?;
        let token = shim.token(Source::Signals);
        add(&shim.epoll, &shim.signals, EpollFlags::EPOLLIN, token)?;
        Ok(shim)
    }

    fn run(&mut self) -> ! {
        let mut events = [EpollEvent::empty(); 32];
        loop {
            let ready = match self.epoll.wait(&mut events, EpollTimeout::NONE) {
                Ok(ready) => ready,
                Err(nix::Error::EINTR) => continue,
                Err(error) => {
                    eprintln!("epoll: {error}");
                    std::process::exit(1);
                }
            };
            for event in &events[..ready] {
                let token = event.data();
                // An earlier event of this round may have closed it.
                if let Some(source) = self.sources.get(&token).cloned() {
                    self.handle(token, source);
                }
            }
        }
    }

    fn handle(&mut self, token: u64, source: Source) {
        match source {
            Source::Listener => self.accept(),
            Source::Signals => self.signalled(),
            Source::Client => self.client_readable(token),
            Source::Helper => self.helper_done(token),
            Source::ExecError(id) => self.program_executed(token, &id),
            Source::Output(id, stream) => self.output_readable(token, &id, stream),
            Source::Input(id) => self.input_writable(&id),
            Source::InputFrom(id) => self.input_arrived(token, &id),
            Source::Sink(id) => self.sink_writable(&id),
        }
    }

    fn token(&mut self, source: Source) -> u64 {
        let token = self.next_token;
        self.next_token += 1;
        self.sources.insert(token, source);
        token
    }

    fn accept(&mut self) {
        let flags = SockFlag::SOCK_CLOEXEC;
        let Ok(fd) = accept4(self.listener.as_raw_fd(), flags) else {
            return;
        };
        use std::os::fd::FromRawFd;
        // SAFETY: accept just made this descriptor for us.
        let client = unsafe { OwnedFd::from_raw_fd(fd) };
        let token = self.token(Source::Client);
        if add(&self.epoll, &client, EpollFlags::EPOLLIN, token).is_ok() {
            self.clients.insert(token, client);
        }
    }

    fn client_readable(&mut self, token: u64) {
        let Some(client) = self.clients.get(&token) else {
            return;
        };
        match receive::<Request>(client.as_fd(), &mut self.buffer) {
            Ok(Some((request, fds))) => {
                let caller = Caller {
                    client: token,
                    request: request.id,
                };
                self.perform(caller, request.operation, fds);
            }
            Ok(None) => self.client_gone(token),
            Err(error) => {
                eprintln!("receiving a request: {error}");
                self.client_gone(token);
            }
        }
    }

    fn client_gone(&mut self, token: u64) {
        self.clients.remove(&token);
        self.sources.remove(&token);
    }

    fn perform(&mut self, caller: Caller, operation: Operation, fds: Vec<OwnedFd>) {
        let result = match operation {
            Operation::Create(request) => match self.create(caller, request) {
                Ok(()) => return,
                Err(error) => Err(error),
            },
            Operation::Start { container } => match self.start_container(caller, &container) {
                Ok(()) => return,
                Err(error) => Err(error),
            },
            Operation::Exec(request) => match self.exec(caller, &request, fds) {
                Ok(()) => return,
                Err(error) => Err(error),
            },
            Operation::Kill {
                container,
                signal,
                all,
            } => self.kill(&container, signal, all),
            Operation::Delete { container } => self.delete(&container),
            Operation::Attach {
                container,
                stdin,
                stdout,
                stderr,
            } => self.attach(&container, [stdin, stdout, stderr], fds),
            Operation::Resize {
                container,
                columns,
                rows,
            } => self.resize(&container, columns, rows),
            Operation::ReopenLog { container } => self.reopen_log(&container),
            Operation::State => Ok(self.state()),
            Operation::Shutdown => self.shutdown(caller),
        };
        self.answer(caller, result, &[]);
    }

    fn answer(&mut self, caller: Caller, result: Outcome<Answer>, fds: &[OwnedFd]) {
        let message = Message::Answer {
            id: caller.request,
            result,
        };
        self.tell(caller.client, &message, fds);
    }

    fn tell(&mut self, client: u64, message: &Message, fds: &[OwnedFd]) {
        let Some(socket) = self.clients.get(&client) else {
            return;
        };
        let raw: Vec<_> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        if let Err(error) = send(socket.as_fd(), message, &raw) {
            eprintln!("answering: {error}");
            self.client_gone(client);
        }
    }

    // --- helpers and exits ---

    fn await_helper(&mut self, helper: Helper, caller: Caller, work: Work) -> Outcome<()> {
        let token = self.token(Source::Helper);
        add(&self.epoll, &helper.socket, EpollFlags::EPOLLIN, token)?;
        self.helpers.insert(
            token,
            PendingHelper {
                helper,
                caller,
                work,
            },
        );
        Ok(())
    }

    fn helper_done(&mut self, token: u64) {
        self.sources.remove(&token);
        let Some(pending) = self.helpers.remove(&token) else {
            return;
        };
        let outcome = helper::outcome(&pending.helper.socket, &mut self.buffer);
        let caller = pending.caller;
        let result = match pending.work {
            Work::Create(made) => self.created(caller, *made, outcome),
            Work::Exec => self.executed(caller, outcome),
        };
        if let Err(error) = result {
            self.answer(caller, Err(error), &[]);
        }
        if self.helpers.is_empty() {
            self.orphans.clear();
        }
    }

    fn signalled(&mut self) {
        while let Ok(Some(_)) = self.signals.read_signal() {}
        loop {
            let (pid, code) = match waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid.as_raw(), code),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid.as_raw(), 128 + signal as i32),
                Ok(WaitStatus::StillAlive) | Err(_) => return,
                Ok(_) => continue,
            };
            let container = self
                .containers
                .iter()
                .find(|(_, container)| container.pid == pid && container.exit.is_none())
                .map(|(id, _)| id.clone());
            match container {
                Some(id) => self.container_exited(&id, code),
                None if self.execs.contains_key(&pid) => self.exec_exited(pid, code),
                // Perhaps a process whose helper's report we haven't read yet; any other is of no interest.
                None if !self.helpers.is_empty() => {
                    self.orphans.insert(pid, code);
                }
                None => {}
            }
        }
    }
}

// === impl Source ===

impl Source {
    fn container(&self) -> Option<&str> {
        match self {
            Source::ExecError(id)
            | Source::Output(id, _)
            | Source::Input(id)
            | Source::InputFrom(id)
            | Source::Sink(id) => Some(id),
            Source::Listener | Source::Signals | Source::Client | Source::Helper => None,
        }
    }
}

fn add(epoll: &Epoll, fd: impl AsFd, flags: EpollFlags, token: u64) -> Outcome<()> {
    epoll
        .add(fd, EpollEvent::new(flags, token))
        .map_err(|error| format!("watching a descriptor: {error}"))
}

fn listen_on(path: &PathBuf) -> nix::Result<OwnedFd> {
    let listener = socket(
        AddressFamily::Unix,
        SockType::SeqPacket,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        None,
    )?;
    let _ = fs::remove_file(path);
    bind(listener.as_raw_fd(), &UnixAddr::new(path)?)?;
    listen(&listener, Backlog::new(16)?)?;
    Ok(listener)
}

fn pipe() -> Outcome<(OwnedFd, OwnedFd)> {
    let (reader, writer) = io::pipe().map_err(|error| format!("making a pipe: {error}"))?;
    Ok((reader.into(), writer.into()))
}

fn now() -> i64 {
    i64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX)
}

fn unknown(id: &str) -> String {
    format!("no container {id}")
}
