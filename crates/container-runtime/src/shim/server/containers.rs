//! Containers from their creation to their exit, and the pod's end.

use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use nix::sys::epoll::EpollFlags;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Caller, Outcome, Shim, Source, Work, add, now, pipe, unknown};
use crate::cgroup::Cgroup;
use crate::shim::container::{self, Container, Input, Output, Progress, resize};
use crate::shim::create::{self, Stdio};
use crate::shim::helper;
use crate::shim::log::{Log, Stream};
use crate::shim::protocol::{Answer, ContainerState, Create, Exit, Message};

/// Exit code of a container whose program could not be executed, as containerd reports it.
const START_FAILED: i32 = 128;

impl Shim {
    pub(super) fn create(&mut self, caller: Caller, request: Create) -> Outcome<()> {
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

    pub(super) fn created(
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

    pub(super) fn start_container(&mut self, caller: Caller, id: &str) -> Outcome<()> {
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
    pub(super) fn program_executed(&mut self, token: u64, id: &str) {
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

    pub(super) fn kill(&mut self, id: &str, signal: i32, all: bool) -> Outcome<Answer> {
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

    pub(super) fn delete(&mut self, id: &str) -> Outcome<Answer> {
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

    pub(super) fn resize(&mut self, id: &str, columns: u16, rows: u16) -> Outcome<Answer> {
        let container = self.containers.get(id).ok_or_else(|| unknown(id))?;
        match &container.input.fd {
            Some(master) if container.request.tty => resize(master, columns, rows)
                .map(|()| Answer::Done)
                .map_err(|error| format!("resizing the tty: {error}")),
            _ => Err(format!("container {id} has no tty")),
        }
    }

    pub(super) fn reopen_log(&mut self, id: &str) -> Outcome<Answer> {
        let container = self.containers.get_mut(id).ok_or_else(|| unknown(id))?;
        match &mut container.log {
            Some(log) => log
                .reopen()
                .map(|()| Answer::Done)
                .map_err(|error| format!("reopening the log: {error}")),
            None => Ok(Answer::Done),
        }
    }

    pub(super) fn state(&self) -> Answer {
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

    pub(super) fn shutdown(&mut self, caller: Caller) -> Outcome<Answer> {
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

    pub(super) fn container_exited(&mut self, id: &str, code: i32) {
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
