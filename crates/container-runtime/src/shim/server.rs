//! The shim's event loop.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::signal::{SigHandler, SigSet, Signal, kill, signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, accept4, bind, listen, socket,
};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, setsid};

use super::container::{Attachment, Container, Input, Output, Progress, Sink, resize};
use super::create::{self, Stdio};
use super::helper::{self, Helper};
use super::log::{Log, Stream};
use super::protocol::{
    Answer, ContainerState, Create, Exec, ExecProcess, Exit, MAX_MESSAGE, Message, Operation,
    Ready, Request, ShimConfig, receive, send,
};
use super::{container, exec, namespaces};
use crate::cgroup::Cgroup;

/// Bytes of input that are kept for a container that doesn't read.
const MAX_INPUT: usize = 64 * 1024;
/// Exit code of a container whose program could not be executed, as containerd reports it.
const START_FAILED: i32 = 128;

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

    // --- containers ---

    fn create(&mut self, caller: Caller, request: Create) -> Outcome<()> {
        if self.containers.contains_key(&request.container) {
            return Err(format!("container {} exists already", request.container));
        }
        let log = match &request.log {
            Some(path) => Some(
                Log::open(path.clone())
                    .map_err(|error| format!("opening log {}: {error}", path.display()))?,
            ),
            None => None,
        };
        let mut made = Container {
            pid: 0,
            started: false,
            start_error: None,
            exit: None,
            exec_error: None,
            stdout: None,
            stderr: None,
            input: Input::default(),
            log,
            attachments: Vec::new(),
            request,
        };
        let (exec_error, report_exec) = pipe()?;
        let stdio = if made.request.tty {
            None
        } else {
            let (stdout, their_stdout) = pipe()?;
            let (stderr, their_stderr) = pipe()?;
            made.stdout = Some(Output::new(stdout, Stream::Stdout).map_err(|e| e.to_string())?);
            made.stderr = Some(Output::new(stderr, Stream::Stderr).map_err(|e| e.to_string())?);
            let stdin = if made.request.stdin {
                let (their_stdin, stdin) = pipe()?;
                container::set_nonblocking(&stdin).map_err(|e| e.to_string())?;
                made.input.fd = Some(stdin);
                their_stdin
            } else {
                fs::File::open("/dev/null")
                    .map_err(|error| format!("opening /dev/null: {error}"))?
                    .into()
            };
            Some(Stdio {
                stdin,
                stdout: their_stdout,
                stderr: their_stderr,
            })
        };
        let mut keep = vec![report_exec.as_raw_fd()];
        if let Some(stdio) = &stdio {
            keep.extend([
                stdio.stdin.as_raw_fd(),
                stdio.stdout.as_raw_fd(),
                stdio.stderr.as_raw_fd(),
            ]);
        }
        let request = made.request.clone();
        let helper = helper::spawn(&keep, move || {
            create::create(&request, stdio, report_exec)
                .map(|created| (created.pid, created.master))
        })?;
        made.exec_error = Some(exec_error);
        self.await_helper(helper, caller, Work::Create(Box::new(made)))
    }

    fn created(
        &mut self,
        caller: Caller,
        mut made: Container,
        outcome: helper::Outcome,
    ) -> Outcome<()> {
        let (pid, master) = match outcome {
            Ok(done) => done,
            Err(error) => {
                let _ = Cgroup::at(&made.request.cgroup).remove();
                return Err(error);
            }
        };
        made.pid = pid;
        if let Some(master) = master {
            let input = master.try_clone().map_err(|error| error.to_string())?;
            made.stdout = Some(Output::new(master, Stream::Stdout).map_err(|e| e.to_string())?);
            made.input.fd = Some(input);
        }
        let id = made.request.container.clone();
        for stream in [Stream::Stdout, Stream::Stderr] {
            if let Some(output) = made.output(stream) {
                let token = self.next_token;
                self.next_token += 1;
                self.sources
                    .insert(token, Source::Output(id.clone(), stream));
                add(&self.epoll, &output.fd, EpollFlags::EPOLLIN, token)?;
            }
        }
        self.containers.insert(id.clone(), made);
        self.answer(caller, Ok(Answer::Created { pid }), &[]);
        if let Some(status) = self.orphans.remove(&pid) {
            self.container_exited(&id, status);
        }
        Ok(())
    }

    fn start_container(&mut self, caller: Caller, id: &str) -> Outcome<()> {
        let container = self.containers.get_mut(id).ok_or_else(|| unknown(id))?;
        if container.started {
            return Err(format!("container {id} was started already"));
        }
        if container.exit.is_some() {
            return Err(format!("container {id} has exited"));
        }
        let token = self.next_token;
        if let Some(fd) = &container.exec_error {
            add(&self.epoll, fd, EpollFlags::EPOLLIN, token)?;
        }
        notify_start(&container.request.state.join(id))
            .map_err(|error| format!("starting the container: {error}"))?;
        container.started = true;
        self.next_token += 1;
        self.sources.insert(token, Source::ExecError(id.to_owned()));
        self.starts.insert(id.to_owned(), caller);
        Ok(())
    }

    /// The pipe closed because the program was executed, or brought the reason why it couldn't be.
    fn program_executed(&mut self, token: u64, id: &str) {
        self.sources.remove(&token);
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        let mut error = String::new();
        if let Some(fd) = container.exec_error.take() {
            let _ = io::Read::read_to_string(&mut fs::File::from(fd), &mut error);
        }
        let result = if error.is_empty() {
            Ok(Answer::Done)
        } else {
            container.start_error = Some(error.clone());
            Err(error)
        };
        if let Some(caller) = self.starts.remove(id) {
            self.answer(caller, result, &[]);
        }
    }

    fn kill(&mut self, id: &str, signal: i32, all: bool) -> Outcome<Answer> {
        let container = self.containers.get(id).ok_or_else(|| unknown(id))?;
        if container.exit.is_some() {
            return Ok(Answer::Done);
        }
        let signal = Signal::try_from(signal).map_err(|_| format!("no such signal: {signal}"))?;
        if all {
            Cgroup::at(&container.request.cgroup).signal(signal);
            return Ok(Answer::Done);
        }
        // Our child until we reap it, so the number can't be another process's.
        match kill(Pid::from_raw(container.pid), signal) {
            Ok(()) | Err(nix::Error::ESRCH) => Ok(Answer::Done),
            Err(error) => Err(format!("signalling container {id}: {error}")),
        }
    }

    fn delete(&mut self, id: &str) -> Outcome<Answer> {
        let Some(container) = self.containers.get(id) else {
            return Ok(Answer::Done);
        };
        if container.exit.is_none() {
            return Err(format!("container {id} is running"));
        }
        let cgroup = Cgroup::at(&container.request.cgroup);
        cgroup.signal(Signal::SIGKILL);
        // What is still dying keeps the group for a moment; the pod's removal takes it then.
        let _ = cgroup.remove();
        let _ = fs::remove_dir_all(container.request.state.join(id));
        let tokens: Vec<u64> = self
            .sources
            .iter()
            .filter(|(_, source)| source.container() == Some(id))
            .map(|(token, _)| *token)
            .collect();
        for token in tokens {
            self.sources.remove(&token);
        }
        self.containers.remove(id);
        Ok(Answer::Done)
    }

    fn resize(&mut self, id: &str, columns: u16, rows: u16) -> Outcome<Answer> {
        let container = self.containers.get(id).ok_or_else(|| unknown(id))?;
        match &container.input.fd {
            Some(master) if container.request.tty => resize(master, columns, rows)
                .map(|()| Answer::Done)
                .map_err(|error| format!("resizing the tty: {error}")),
            _ => Err(format!("container {id} has no tty")),
        }
    }

    fn reopen_log(&mut self, id: &str) -> Outcome<Answer> {
        let container = self.containers.get_mut(id).ok_or_else(|| unknown(id))?;
        match &mut container.log {
            Some(log) => log
                .reopen()
                .map(|()| Answer::Done)
                .map_err(|error| format!("reopening the log: {error}")),
            None => Ok(Answer::Done),
        }
    }

    fn state(&self) -> Answer {
        Answer::State {
            containers: self
                .containers
                .iter()
                .map(|(id, container)| ContainerState {
                    container: id.clone(),
                    pid: container.pid,
                    started: container.started,
                    exit: container.exit.clone(),
                })
                .collect(),
            pid_namespace: self.pid_namespace,
        }
    }

    fn shutdown(&mut self, caller: Caller) -> Outcome<Answer> {
        if let Some((id, _)) = self
            .containers
            .iter()
            .find(|(_, container)| container.exit.is_none())
        {
            return Err(format!("container {id} is running"));
        }
        if !self.helpers.is_empty() {
            return Err("a container is being made".to_owned());
        }
        let _ = fs::remove_file(&self.config.socket);
        self.answer(caller, Ok(Answer::Done), &[]);
        if let Some(init) = self.pid_namespace {
            let _ = kill(Pid::from_raw(init), Signal::SIGKILL);
        }
        std::process::exit(0)
    }

    // --- exec ---

    fn exec(&mut self, caller: Caller, request: &Exec, fds: Vec<OwnedFd>) -> Outcome<()> {
        let text = fs::read(&request.process);
        let _ = fs::remove_file(&request.process);
        let text = text.map_err(|error| format!("reading the process: {error}"))?;
        let container = self
            .containers
            .get(&request.container)
            .ok_or_else(|| unknown(&request.container))?;
        if container.exit.is_some() || !container.started {
            return Err(format!("container {} is not running", request.container));
        }
        let stdio = match <[OwnedFd; 3]>::try_from(fds) {
            Ok([stdin, stdout, stderr]) if !request.tty => Some(Stdio {
                stdin,
                stdout,
                stderr,
            }),
            Err(none) if request.tty && none.is_empty() => None,
            _ => return Err("exec needs three streams or a tty".to_owned()),
        };
        let keep: Vec<_> = stdio
            .iter()
            .flat_map(|stdio| [&stdio.stdin, &stdio.stdout, &stdio.stderr])
            .map(AsRawFd::as_raw_fd)
            .collect();
        let pid = container.pid;
        let cgroup = container.request.cgroup.clone();
        // Parsed by the helper, so that its memory isn't ours.
        let helper = helper::spawn(&keep, move || {
            let process: ExecProcess = serde_json::from_slice(&text)
                .map_err(|error| format!("parsing the process: {error}"))?;
            exec::exec(pid, &cgroup, &process, stdio).map(|done| (done.pid, done.master))
        })?;
        self.await_helper(helper, caller, Work::Exec)
    }

    fn executed(&mut self, caller: Caller, outcome: helper::Outcome) -> Outcome<()> {
        let (pid, master) = outcome?;
        self.last_exec += 1;
        let exec = self.last_exec;
        let fds: Vec<OwnedFd> = master.into_iter().collect();
        self.answer(caller, Ok(Answer::Exec { exec, pid }), &fds);
        self.execs.insert(
            pid,
            RunningExec {
                client: caller.client,
                exec,
            },
        );
        if let Some(status) = self.orphans.remove(&pid) {
            self.exec_exited(pid, status);
        }
        Ok(())
    }

    fn exec_exited(&mut self, pid: i32, code: i32) {
        if let Some(running) = self.execs.remove(&pid) {
            self.tell(
                running.client,
                &Message::ExecExited {
                    exec: running.exec,
                    code,
                },
                &[],
            );
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

    fn container_exited(&mut self, id: &str, code: i32) {
        let exits = self.config.exits.clone();
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        let cgroup = Cgroup::at(&container.request.cgroup);
        let mut exit = Exit {
            code,
            finished_at: now(),
            out_of_memory: code != 0 && cgroup.oom_kills() > 0,
            start_error: None,
        };
        if let Some(fd) = container.exec_error.take()
            && let Some(error) = read_now(&fd)
        {
            container.start_error = Some(error);
        }
        if let Some(error) = &container.start_error {
            exit.code = START_FAILED;
            exit.start_error = Some(error.clone());
        }
        if container.request.kill_all {
            cgroup.signal(Signal::SIGKILL);
        }
        // Everything it wrote comes before the news of its end.
        for stream in [Stream::Stdout, Stream::Stderr] {
            while container.pump(stream) == Progress::More {}
        }
        container.exit = Some(exit.clone());
        container.input.fd = None;
        container.input.sources.clear();
        let _ = cgroup.remove();
        if let Err(error) = record_exit(&exits, id, &exit) {
            eprintln!("recording the exit of {id}: {error}");
        }
        self.settle(id);
        // It may end before we hear that it was executed.
        if let Some(caller) = self.starts.remove(id) {
            let result = match exit.start_error.clone() {
                Some(error) => Err(error),
                None => Ok(Answer::Done),
            };
            self.answer(caller, result, &[]);
        }
        let clients: Vec<u64> = self.clients.keys().copied().collect();
        for client in clients {
            self.tell(
                client,
                &Message::Exited {
                    container: id.to_owned(),
                    exit: exit.clone(),
                },
                &[],
            );
        }
    }

    // --- streams ---

    fn output_readable(&mut self, token: u64, id: &str, stream: Stream) {
        let Some(container) = self.containers.get_mut(id) else {
            self.sources.remove(&token);
            return;
        };
        if container.pump(stream) == Progress::Ended {
            self.sources.remove(&token);
        }
        self.settle(id);
    }

    fn sink_writable(&mut self, id: &str) {
        if let Some(container) = self.containers.get_mut(id) {
            for attachment in &mut container.attachments {
                for slot in [&mut attachment.stdout, &mut attachment.stderr] {
                    if let Some(sink) = slot
                        && !sink.flush()
                    {
                        self.sources.remove(&sink.token);
                        *slot = None;
                    }
                }
            }
        }
        self.settle(id);
    }

    /// Brings what is watched in line with what the container and its clients can do now: clients that are behind
    /// are waited for, and the container's output isn't read meanwhile.
    fn settle(&mut self, id: &str) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        let over = container.stdout.is_none() && container.stderr.is_none();
        for attachment in &mut container.attachments {
            for slot in [&mut attachment.stdout, &mut attachment.stderr] {
                let Some(sink) = slot else {
                    continue;
                };
                let behind = !sink.pending.is_empty();
                if behind && !sink.watched {
                    sink.watched =
                        add(&self.epoll, &sink.fd, EpollFlags::EPOLLOUT, sink.token).is_ok();
                } else if !behind && sink.watched {
                    let _ = self.epoll.delete(&sink.fd);
                    sink.watched = false;
                }
                if over && !behind {
                    self.sources.remove(&sink.token);
                    *slot = None;
                }
            }
        }
        container
            .attachments
            .retain(|attachment| !attachment.is_over());
        let stalled = container.is_stalled();
        for stream in [Stream::Stdout, Stream::Stderr] {
            let Some(output) = container.output(stream) else {
                continue;
            };
            if stalled && !output.paused {
                output.paused = self.epoll.delete(&output.fd).is_ok();
            } else if !stalled && output.paused {
                let token = self
                    .sources
                    .iter()
                    .find(|(_, source)| matches!(source, Source::Output(of, which) if of == id && *which == stream))
                    .map(|(token, _)| *token);
                if let Some(token) = token
                    && add(&self.epoll, &output.fd, EpollFlags::EPOLLIN, token).is_ok()
                {
                    output.paused = false;
                }
            }
        }
    }

    fn attach(&mut self, id: &str, wanted: [bool; 3], fds: Vec<OwnedFd>) -> Outcome<Answer> {
        let mut fds = fds.into_iter();
        let mut next = |wanted: bool| wanted.then(|| fds.next()).flatten();
        let [stdin, stdout, stderr] = wanted.map(&mut next);
        if !self.containers.contains_key(id) {
            return Err(unknown(id));
        }
        let mut sink = |fd: Option<OwnedFd>| -> Outcome<Option<Sink>> {
            let Some(fd) = fd else {
                return Ok(None);
            };
            let token = self.token(Source::Sink(id.to_owned()));
            Sink::new(token, fd)
                .map(Some)
                .map_err(|error| error.to_string())
        };
        let attachment = Attachment {
            stdout: sink(stdout)?,
            stderr: sink(stderr)?,
        };
        let token = stdin
            .as_ref()
            .map(|_| self.token(Source::InputFrom(id.to_owned())));
        let container = self.containers.get_mut(id).ok_or_else(|| unknown(id))?;
        if container.exit.is_some() {
            return Err(format!("container {id} has exited"));
        }
        if let (Some(stdin), Some(token)) = (stdin, token) {
            if container.input.fd.is_none() {
                return Err(format!("container {id} has no standard input"));
            }
            container::set_nonblocking(&stdin).map_err(|error| error.to_string())?;
            add(&self.epoll, &stdin, EpollFlags::EPOLLIN, token)?;
            container.input.sources.push((token, stdin));
        }
        if !attachment.is_over() {
            container.attachments.push(attachment);
        }
        Ok(Answer::Done)
    }

    /// An attached client sent input.
    fn input_arrived(&mut self, token: u64, id: &str) {
        let Some(container) = self.containers.get_mut(id) else {
            self.sources.remove(&token);
            return;
        };
        let input = &mut container.input;
        let Some(position) = input.sources.iter().position(|(other, _)| *other == token) else {
            self.sources.remove(&token);
            return;
        };
        let mut chunk = [0u8; 4096];
        match nix::unistd::read(&input.sources[position].1, &mut chunk) {
            Ok(0) => {
                input.sources.remove(position);
                self.sources.remove(&token);
                if container.request.stdin_once
                    && !container.request.tty
                    && input.sources.is_empty()
                {
                    input.flush();
                    if input.pending.is_empty() {
                        input.fd = None;
                    }
                }
            }
            Ok(length) => input.pending.extend_from_slice(&chunk[..length]),
            Err(nix::Error::EAGAIN | nix::Error::EINTR) => {}
            Err(_) => {
                input.sources.remove(position);
                self.sources.remove(&token);
            }
        }
        self.input_writable(id);
    }

    /// Passes input on, and waits for the container where it doesn't take it.
    fn input_writable(&mut self, id: &str) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        let once = container.request.stdin_once && !container.request.tty;
        let input = &mut container.input;
        if !input.flush() {
            // Nobody reads it any more.
            input.fd = None;
            for (token, _) in input.sources.drain(..) {
                self.sources.remove(&token);
            }
            return;
        }
        let waiting = !input.pending.is_empty();
        if !waiting && once && input.sources.is_empty() && input.blocked {
            input.fd = None;
            input.blocked = false;
            return;
        }
        let Some(fd) = &input.fd else {
            return;
        };
        if waiting && !input.blocked {
            let token = self.next_token;
            self.next_token += 1;
            self.sources.insert(token, Source::Input(id.to_owned()));
            // A tty's master is a second descriptor of what is watched for output already, which epoll allows.
            input.blocked = add(&self.epoll, fd, EpollFlags::EPOLLOUT, token).is_ok();
            if input.pending.len() >= MAX_INPUT {
                for (_, source) in &input.sources {
                    let _ = self.epoll.delete(source);
                }
            }
        } else if !waiting && input.blocked {
            let _ = self.epoll.delete(fd);
            input.blocked = false;
            for (token, source) in &input.sources {
                // Present already unless the client was too fast.
                let _ = add(&self.epoll, source, EpollFlags::EPOLLIN, *token);
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

/// Tells libcontainer's waiting process to go on. Its socket's path may be too long for an address, hence the
/// change of directory.
fn notify_start(state: &Path) -> io::Result<()> {
    let back = std::env::current_dir()?;
    std::env::set_current_dir(state)?;
    let connected = std::os::unix::net::UnixStream::connect("notify.sock");
    std::env::set_current_dir(back)?;
    connected?.write_all(b"start container")
}

/// Text that is in a pipe now, without waiting for more.
fn read_now(fd: &OwnedFd) -> Option<String> {
    container::set_nonblocking(fd).ok()?;
    let mut text = [0u8; 4096];
    match nix::unistd::read(fd, &mut text) {
        Ok(length) if length > 0 => Some(String::from_utf8_lossy(&text[..length]).into_owned()),
        _ => None,
    }
}

/// Keeps an exit for a runtime that isn't there to hear of it.
fn record_exit(directory: &Path, id: &str, exit: &Exit) -> io::Result<()> {
    let temporary = directory.join(format!(".{id}"));
    fs::write(&temporary, serde_json::to_vec(exit)?)?;
    fs::rename(temporary, directory.join(id))
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
