//! Named network namespaces, and doing things inside one.
//!
//! A thread that enters a namespace can't be given back to a pool, so everything here runs on a thread of its own
//! that ends with the call. Sockets keep the namespace they were opened in, so only opening needs such a thread.

use std::fs::{self, File};
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

use crate::{Context, Result};

/// Where `ip netns` keeps named namespaces, so that its users can see ours.
pub const NETNS_DIR: &str = "/run/netns";

/// The path of the namespace called `name`.
pub fn path(name: &str) -> PathBuf {
    Path::new(NETNS_DIR).join(name)
}

/// Makes a new named namespace with its loopback up. An existing one of that name is an error (`AlreadyExists`).
pub fn create(name: &str) -> Result<PathBuf> {
    let target = path(name);
    fs::create_dir_all(NETNS_DIR).context(|| format!("creating {NETNS_DIR}"))?;
    File::options()
        .write(true)
        .create_new(true)
        .open(&target)
        .context(|| format!("creating {}", target.display()))?;
    let pinned = target.clone();
    let result = on_thread(move || {
        unshare(CloneFlags::CLONE_NEWNET)?;
        mount(
            Some("/proc/thread-self/ns/net"),
            &pinned,
            None::<&str>,
            MsFlags::MS_BIND,
            None::<&str>,
        )?;
        Ok(())
    });
    if let Err(error) = result {
        // Nothing is mounted on it, so a plain unlink undoes the call.
        let _ = fs::remove_file(&target);
        return Err(error).context(|| format!("creating network namespace {name}"));
    }
    Ok(target)
}

/// Removes a named namespace; it lives on while a process or socket is in it. A missing one is fine.
pub fn delete(name: &str) -> Result<()> {
    let target = path(name);
    match umount2(&target, MntFlags::MNT_DETACH) {
        Ok(()) | Err(nix::Error::EINVAL | nix::Error::ENOENT) => {}
        Err(errno) => return Err(errno).context(|| format!("unmounting {}", target.display())),
    }
    match fs::remove_file(&target) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).context(|| format!("removing {}", target.display()))
        }
        _ => Ok(()),
    }
}

/// Runs `f` inside the namespace at `path` (`/run/netns/x`, `/proc/<pid>/ns/net`) and returns what it returns.
/// Blocks the caller; in async code use it through `spawn_blocking` unless `f` is short.
pub fn run_in<T: Send + 'static>(
    path: &Path,
    f: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T> {
    let namespace =
        File::open(path).context(|| format!("opening network namespace {}", path.display()))?;
    on_thread(move || {
        setns(&namespace, CloneFlags::CLONE_NEWNET)?;
        f()
    })
    .context(|| format!("in network namespace {}", path.display()))
}

/// Listens on `address` inside the namespace. The listener belongs to the calling tokio runtime.
pub async fn bind_tcp_in(path: &Path, address: SocketAddr) -> Result<tokio::net::TcpListener> {
    let listener = std_listener_in(path, address)?;
    tokio::net::TcpListener::from_std(listener).context(|| format!("listening on {address}"))
}

/// As [`bind_tcp_in`], for callers without tokio. Nonblocking is set.
pub fn std_listener_in(path: &Path, address: SocketAddr) -> Result<std::net::TcpListener> {
    run_in(path, move || {
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    })
}

/// A UDP socket bound to `address` inside the namespace.
pub async fn bind_udp_in(path: &Path, address: SocketAddr) -> Result<tokio::net::UdpSocket> {
    let socket = run_in(path, move || {
        let socket = std::net::UdpSocket::bind(address)?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    })?;
    tokio::net::UdpSocket::from_std(socket).context(|| format!("binding {address}"))
}

/// Connects to `address` from inside the namespace. Only the socket is made on the other thread; waiting for the
/// peer happens on the caller's runtime, so dropping the future gives up.
pub async fn connect_tcp_in(path: &Path, address: SocketAddr) -> Result<tokio::net::TcpStream> {
    let runtime = tokio::runtime::Handle::current();
    let socket = run_in(path, move || {
        let _context = runtime.enter();
        match address {
            SocketAddr::V4(_) => tokio::net::TcpSocket::new_v4(),
            SocketAddr::V6(_) => tokio::net::TcpSocket::new_v6(),
        }
    })?;
    socket
        .connect(address)
        .await
        .context(|| format!("connecting to {address}"))
}

fn on_thread<T: Send + 'static>(
    f: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    std::thread::Builder::new()
        .name("netns".to_owned())
        .stack_size(256 * 1024)
        .spawn(f)?
        .join()
        .map_err(|_| io::Error::other("the namespace thread panicked"))?
}
