//! Where a test happens.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;
use tempfile::TempDir;

use crate::{Background, binary, cgroups, eventually, repository};

/// No single command takes longer, in seconds.
const COMMAND_LIMIT: &str = "120";

/// First process of a world: makes it private, says so, and takes in orphans until its standard input is closed, which
/// happens even if the test is killed. Then the kernel ends everything in the pid namespace.
const INIT: &str = r#"
set -e
mkdir -p /var/lib/fluyt /run/fluyt /run/netns
for d in /run/fluyt /run/netns; do mount -t tmpfs -o mode=755 e2e "$d"; done
case "$STATE" in
    /*) mount --bind "$STATE" /var/lib/fluyt ;;
    *) mount -t tmpfs -o "mode=755,size=$STATE" e2e /var/lib/fluyt ;;
esac
ip link set lo up
echo ready
read -r _ || true
"#;

/// Namespaces of a test's own, and what it runs in them.
pub struct World {
    init: Child,
    /// Open as long as the world is to be.
    _life: ChildStdin,
    /// Its first process, as the host counts.
    pid: u32,
    home: TempDir,
}

/// Where a world keeps the service's state.
#[derive(Clone, Copy)]
pub enum State {
    /// In memory: fast, and enough where the machine itself does not fail.
    Memory,
    /// In memory, and full at this size (of mount's `size=`).
    Limited(&'static str),
    /// On the disk, where durability costs what it costs.
    Disk,
}

/// How a command ended.
pub struct Outcome {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

// === impl World ===

impl World {
    /// Makes a world with nothing in it.
    ///
    /// # Errors
    /// Without root or a built binary.
    pub fn new(state: State) -> anyhow::Result<Self> {
        let binary = binary()?;
        // Beside the binary, so that it can be linked: a build that goes on meanwhile must not change it under the test.
        let home = TempDir::with_prefix_in(
            "e2e-",
            binary.parent().context("the binary is in no directory")?,
        )?;
        fs::create_dir(home.path().join("bin"))?;
        fs::hard_link(&binary, home.path().join("bin/fluyt"))?;
        let directory = home.path().join("state");
        fs::create_dir(&directory)?;
        let state = match state {
            State::Memory => "50%".as_ref(),
            State::Limited(size) => size.as_ref(),
            State::Disk => directory.as_os_str(),
        };
        let mut init = Command::new("unshare")
            .env("STATE", state)
            .args([
                "--mount",
                "--pid",
                "--net",
                "--fork",
                "--kill-child",
                "--mount-proc",
                "bash",
                "-c",
                INIT,
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("unshare (util-linux) is needed")?;
        let life = init.stdin.take().context("no standard input")?;
        let mut line = String::new();
        BufReader::new(init.stdout.take().context("no standard output")?).read_line(&mut line)?;
        ensure!(
            line.trim() == "ready",
            "namespaces cannot be made: is this root?"
        );
        let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", init.id()))?;
        let pid = children
            .trim()
            .parse()
            .context("the world has no first process")?;
        Ok(Self {
            init,
            _life: life,
            pid,
            home,
        })
    }

    /// Runs `test` in a new world; if it fails, shows what may explain that.
    ///
    /// # Errors
    /// The test's.
    pub fn run(state: State, test: impl FnOnce(&Self) -> anyhow::Result<()>) -> anyhow::Result<()> {
        let world = Self::new(state)?;
        let outcome = test(&world);
        if outcome.is_err() {
            world.explain();
        }
        outcome
    }

    /// As [`Self::run`], with the service running and logged in to.
    ///
    /// # Errors
    /// The test's.
    pub fn with_service(
        test: impl FnOnce(&Self, Background) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        Self::run(State::Memory, |world| {
            let service = world.serve()?;
            test(world, service)
        })
    }

    /// As [`Self::with_service`], with the cluster `demo` in the group `rg` and a kubeconfig for it.
    ///
    /// # Errors
    /// The test's.
    pub fn with_cluster(
        nodes: u32,
        test: impl FnOnce(&Self, Background) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        Self::with_service(|world, service| {
            world.create_cluster("demo", nodes)?;
            test(world, service)
        })
    }

    /// Starts the service and logs in.
    ///
    /// # Errors
    /// When it does not start.
    pub fn serve(&self) -> anyhow::Result<Background> {
        let mut service = self.background("exec fluyt serve")?;
        eventually("the service is ready", Duration::from_secs(60), || {
            if let Some(status) = service.child.try_wait()? {
                bail!("it ended, {status}: {}", service.output());
            }
            Ok(service
                .output()
                .contains("the service is ready")
                .then_some(()))
        })?;
        self.ok("fluyt login")?;
        Ok(service)
    }

    /// Makes a cluster and merges its kubeconfig.
    ///
    /// # Errors
    /// What `fluyt` says.
    pub fn create_cluster(&self, name: &str, nodes: u32) -> anyhow::Result<()> {
        self.ok("fluyt group create -n rg")?;
        self.ok(&format!(
            "fluyt aks create -g rg -n {name} --node-count {nodes} --node-vm-size Standard_D2s_v3"
        ))?;
        self.ok(&format!("fluyt aks get-credentials -g rg -n {name}"))?;
        Ok(())
    }

    /// A command that will run in this world, at the repository's root, with `fluyt`, `kubectl` and `helm` on its path.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        let repository = repository();
        let path = format!(
            "{}:{}:{}",
            self.home.path().join("bin").display(),
            repository.join(".cache/bin").display(),
            std::env::var("PATH").unwrap_or_default()
        );
        command
            .args(["-t", &self.pid.to_string(), "-m", "-p", "-n"])
            .arg(format!("--wd={}", repository.display()))
            // Nobody is left behind when the test ends what it started here.
            .args(["setpriv", "--pdeathsig", "KILL", program])
            .env("PATH", path)
            .env("HOME", self.home.path())
            .env("TMPDIR", self.home.path())
            .env_remove("KUBECONFIG")
            .stdin(Stdio::null());
        command
    }

    /// Runs a line of bash to its end, whatever that is.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn sh(&self, line: &str) -> anyhow::Result<Outcome> {
        let mut command = self.command("timeout");
        command.args([
            "-k",
            "2",
            COMMAND_LIMIT,
            "bash",
            "-o",
            "pipefail",
            "-ec",
            line,
        ]);
        let Output {
            status,
            stdout,
            stderr,
        } = command.output().context("nsenter (util-linux) is needed")?;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ok(Outcome {
            code: status.code().unwrap_or(-1),
            stdout: text(stdout),
            stderr: text(stderr),
        })
    }

    /// Runs a line of bash that must succeed; what it wrote, without the last line's end.
    ///
    /// # Errors
    /// When it fails.
    pub fn ok(&self, line: &str) -> anyhow::Result<String> {
        let outcome = self.sh(line)?;
        if outcome.code != 0 {
            bail!(
                "`{line}` ended with {}:\n{}{}",
                outcome.code,
                outcome.stdout,
                outcome.stderr
            );
        }
        Ok(outcome.stdout.trim_end().to_owned())
    }

    /// As [`Self::ok`], of what is JSON.
    ///
    /// # Errors
    /// When it fails or is not.
    pub fn json(&self, line: &str) -> anyhow::Result<Value> {
        serde_json::from_str(&self.ok(line)?)
            .with_context(|| format!("`{line}` did not write JSON"))
    }

    /// Runs a line of bash that must fail with `code` and say `message` on standard error.
    ///
    /// # Errors
    /// When it does anything else.
    pub fn fails(&self, code: i32, message: &str, line: &str) -> anyhow::Result<Outcome> {
        let outcome = self.sh(line)?;
        if outcome.code != code || !outcome.stderr.contains(message) {
            bail!(
                "`{line}` was to end with {code} and \"{message}\" but ended with {}:\n{}{}",
                outcome.code,
                outcome.stdout,
                outcome.stderr
            );
        }
        Ok(outcome)
    }

    /// Runs a line of bash until it writes what `is_wanted` accepts.
    ///
    /// # Errors
    /// When it does not, in `limit`.
    pub fn until(
        &self,
        limit: Duration,
        line: &str,
        is_wanted: impl Fn(&str) -> bool,
    ) -> anyhow::Result<String> {
        eventually(&format!("`{line}` as wanted"), limit, || {
            let outcome = self.sh(line)?;
            if outcome.code == 0 && is_wanted(outcome.stdout.trim_end()) {
                return Ok(Some(outcome.stdout.trim_end().to_owned()));
            }
            bail!(
                "it ended with {} and wrote:\n{}{}",
                outcome.code,
                outcome.stdout,
                outcome.stderr
            )
        })
    }

    /// Starts a line of bash beside the test.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn background(&self, line: &str) -> anyhow::Result<Background> {
        let (file, output) = tempfile::Builder::new()
            .prefix("background-")
            .tempfile_in(self.home.path())?
            .keep()?;
        // Killed together with it, even where `line` is more than one command.
        let child = self
            .command("bash")
            .args(["-ec", line])
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .context("nsenter (util-linux) is needed")?;
        Ok(Background { child, output })
    }

    /// A directory for files of the test.
    #[must_use]
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// Writes a file into [`Self::home`].
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn write(&self, name: &str, contents: &str) -> anyhow::Result<PathBuf> {
        let path = self.home.path().join(name);
        fs::write(&path, contents)?;
        Ok(path)
    }

    /// The directory of a cluster's data, as the world sees it. There must be one cluster.
    ///
    /// # Errors
    /// When there is none.
    pub fn cluster_directory(&self) -> anyhow::Result<String> {
        self.ok("ls -d /var/lib/fluyt/clusters/*")
    }

    /// Files `admin.crt` and `admin.key` in [`Self::home`], for curl; the address of the current cluster's API server.
    ///
    /// # Errors
    /// Without a kubeconfig.
    pub fn admin_files(&self) -> anyhow::Result<String> {
        let part =
            |path: &str| format!("kubectl config view --raw --minify -o jsonpath='{{.{path}}}'");
        for (field, file) in [("certificate", "admin.crt"), ("key", "admin.key")] {
            self.ok(&format!(
                "{} | base64 -d >$HOME/{file}",
                part(&format!("users[0].user.client-{field}-data"))
            ))?;
        }
        self.ok(&part("clusters[0].cluster.server"))
    }

    /// The number that a process recorded in a file, as the world counts.
    ///
    /// # Errors
    /// When there is no such file.
    pub fn recorded_pid(&self, file: &str) -> anyhow::Result<u32> {
        let id = self.json(&format!("cat {file}"))?;
        id["pid"]
            .as_u64()
            .and_then(|pid| pid.try_into().ok())
            .with_context(|| format!("{file} has no pid"))
    }

    /// The world's path as the host sees it.
    fn outside(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.pid))
    }

    /// Shows what the service, the clusters and the API know, for the log of a failed test.
    fn explain(&self) {
        let logs = "tail -n 30 /var/lib/fluyt/clusters/*/logs/*.log /var/lib/fluyt/clusters/*/nodes/*/*.log 2>/dev/null | cut -c -400";
        let warnings = "grep -hE ' (WARN|ERROR) ' -r /var/lib/fluyt/clusters/*/nodes/*/root/var/log --include=*.log 2>/dev/null | tail -n 40 | cut -c -400";
        let lines = [
            "tail -n 30 $HOME/background-* | cut -c -400",
            logs,
            warnings,
            "timeout 10 kubectl get nodes,pods -A -o wide",
            "timeout 10 kubectl get events -A | tail -n 40",
        ];
        for line in lines {
            if let Ok(outcome) = self.sh(line) {
                eprintln!("--- {line}\n{}{}", outcome.stdout, outcome.stderr);
            }
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let clusters = fs::read_dir(self.outside("/var/lib/fluyt/clusters")).map(|entries| {
            entries
                .flatten()
                .map(|e| e.file_name().to_string_lossy().into_owned())
                .collect::<Vec<_>>()
        });
        // The first process of a pid namespace does not go before all others have gone.
        let _ = self.init.kill();
        let _ = self.init.wait();
        let gone = eventually(
            "the world's processes are gone",
            Duration::from_secs(20),
            || Ok((!Path::new(&format!("/proc/{}", self.pid)).exists()).then_some(())),
        );
        if let Err(error) = gone {
            eprintln!("{error:#}");
        }
        for cluster in clusters.unwrap_or_default() {
            cgroups::remove(&cluster);
        }
    }
}
