//! The log store: one file per component in the data directory, told apart by the crate that logs, each kept small by
//! rotation.

mod json;
mod vmodule;

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use tracing::Metadata;
use tracing_subscriber::Layer as _;
use tracing_subscriber::filter::{FilterFn, Targets};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

pub use vmodule::Rule;

/// A log file is put aside at this size; one that was put aside is kept.
const ROTATE_AT: u64 = 10 << 20;

/// Which crate is which component. What is not here goes to the process's own log.
const COMPONENTS: [(&str, &str); 10] = [
    ("fluyt_apiserver", "kube-apiserver"),
    ("fluyt_etcd", "etcd"),
    ("fluyt_scheduler", "kube-scheduler"),
    ("fluyt_controller_manager", "kube-controller-manager"),
    ("fluyt_cloud_controller_manager", "cloud-controller-manager"),
    ("fluyt_kubelet", "kubelet"),
    ("fluyt_volumes", "kubelet"),
    ("fluyt_kube_proxy", "kube-proxy"),
    ("fluyt_container_runtime", "container-runtime"),
    ("fluyt_network", "container-runtime"),
];

/// Writes each event to the file of its component.
pub struct ComponentLogs {
    files: HashMap<&'static str, Arc<LogFile>>,
    own: Arc<LogFile>,
}

struct LogFile {
    path: PathBuf,
    open: Mutex<Option<(File, u64)>>,
}

/// One event's way into its file.
pub struct Line(Arc<LogFile>);

/// Logs into `directory` from now on; `process` names the file of what belongs to no component.
///
/// # Errors
/// When the directory cannot be made.
pub fn init(directory: &Path, process: &str) -> anyhow::Result<()> {
    use anyhow::Context as _;
    fs::create_dir_all(directory).with_context(|| format!("creating {}", directory.display()))?;
    let layer = tracing_subscriber::fmt::layer()
        .with_ansi(false)
        .with_writer(ComponentLogs::new(directory, process));
    let _ = tracing_subscriber::registry()
        .with(levels(tracing::Level::INFO))
        .with(layer)
        .try_init();
    Ok(())
}

/// What lines of a log look like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    #[default]
    Text,
    /// An object a line, with upstream's keys.
    Json,
}

/// How much upstream logs at a number of verbosity.
fn level(verbosity: u32) -> tracing::Level {
    match verbosity {
        0..=3 => tracing::Level::INFO,
        _ => tracing::Level::DEBUG,
    }
}

/// Logs to standard error, for processes in the foreground, as much as upstream does at a level of verbosity, and more of
/// the files that `rules` name.
pub fn init_foreground(verbosity: u32, rules: Vec<Rule>, format: Format) {
    use std::io::IsTerminal as _;
    let layer = tracing_subscriber::fmt::layer()
        .with_ansi(format == Format::Text && io::stderr().is_terminal())
        .with_writer(io::stderr);
    let layer = match format {
        Format::Text => layer.with_target(false).boxed(),
        Format::Json => layer.event_format(json::Lines).boxed(),
    };
    let targets = levels(level(verbosity));
    let filter = if rules.is_empty() {
        targets.boxed()
    } else {
        let enabled = move |metadata: &Metadata<'_>| {
            targets.would_enable(metadata.target(), metadata.level())
                || rules.iter().any(|rule| rule.enables(metadata))
        };
        FilterFn::new(enabled).boxed()
    };
    let _ = tracing_subscriber::registry()
        .with(filter)
        .with(layer)
        .try_init();
}

/// `FLUYT_LOG` in the form `info,fluyt_kubelet=debug`.
fn levels(default: tracing::Level) -> Targets {
    std::env::var("FLUYT_LOG")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or_else(|| {
            Targets::new()
                .with_default(default)
                .with_target("kube_client", tracing::Level::WARN)
        })
}

// === impl ComponentLogs ===

impl ComponentLogs {
    fn new(directory: &Path, process: &str) -> Self {
        let mut by_name: HashMap<&str, Arc<LogFile>> = HashMap::new();
        let mut open = |name: &'static str| {
            let path = directory.join(format!("{name}.log"));
            by_name
                .entry(name)
                .or_insert_with(|| LogFile::new(path))
                .clone()
        };
        let files = COMPONENTS
            .iter()
            .map(|(of, name)| (*of, open(name)))
            .collect();
        Self {
            files,
            own: LogFile::new(directory.join(format!("{process}.log"))),
        }
    }
}

impl<'a> MakeWriter<'a> for ComponentLogs {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line(self.own.clone())
    }

    fn make_writer_for(&'a self, metadata: &Metadata<'_>) -> Line {
        let of = metadata.target().split("::").next().unwrap_or_default();
        Line(self.files.get(of).unwrap_or(&self.own).clone())
    }
}

// === impl LogFile ===

impl LogFile {
    fn new(path: PathBuf) -> Arc<Self> {
        Arc::new(Self {
            path,
            open: Mutex::new(None),
        })
    }

    fn write(&self, bytes: &[u8]) -> io::Result<()> {
        let mut open = self.open.lock();
        if open.as_ref().is_some_and(|(_, size)| *size >= ROTATE_AT) {
            *open = None;
            fs::rename(&self.path, self.path.with_extension("log.1"))?;
        }
        if open.is_none() {
            let file = File::options().create(true).append(true).open(&self.path)?;
            let size = file.metadata()?.len();
            *open = Some((file, size));
        }
        if let Some((file, size)) = open.as_mut() {
            file.write_all(bytes)?;
            *size += bytes.len() as u64;
        }
        Ok(())
    }
}

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes).map(|()| bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_file_is_put_aside() {
        let directory = tempfile::tempdir().unwrap();
        let file = LogFile::new(directory.path().join("a.log"));
        file.write(b"first\n").unwrap();
        if let Some((_, size)) = file.open.lock().as_mut() {
            *size = ROTATE_AT;
        }
        file.write(b"second\n").unwrap();
        assert_eq!(
            fs::read_to_string(directory.path().join("a.log.1")).unwrap(),
            "first\n"
        );
        assert_eq!(
            fs::read_to_string(directory.path().join("a.log")).unwrap(),
            "second\n"
        );
    }
}
