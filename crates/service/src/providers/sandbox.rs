//! Provider `sandbox`: a machine is a set of namespaces and a control group on this host. Needs only root.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use async_trait::async_trait;

use super::init::Setup;
use super::{Machine, NodeProvider, cgroup};
use crate::files;
use crate::process::{Process, ProcessId};

/// How long a machine may take to shut down.
const GRACE: Duration = Duration::from_secs(10);

/// Makes machines out of namespaces.
pub struct Sandbox {
    /// The image store that all machines share.
    pub image_store: PathBuf,
}

#[async_trait]
impl NodeProvider for Sandbox {
    async fn create(&self, machine: &Machine) -> anyhow::Result<()> {
        let root = root(machine);
        for directory in ["etc", "var", "root"] {
            fs::create_dir_all(root.join(directory))
                .with_context(|| format!("creating {}", root.display()))?;
        }
        for file in &machine.files {
            let inside = file.path.strip_prefix("/").unwrap_or(&file.path);
            files::write_private(&root.join(inside), file.contents.as_bytes())?;
        }
        Ok(())
    }

    async fn start(&self, machine: &Machine) -> anyhow::Result<Process> {
        let group = group(machine);
        // What a crash left in the group would count against the new machine.
        let (milli_cpu, memory) = (machine.milli_cpu, machine.memory_bytes);
        let of = group.clone();
        tokio::task::spawn_blocking(move || {
            cgroup::remove(&of)?;
            cgroup::create(&of, milli_cpu, memory)
        })
        .await??;
        let setup = Setup {
            hostname: machine.name.clone(),
            address: machine.address,
            cgroup: group,
            root: root(machine),
            image_store: self.image_store.clone(),
            log: log(machine),
        };
        let setup_file = machine.directory.join("machine.json");
        files::write_private(&setup_file, &serde_json::to_vec_pretty(&setup)?)?;
        let (process, mut go) =
            tokio::task::spawn_blocking(move || launch(&setup_file, &setup.log)).await??;
        files::write_private(&identity(machine), &serde_json::to_vec(process.id())?)?;
        let namespace = PathBuf::from(format!("/proc/{}/ns/net", process.id().pid));
        if let Err(error) = machine
            .network
            .attach_node(&machine.name, &namespace, machine.address)
            .await
        {
            process.signal(rustix::process::Signal::KILL);
            return Err(error).context("attaching the node to the cluster's network");
        }
        // Its network is there: the machine may go on. If we die before this, it ends by itself.
        go.write_all(b"1").context("starting the machine")?;
        Ok(process)
    }

    async fn adopt(&self, machine: &Machine) -> anyhow::Result<Option<Process>> {
        let Ok(text) = fs::read(identity(machine)) else {
            return Ok(None);
        };
        let Ok(id) = serde_json::from_slice::<ProcessId>(&text) else {
            return Ok(None);
        };
        Ok(id.open()?)
    }

    async fn stop(&self, machine: &Machine, running: &Process) -> anyhow::Result<()> {
        running.stop(GRACE).await;
        let _ = machine.network.detach_node(&machine.name).await;
        Ok(())
    }

    async fn delete(&self, machine: &Machine) -> anyhow::Result<()> {
        if let Some(running) = self.adopt(machine).await? {
            running.signal(rustix::process::Signal::KILL);
            running.ended().await;
        }
        if machine.network.exists() {
            let _ = machine.network.detach_node(&machine.name).await;
        }
        let (group, directory) = (group(machine), machine.directory.clone());
        tokio::task::spawn_blocking(move || {
            cgroup::remove(&group)?;
            match fs::remove_dir_all(&directory) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    Err(error).with_context(|| format!("removing {}", directory.display()))
                }
                _ => Ok(()),
            }
        })
        .await?
    }
}

/// Removes what the machines of a deleted cluster had in common.
pub fn forget_cluster(cluster: &str) {
    cgroup::remove_if_empty(&format!("fluyt/{cluster}"));
    cgroup::remove_if_empty("fluyt");
}

fn root(machine: &Machine) -> PathBuf {
    machine.directory.join("root")
}

fn group(machine: &Machine) -> String {
    format!("fluyt/{}/{}", machine.cluster, machine.name)
}

fn identity(machine: &Machine) -> PathBuf {
    machine.directory.join("process.json")
}

fn log(machine: &Machine) -> PathBuf {
    machine.directory.join("node-init.log")
}

/// Starts a machine's first process through a launcher, which enters the namespaces, says the process's number and
/// ends. The machine waits until something is written into the returned pipe, and ends if that is closed.
fn launch(setup: &Path, log: &Path) -> anyhow::Result<(Process, impl std::io::Write + use<>)> {
    let log = File::options()
        .create(true)
        .append(true)
        .open(log)
        .with_context(|| format!("opening {}", log.display()))?;
    let mut launcher = Command::new("/proc/self/exe")
        .args(["node-init", "launch"])
        .arg(setup)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(log)
        .current_dir("/")
        .spawn()
        .context("starting the launcher of a machine")?;
    let go = launcher
        .stdin
        .take()
        .context("the launcher has no standard input")?;
    let out = launcher
        .stdout
        .take()
        .context("the launcher has no standard output")?;
    let mut line = String::new();
    BufReader::new(out).read_line(&mut line)?;
    let status = launcher.wait()?;
    let pid = line.trim().parse().with_context(|| {
        format!("the machine could not be started ({status}); see its node-init.log")
    })?;
    let process = ProcessId::of(pid)?
        .open()?
        .context("the machine ended at once; see its node-init.log")?;
    Ok((process, go))
}
