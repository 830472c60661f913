//! The `fluyt` binary: the user's commands, and the entry points of all components, also by the name it is called by
//! (a link `kube-apiserver` to it is `fluyt kube-apiserver`).

mod aks;
mod arm;
mod component;
mod credentials;
mod group;
mod image;
mod logging;
mod login;
mod merge;
mod output;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// As the Azure CLI ends: 1 for errors, 2 for wrong usage (which clap does), 3 for what is not there.
#[derive(Debug)]
pub struct Failure {
    pub code: u8,
    pub message: String,
}

pub type Result<T = (), E = Failure> = std::result::Result<T, E>;

impl Failure {
    pub fn new(message: impl Into<String>) -> Self {
        Self {
            code: 1,
            message: message.into(),
        }
    }
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::new(format!("{:#}", error.into()))
    }
}

/// Managed Kubernetes in one binary.
#[derive(Parser, Debug)]
#[command(name = "fluyt", version, max_term_width = 120)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "one is made, and it is used at once"
)]
enum Command {
    /// Manage Kubernetes clusters
    #[command(subcommand)]
    Aks(aks::Command),
    /// Manage resource groups
    #[command(subcommand)]
    Group(group::Command),
    /// Get credentials for the service on this machine
    Login(login::Args),
    /// Manage the images of this machine's nodes
    #[command(subcommand)]
    Image(image::Command),
    #[command(flatten)]
    Component(component::Command),
}

fn main() -> ExitCode {
    let arguments = component::as_upstream(component::by_name(std::env::args_os().collect()));
    // These fork and enter namespaces: not a thread may run before them.
    single_threaded(&arguments);
    if let Some(version) = component::asked_version(&arguments) {
        println!("{version}");
        return ExitCode::SUCCESS;
    }
    let cli = Cli::parse_from(arguments);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    let outcome = runtime
        .map_err(Failure::from)
        .and_then(|runtime| runtime.block_on(run(cli.command)));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure { code, message }) => {
            // One line: a message may quote what it found in a file.
            eprintln!("ERROR: {}", message.lines().next().unwrap_or_default());
            ExitCode::from(code)
        }
    }
}

fn single_threaded(arguments: &[OsString]) {
    match arguments.get(1).and_then(|word| word.to_str()) {
        Some("shim") => fluyt_container_runtime::shim_main(&arguments[2..]),
        Some("node-init") => fluyt_service::providers::init::main(&arguments[2..]),
        _ => {}
    }
}

async fn run(command: Command) -> Result {
    // An error means that it is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    match command {
        Command::Aks(command) => aks::run(command).await,
        Command::Group(command) => group::run(command).await,
        Command::Login(args) => login::run(&args),
        Command::Image(command) => image::run(command),
        Command::Component(command) => Ok(component::run(command).await?),
    }
}

/// The last part of a path, as text.
fn file_name(path: &Path) -> &str {
    path.file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
