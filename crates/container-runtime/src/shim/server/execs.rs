//! Processes that run in a container beside its program.

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};

use super::{Caller, Outcome, RunningExec, Shim, Work, unknown};
use crate::shim::create::Stdio;
use crate::shim::exec;
use crate::shim::helper;
use crate::shim::protocol::{Answer, Exec, ExecProcess, Message};

impl Shim {
    pub(super) fn exec(
        &mut self,
        caller: Caller,
        request: &Exec,
        fds: Vec<OwnedFd>,
    ) -> Outcome<()> {
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

    pub(super) fn executed(&mut self, caller: Caller, outcome: helper::Outcome) -> Outcome<()> {
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

    pub(super) fn exec_exited(&mut self, pid: i32, code: i32) {
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
}
