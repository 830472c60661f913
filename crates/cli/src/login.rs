//! `fluyt login`: takes over the credentials of the service on this machine. Only who may read its token can.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use crate::credentials::{self, Credentials};
use crate::{Failure, Result};

#[derive(clap::Args, Debug)]
pub struct Args {
    /// Directory of the service's state
    #[arg(long, default_value = fluyt_service::serve::DATA_DIR)]
    data_dir: PathBuf,
}

pub fn run(args: &Args) -> Result {
    let directory = fluyt_service::serve::directory(&args.data_dir);
    let credentials = Credentials {
        endpoint: read(&directory, "endpoint")?,
        subscription: fluyt_service::arm::SUBSCRIPTION.to_owned(),
        token: read(&directory, "token")?,
        ca: read(&directory, "ca.crt")?,
    };
    let path = credentials::path()?;
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)?;
    }
    // Written anew: an older file may have other permissions.
    let _ = std::fs::remove_file(&path);
    let mut file = std::fs::File::options()
        .create_new(true)
        .write(true)
        .mode(0o600)
        .open(&path)?;
    file.write_all(&serde_json::to_vec_pretty(&credentials)?)?;
    println!(
        "Logged in to {} (subscription {}).",
        credentials.endpoint, credentials.subscription
    );
    Ok(())
}

fn read(directory: &Path, name: &str) -> Result<String> {
    let path = directory.join(name);
    let text = std::fs::read_to_string(&path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => {
            Failure::new("No service has been started on this machine: run 'fluyt serve' first.")
        }
        std::io::ErrorKind::PermissionDenied => Failure::new(format!(
            "{}: only root may log in to the service of this machine.",
            path.display()
        )),
        _ => Failure::new(format!("{}: {error}", path.display())),
    })?;
    Ok(text.trim().to_owned())
}
