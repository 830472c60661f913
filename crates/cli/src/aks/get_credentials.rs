//! `fluyt aks get-credentials`

use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::Method;

use super::Target;
use crate::arm::Arm;
use crate::credentials::home;
use crate::merge::merge_file;
use crate::{Failure, Result};

#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    target: Target,
    /// Get cluster administrator credentials
    #[arg(short, long)]
    admin: bool,
    /// Kubeconfig file to update; "-" prints to standard output. ~/.kube/config by default
    #[arg(short, long, env = "KUBECONFIG", hide_env_values = true)]
    file: Option<PathBuf>,
    /// Overwrite any existing cluster entry with the same name
    #[arg(long)]
    overwrite_existing: bool,
    /// Name of the context instead of the cluster's
    #[arg(long)]
    context: Option<String>,
}

pub async fn run(args: Args) -> Result {
    let arm = Arm::connect()?;
    let action = if args.admin {
        "listClusterAdminCredential"
    } else {
        "listClusterUserCredential"
    };
    let path = format!(
        "{}/{action}",
        arm.cluster(&args.target.resource_group, &args.target.name)
    );
    let answer = arm.send(Method::POST, &path, None).await?;
    let encoded = answer.body["kubeconfigs"][0]["value"]
        .as_str()
        .unwrap_or_default();
    let kubeconfig = String::from_utf8(STANDARD.decode(encoded)?)?;
    let file = match args.file {
        Some(file) => file,
        None => home()?.join(".kube/config"),
    };
    if file.as_os_str() == "-" {
        print!("{kubeconfig}");
        return Ok(());
    }
    let context = merge_file(
        &file,
        &kubeconfig,
        args.overwrite_existing,
        args.context.as_deref(),
    )
    .map_err(|failure| Failure::new(failure.message))?;
    println!(
        "Merged \"{context}\" as current context in {}",
        file.display()
    );
    Ok(())
}
