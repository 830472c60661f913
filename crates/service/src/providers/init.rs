//! `fluyt node-init`: the first process of a sandbox machine. It makes the machine's file system, starts the node agent
//! and starts it again when it dies, and takes in orphans, so that containers survive their agent.
//!
//! One thread, no runtime: the launcher may enter namespaces, and the process stays as small as it can be.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::Ipv4Addr;
use std::os::fd::AsFd as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, chdir, pivot_root, sethostname, setsid};
use serde::{Deserialize, Serialize};

use super::cgroup::{self, Hierarchy};
use crate::backoff::Restarts;
use crate::files;

/// What a machine's first process needs to know.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Setup {
    pub hostname: String,
    pub address: Ipv4Addr,
    /// Below each hierarchy's root.
    pub cgroup: String,
    /// Directory that becomes the machine's root.
    pub root: PathBuf,
    pub image_store: PathBuf,
    pub log: PathBuf,
}

/// Where the executable is inside a machine.
pub const EXECUTABLE: &str = "/fluyt";

/// Host directories that a machine sees, read-only: its "operating system".
const SYSTEM: [&str; 8] = [
    "usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32", "opt",
];

/// Files of the host's `/etc` that programs of the host need.
const SYSTEM_ETC: [&str; 9] = [
    "alternatives",
    "ca-certificates",
    "ethertypes",
    "ld.so.cache",
    "localtime",
    "protocols",
    "services",
    "ssl",
    "timezone",
];

/// Devices of a machine: name, major, minor.
const DEVICES: [(&str, u64, u64); 8] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("kmsg", 1, 11),
    ("tty", 5, 0),
    ("fuse", 10, 229),
];

/// How long the node agent may take to end.
const AGENT_GRACE: Duration = Duration::from_secs(8);

/// Entry of `fluyt node-init launch|boot SETUP`: to be called before the process starts a thread.
pub fn main(args: &[OsString]) -> ! {
    let outcome = match args {
        [verb, setup] if verb == "launch" => launch(Path::new(setup)),
        [verb, setup] if verb == "boot" => boot(Path::new(setup)),
        _ => Err(anyhow::anyhow!("usage: fluyt node-init launch|boot SETUP")),
    };
    if let Err(error) = outcome {
        eprintln!("node-init: {error:#}");
        std::process::exit(1);
    }
    std::process::exit(0)
}

fn read_setup(path: &Path) -> anyhow::Result<Setup> {
    serde_json::from_str(&files::read(path)?).with_context(|| format!("in {}", path.display()))
}

/// Enters the machine's group and namespaces, starts its first process there and tells its number.
fn launch(setup_file: &Path) -> anyhow::Result<()> {
    let setup = read_setup(setup_file)?;
    setsid().context("starting a session")?;
    cgroup::enter(&setup.cgroup)?;
    unshare(
        CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWPID
            | CloneFlags::CLONE_NEWUTS
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWNET
            | CloneFlags::CLONE_NEWCGROUP,
    )
    .context("making namespaces (is this root?)")?;
    let log = File::options().append(true).create(true).open(&setup.log)?;
    // Standard input stays what it is: the pipe through which the machine is told to go on.
    let child = Command::new("/proc/self/exe")
        .args(["node-init", "boot"])
        .arg(setup_file)
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("starting the machine's first process")?;
    println!("{}", child.id());
    Ok(())
}

/// The machine's first process.
fn boot(setup_file: &Path) -> anyhow::Result<()> {
    let setup = read_setup(setup_file)?;
    if std::process::id() != 1 {
        bail!("only to be started by the launcher");
    }
    let signals = SigSet::from_iter([Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT]);
    signals.thread_block().context("blocking signals")?;
    sethostname(&setup.hostname).context("naming the machine")?;
    file_system(&setup).context("making the machine's file system")?;
    let mut go = [0];
    if std::io::stdin().read(&mut go).unwrap_or(0) == 0 {
        bail!("the service went away before the machine's network was there");
    }
    let events = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    watch_agent(&events)
}

// === The file system ===

fn bind(source: &Path, target: &Path) -> anyhow::Result<()> {
    mount(
        Some(source),
        target,
        None::<&str>,
        MsFlags::MS_BIND | MsFlags::MS_REC,
        None::<&str>,
    )
    .with_context(|| format!("mounting {} on {}", source.display(), target.display()))
}

fn bind_read_only(source: &Path, target: &Path) -> anyhow::Result<()> {
    bind(source, target)?;
    let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    mount(None::<&str>, target, None::<&str>, flags, None::<&str>)
        .with_context(|| format!("making {} read-only", target.display()))
}

fn mount_fresh(kind: &str, target: &Path, flags: MsFlags, options: &str) -> anyhow::Result<()> {
    fs::create_dir_all(target).with_context(|| format!("creating {}", target.display()))?;
    mount(Some(kind), target, Some(kind), flags, Some(options))
        .with_context(|| format!("mounting {kind} on {}", target.display()))
}

/// Makes a file or directory like `source`'s type to mount on.
fn mount_point(source: &Path, target: &Path) -> anyhow::Result<()> {
    let made = if source.is_dir() {
        fs::create_dir_all(target)
    } else {
        File::options()
            .create(true)
            .append(true)
            .open(target)
            .map(drop)
    };
    made.with_context(|| format!("creating {}", target.display()))
}

fn file_system(setup: &Setup) -> anyhow::Result<()> {
    let hierarchies = cgroup::hierarchies()?;
    let root = &setup.root;
    // Nothing that is mounted in here must show outside.
    mount(
        None::<&str>,
        "/",
        None::<&str>,
        MsFlags::MS_PRIVATE | MsFlags::MS_REC,
        None::<&str>,
    )
    .context("making mounts private")?;
    bind(root, root)?;
    system(root)?;
    etc(setup)?;
    let plain = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount_fresh("tmpfs", &root.join("run"), plain, "mode=755,size=20%")?;
    mount_fresh("tmpfs", &root.join("tmp"), plain, "mode=1777,size=20%")?;
    mount_fresh("proc", &root.join("proc"), plain | MsFlags::MS_NOEXEC, "")?;
    mount_fresh("sysfs", &root.join("sys"), plain | MsFlags::MS_NOEXEC, "")?;
    cgroups(root, &hierarchies)?;
    devices(root)?;
    let images = root.join("var/lib/fluyt/images");
    mount_point(&setup.image_store, &images)?;
    bind(&setup.image_store, &images)?;
    enter(root)?;
    // Mounts of volumes are to be seen by containers that ask for that.
    mount(
        None::<&str>,
        "/",
        None::<&str>,
        MsFlags::MS_SHARED | MsFlags::MS_REC,
        None::<&str>,
    )
    .context("sharing mounts")?;
    if cgroup::is_unified(&hierarchies) {
        let top = &hierarchies[0].mount_point;
        fs::create_dir_all(top.join(cgroup::INIT_SCOPE))?;
        fs::write(top.join(cgroup::INIT_SCOPE).join("cgroup.procs"), "1")?;
        cgroup::delegate(top);
    }
    Ok(())
}

/// The host's programs and libraries, and our own executable.
fn system(root: &Path) -> anyhow::Result<()> {
    for name in SYSTEM {
        let (source, target) = (Path::new("/").join(name), root.join(name));
        let Ok(metadata) = source.symlink_metadata() else {
            continue;
        };
        if metadata.is_symlink() {
            if target.symlink_metadata().is_err() {
                symlink(fs::read_link(&source)?, &target)?;
            }
        } else {
            mount_point(&source, &target)?;
            bind_read_only(&source, &target)?;
        }
    }
    let executable = fs::read_link("/proc/self/exe").context("finding our executable")?;
    let target = root.join(EXECUTABLE.trim_start_matches('/'));
    mount_point(&executable, &target)?;
    bind_read_only(&executable, &target)
}

fn etc(setup: &Setup) -> anyhow::Result<()> {
    let etc = setup.root.join("etc");
    for name in SYSTEM_ETC {
        let (source, target) = (Path::new("/etc").join(name), etc.join(name));
        // Follows links: what they point at may not be in the machine.
        if source.exists() {
            mount_point(&source, &target)?;
            bind_read_only(&source, &target)?;
        }
    }
    let hosts = format!(
        "127.0.0.1 localhost\n{} {}\n",
        setup.address, setup.hostname
    );
    let contents = [
        ("hostname", format!("{}\n", setup.hostname)),
        ("hosts", hosts),
        ("passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n".to_owned()),
        ("group", "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n".to_owned()),
        ("nsswitch.conf", "hosts: files dns\n".to_owned()),
    ];
    for (name, text) in contents {
        files::write(&etc.join(name), text.as_bytes(), 0o644)?;
    }
    // Made once: an administrator may change it.
    if !etc.join("resolv.conf").exists() {
        files::write(&etc.join("resolv.conf"), b"", 0o644)?;
    }
    if !etc.join("machine-id").exists() {
        let id = files::read(Path::new("/proc/sys/kernel/random/uuid"))?.replace('-', "");
        files::write(&etc.join("machine-id"), id.as_bytes(), 0o444)?;
    }
    fs::create_dir_all(etc.join("kubernetes/manifests"))?;
    Ok(())
}

/// The same hierarchies as the host's, whose roots are now the machine's own group.
fn cgroups(root: &Path, hierarchies: &[Hierarchy]) -> anyhow::Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    if !cgroup::is_unified(hierarchies) {
        mount_fresh("tmpfs", &root.join("sys/fs/cgroup"), flags, "mode=755")?;
    }
    for hierarchy in hierarchies {
        let target = root.join(hierarchy.mount_point.strip_prefix("/")?);
        let kind = if hierarchy.is_v2 { "cgroup2" } else { "cgroup" };
        let mut options = hierarchy.options.join(",");
        // A named hierarchy is asked for by its name alone.
        if let Some(name) = hierarchy.options.iter().find(|o| o.starts_with("name=")) {
            options = format!("none,{name}");
        }
        mount_fresh(kind, &target, flags, &options)?;
    }
    Ok(())
}

fn devices(root: &Path) -> anyhow::Result<()> {
    let dev = root.join("dev");
    mount_fresh("tmpfs", &dev, MsFlags::MS_NOSUID, "mode=755,size=64k")?;
    for (name, major, minor) in DEVICES {
        let everyone = Mode::from_bits_truncate(0o666);
        match mknod(
            &dev.join(name),
            SFlag::S_IFCHR,
            everyone,
            makedev(major, minor),
        ) {
            Ok(()) => nix::sys::stat::fchmodat(
                nix::fcntl::AT_FDCWD,
                &dev.join(name),
                everyone,
                nix::sys::stat::FchmodatFlags::FollowSymlink,
            )?,
            Err(errno) => return Err(errno).with_context(|| format!("making device {name}")),
        }
    }
    for (name, target) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "fd/0"),
        ("stdout", "fd/1"),
        ("stderr", "fd/2"),
        ("ptmx", "pts/ptmx"),
    ] {
        symlink(target, dev.join(name))?;
    }
    let quiet = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    mount_fresh(
        "devpts",
        &dev.join("pts"),
        quiet,
        "newinstance,ptmxmode=0666,mode=620,gid=5",
    )?;
    mount_fresh(
        "tmpfs",
        &dev.join("shm"),
        quiet | MsFlags::MS_NODEV,
        "mode=1777,size=64m",
    )?;
    mount_fresh("mqueue", &dev.join("mqueue"), quiet | MsFlags::MS_NODEV, "")
}

/// Makes `root` the root, and the host's file system unreachable.
fn enter(root: &Path) -> anyhow::Result<()> {
    chdir(root)?;
    // Stacks the old root on the new one, from where it is taken off.
    pivot_root(".", ".").context("changing the root")?;
    umount2(".", MntFlags::MNT_DETACH).context("leaving the host's file system")?;
    chdir("/")?;
    Ok(())
}

// === The agent ===

/// What became of the agent.
enum Agent {
    Running {
        pid: Pid,
    },
    /// To be started again at this time.
    Waiting {
        until: Instant,
    },
}

fn start_agent() -> anyhow::Result<Pid> {
    fs::create_dir_all(crate::node::LOGS)?;
    let log = File::options()
        .create(true)
        .append(true)
        .open(Path::new(crate::node::LOGS).join("node.out"))?;
    let mut command = Command::new(EXECUTABLE);
    command
        .args(["node", "--config", crate::node::CONFIG])
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    // Blocked signals are inherited, and the agent wants to be told to end.
    SigSet::all().thread_unblock()?;
    let child = command
        .env_clear()
        .env(
            "PATH",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        )
        .env("HOME", "/root")
        .spawn();
    SigSet::from_iter([Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT]).thread_block()?;
    Ok(Pid::from_raw(
        child.context("starting the node agent")?.id().cast_signed(),
    ))
}

/// Keeps the agent running and reaps orphans, until told to end.
fn watch_agent(events: &SignalFd) -> anyhow::Result<()> {
    let mut restarts = Restarts::default();
    restarts.started();
    let mut agent = Agent::Running {
        pid: start_agent()?,
    };
    loop {
        let timeout = match &agent {
            Agent::Running { .. } => PollTimeout::NONE,
            Agent::Waiting { until } => PollTimeout::try_from(
                until.saturating_duration_since(Instant::now()) + Duration::from_millis(1),
            )
            .unwrap_or(PollTimeout::MAX),
        };
        match poll(
            &mut [PollFd::new(events.as_fd(), PollFlags::POLLIN)],
            timeout,
        ) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let mut ending = false;
        while let Some(event) = events.read_signal()? {
            ending |= event.ssi_signo.cast_signed() != Signal::SIGCHLD as i32;
        }
        let ended = reap();
        if ending {
            return end(&agent, events);
        }
        match &agent {
            Agent::Running { pid } if ended.contains(pid) => {
                let delay = restarts.delay();
                let _ = writeln!(
                    std::io::stderr(),
                    "node-init: the node agent ended; starting it again in {delay:?}"
                );
                agent = Agent::Waiting {
                    until: Instant::now() + delay,
                };
            }
            Agent::Waiting { until } if *until <= Instant::now() => {
                restarts.started();
                agent = Agent::Running {
                    pid: start_agent()?,
                };
            }
            _ => {}
        }
    }
}

/// Takes in all that have ended.
fn reap() -> Vec<Pid> {
    let mut ended = Vec::new();
    loop {
        match waitpid(None::<Pid>, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return ended,
            Ok(status) => ended.extend(status.pid()),
            Err(_) => {}
        }
    }
}

/// Lets the agent end in order. What else runs is killed by the kernel with us.
fn end(agent: &Agent, events: &SignalFd) -> anyhow::Result<()> {
    let Agent::Running { pid } = agent else {
        return Ok(());
    };
    kill(*pid, Signal::SIGTERM)?;
    let deadline = Instant::now() + AGENT_GRACE;
    while !reap().contains(pid) {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let _ = poll(
            &mut [PollFd::new(events.as_fd(), PollFlags::POLLIN)],
            timeout,
        );
        while events.read_signal()?.is_some() {}
    }
    Ok(())
}
