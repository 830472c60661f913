//! A node for a test: namespaces of its own, the runtime as a process in them, and a CRI client.
//!
//! The runtime's process is this test binary again (`runtime_process`), so it can be killed; its shims are this
//! binary as well, which becomes one before `main` when it is called `… shim <config>`.
#![allow(dead_code, unsafe_code, clippy::unwrap_used, clippy::large_futures)] // Shared by several tests, which fail by panicking.

use std::ffi::{CStr, OsString, c_char, c_int};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use fluyt_container_runtime::image::from_binary::BinaryLayer;
use fluyt_container_runtime::image::{BinaryImage, ImageStore, from_binary};
use hyper_util::rt::TokioIo;
use k8s_cri::v1 as cri;
use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use tonic::transport::{Channel, Endpoint};

pub const BUSYBOX: &str = "docker.io/library/busybox:test";
const ROOT: &str = "FLUYT_TEST_ROOT";

#[used]
#[unsafe(link_section = ".init_array")]
static BEFORE_MAIN: extern "C" fn(c_int, *const *const c_char, *const *const c_char) = before_main;

extern "C" fn before_main(count: c_int, args: *const *const c_char, _env: *const *const c_char) {
    let args: Vec<OsString> = (0..count as usize)
        .map(|index| {
            // SAFETY: the loader passes `count` strings.
            let arg = unsafe { CStr::from_ptr(*args.add(index)) };
            OsString::from_vec(arg.to_bytes().to_vec())
        })
        .collect();
    if args.get(1).is_some_and(|arg| arg == "shim") {
        fluyt_container_runtime::shim_main(&args[2..]);
    }
}

/// To be called by the test that is the runtime's process; does nothing in an ordinary run.
pub fn serve_if_asked() {
    let Some(root) = std::env::var_os(ROOT).map(PathBuf::from) else {
        return;
    };
    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: fluyt_container_runtime::Args,
    }
    let line = <Line as clap::Parser>::parse_from([
        OsString::from("runtime"),
        "--root".into(),
        root.join("node").into(),
        "--state".into(),
        root.join("state").into(),
        "--image-store".into(),
        root.join("images").into(),
        "--listen".into(),
        root.join("cri.sock").into(),
        "--pod-cidr".into(),
        "10.244.9.0/24".into(),
    ]);
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(fluyt_container_runtime::run(
            line.args,
            tokio_util::sync::CancellationToken::new(),
        ))
        .unwrap();
}

pub struct Node {
    directory: Option<tempfile::TempDir>,
    holder: Child,
    runtime: Child,
    cgroup: String,
}

impl Node {
    pub async fn start() -> Self {
        let directory = tempfile::Builder::new().prefix("flt").tempdir().unwrap();
        let store = ImageStore::open(directory.path().join("images")).unwrap();
        add_busybox(&store);
        let holder = Command::new("unshare")
            .args([
                "--net",
                "--mount",
                "sh",
                "-c",
                "ip link set lo up && echo up && exec sleep 100000",
            ])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut node = Self {
            cgroup: format!("/flt-{}-{}", std::process::id(), rand::random::<u32>()),
            runtime: Command::new("true").spawn().unwrap(),
            directory: Some(directory),
            holder,
        };
        use std::io::Read;
        let mut up = [0; 3];
        node.holder
            .stdout
            .as_mut()
            .unwrap()
            .read_exact(&mut up)
            .unwrap();
        node.start_runtime().await;
        node
    }

    pub fn root(&self) -> &Path {
        self.directory.as_ref().unwrap().path()
    }

    pub async fn start_runtime(&mut self) {
        let _ = self.runtime.wait();
        let log = std::fs::File::options()
            .append(true)
            .create(true)
            .open(self.root().join("runtime.log"))
            .unwrap();
        self.runtime = Command::new("nsenter")
            .args(["-t", &self.holder.id().to_string(), "--net", "--mount"])
            .arg(std::env::current_exe().unwrap())
            .args(["runtime_process", "--exact", "--ignored", "--nocapture"])
            .env(ROOT, self.root())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        for _ in 0..500 {
            if std::os::unix::net::UnixStream::connect(self.root().join("cri.sock")).is_ok() {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        panic!("the runtime did not start: {}", self.log());
    }

    pub fn kill_runtime(&mut self) {
        self.runtime.kill().unwrap();
        self.runtime.wait().unwrap();
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.root().join("runtime.log")).unwrap_or_default()
    }

    /// The node's network namespace.
    pub fn network(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/ns/net", self.holder.id()))
    }

    async fn channel(&self) -> Channel {
        let socket = self.root().join("cri.sock");
        Endpoint::from_static("http://cri")
            .connect_with_connector(tower::service_fn(move |_| {
                let socket = socket.clone();
                async move {
                    Ok::<_, std::io::Error>(TokioIo::new(
                        tokio::net::UnixStream::connect(socket).await?,
                    ))
                }
            }))
            .await
            .unwrap()
    }

    pub async fn runtime(&self) -> RuntimeServiceClient<Channel> {
        RuntimeServiceClient::new(self.channel().await)
    }

    pub async fn images(&self) -> ImageServiceClient<Channel> {
        ImageServiceClient::new(self.channel().await)
    }

    pub fn sandbox_config(&self, name: &str) -> cri::PodSandboxConfig {
        cri::PodSandboxConfig {
            metadata: Some(cri::PodSandboxMetadata {
                name: name.to_owned(),
                uid: format!("uid-{name}"),
                namespace: "default".to_owned(),
                attempt: 0,
            }),
            hostname: name.to_owned(),
            log_directory: self.root().join("logs").join(name).display().to_string(),
            dns_config: Some(cri::DnsConfig {
                servers: vec!["10.0.0.10".to_owned()],
                searches: vec!["default.svc.cluster.local".to_owned()],
                options: vec!["ndots:5".to_owned()],
            }),
            linux: Some(cri::LinuxPodSandboxConfig {
                cgroup_parent: self.cgroup.clone(),
                security_context: Some(cri::LinuxSandboxSecurityContext {
                    namespace_options: Some(cri::NamespaceOption {
                        pid: cri::NamespaceMode::Container.into(),
                        ..Default::default()
                    }),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    pub async fn run_sandbox(&self, name: &str) -> String {
        self.run_sandbox_with(self.sandbox_config(name)).await
    }

    pub async fn run_sandbox_with(&self, config: cri::PodSandboxConfig) -> String {
        self.runtime()
            .await
            .run_pod_sandbox(cri::RunPodSandboxRequest {
                config: Some(config),
                runtime_handler: String::new(),
            })
            .await
            .unwrap_or_else(|status| panic!("{status:?}\n{}", self.log()))
            .into_inner()
            .pod_sandbox_id
    }

    pub async fn create(&self, sandbox: &str, config: cri::ContainerConfig) -> String {
        self.runtime()
            .await
            .create_container(cri::CreateContainerRequest {
                pod_sandbox_id: sandbox.to_owned(),
                config: Some(config),
                sandbox_config: None,
            })
            .await
            .unwrap_or_else(|status| panic!("{status:?}\n{}", self.log()))
            .into_inner()
            .container_id
    }

    pub async fn start_container(&self, id: &str) {
        self.runtime()
            .await
            .start_container(cri::StartContainerRequest {
                container_id: id.to_owned(),
            })
            .await
            .unwrap_or_else(|status| panic!("{status:?}\n{}", self.log()));
    }

    /// Makes and starts a container that runs a shell script.
    pub async fn run(&self, sandbox: &str, name: &str, script: &str) -> String {
        let id = self.create(sandbox, shell(name, script)).await;
        self.start_container(&id).await;
        id
    }

    pub async fn status(&self, id: &str) -> cri::ContainerStatus {
        self.runtime()
            .await
            .container_status(cri::ContainerStatusRequest {
                container_id: id.to_owned(),
                verbose: true,
            })
            .await
            .unwrap()
            .into_inner()
            .status
            .unwrap()
    }

    pub async fn wait_exit(&self, id: &str) -> cri::ContainerStatus {
        for _ in 0..1000 {
            let status = self.status(id).await;
            if status.state() == cri::ContainerState::ContainerExited {
                return status;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        panic!("container {id} did not exit\n{}", self.log());
    }

    pub async fn exec(
        &self,
        id: &str,
        command: &[&str],
        timeout: i64,
    ) -> Result<cri::ExecSyncResponse, tonic::Status> {
        self.runtime()
            .await
            .exec_sync(cri::ExecSyncRequest {
                container_id: id.to_owned(),
                cmd: command.iter().map(|arg| arg.to_string()).collect(),
                timeout,
            })
            .await
            .map(tonic::Response::into_inner)
    }

    pub fn container_log(&self, pod: &str, name: &str) -> String {
        std::fs::read_to_string(
            self.root()
                .join("logs")
                .join(pod)
                .join(format!("{name}.log")),
        )
        .unwrap_or_default()
    }

    pub async fn remove_sandbox(&self, id: &str) {
        let mut runtime = self.runtime().await;
        runtime
            .stop_pod_sandbox(cri::StopPodSandboxRequest {
                pod_sandbox_id: id.to_owned(),
            })
            .await
            .unwrap();
        runtime
            .remove_pod_sandbox(cri::RemovePodSandboxRequest {
                pod_sandbox_id: id.to_owned(),
            })
            .await
            .unwrap();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
        let _ = self.runtime.kill();
        let _ = self.runtime.wait();
        let cgroup = fluyt_container_runtime::cgroup::Cgroup::at(&self.cgroup);
        cgroup.signal(nix::sys::signal::Signal::SIGKILL);
        // Shims are told apart by their configuration's path.
        let root = self.root().display().to_string();
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            if let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>()
                && std::fs::read(entry.path().join("cmdline"))
                    .is_ok_and(|line| String::from_utf8_lossy(&line).contains(&root))
            {
                let _ = nix::sys::signal::kill(
                    nix::unistd::Pid::from_raw(pid),
                    nix::sys::signal::Signal::SIGKILL,
                );
            }
        }
        let _ = self.holder.kill();
        let _ = self.holder.wait();
        for _ in 0..100 {
            if cgroup.remove().is_ok() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
}

pub fn add_busybox(store: &ImageStore) {
    let links: Vec<String> = String::from_utf8(
        Command::new("busybox")
            .arg("--list")
            .output()
            .unwrap()
            .stdout,
    )
    .unwrap()
    .lines()
    .filter(|applet| *applet != "busybox")
    .map(|applet| format!("bin/{applet}"))
    .collect();
    let links: Vec<&str> = links.iter().map(String::as_str).collect();
    let layer = BinaryLayer {
        binary: Path::new("/usr/bin/busybox"),
        path: "bin/busybox",
        links: &links,
    };
    let image = BinaryImage {
        name: BUSYBOX.to_owned(),
        cmd: vec!["sh".to_owned()],
        ..BinaryImage::default()
    };
    from_binary(store, &layer, &[image]).unwrap();
}

/// A container that runs a shell script as the kubelet would describe it.
pub fn shell(name: &str, script: &str) -> cri::ContainerConfig {
    cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata {
            name: name.to_owned(),
            attempt: 0,
        }),
        image: Some(cri::ImageSpec {
            image: BUSYBOX.to_owned(),
            ..Default::default()
        }),
        command: vec!["sh".to_owned(), "-c".to_owned(), script.to_owned()],
        log_path: format!("{name}.log"),
        linux: Some(cri::LinuxContainerConfig {
            resources: None,
            security_context: Some(cri::LinuxContainerSecurityContext {
                namespace_options: Some(cri::NamespaceOption {
                    pid: cri::NamespaceMode::Container.into(),
                    ..Default::default()
                }),
                masked_paths: vec!["/proc/kcore".to_owned(), "/proc/keys".to_owned()],
                readonly_paths: vec!["/proc/sys".to_owned()],
                ..Default::default()
            }),
        }),
        ..Default::default()
    }
}
