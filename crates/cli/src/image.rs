//! `fluyt image`: the store of images that the nodes of this machine share.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use fluyt_container_runtime::image::{ImageStore, import};

use crate::Result;

#[derive(Subcommand, Debug)]
pub enum Command {
    /// Import an OCI or Docker archive, as `docker save` or `skopeo copy` make it
    Import {
        /// The archive
        file: PathBuf,
        #[arg(long, default_value = fluyt_service::serve::DATA_DIR)]
        data_dir: PathBuf,
    },
    /// List images
    List {
        #[arg(long, default_value = fluyt_service::serve::DATA_DIR)]
        data_dir: PathBuf,
    },
}

pub fn run(command: Command) -> Result {
    match command {
        Command::Import { file, data_dir } => {
            for image in import(&open(&data_dir)?, &file)? {
                for name in &image.repo_tags {
                    println!("{name}");
                }
            }
        }
        Command::List { data_dir } => {
            for image in open(&data_dir)?.list()? {
                for name in &image.repo_tags {
                    println!("{name}");
                }
            }
        }
    }
    Ok(())
}

fn open(data: &Path) -> anyhow::Result<ImageStore> {
    Ok(ImageStore::open(data.join("images"))?)
}
