//! Flags about admission plugins.

use std::path::PathBuf;

use anyhow::Context as _;

use crate::admission::{AdmissionConfiguration, Settings, Tolerations};

#[derive(clap::Args, Debug)]
pub struct AdmissionArgs {
    /// Admission plugins to turn on besides the default ones, comma separated.
    #[arg(long, value_delimiter = ',')]
    enable_admission_plugins: Vec<String>,
    /// Default admission plugins to turn off, comma separated.
    #[arg(long, value_delimiter = ',')]
    disable_admission_plugins: Vec<String>,
    /// File with an AdmissionConfiguration: what admission plugins are configured with.
    #[arg(long)]
    admission_control_config_file: Option<PathBuf>,
    #[command(flatten)]
    tolerations: Tolerations,
}

impl AdmissionArgs {
    /// # Errors
    /// When the file cannot be read or decoded.
    pub(super) fn settings(&self) -> anyhow::Result<Settings> {
        let file = self.admission_control_config_file.as_deref();
        let configuration = file.map(AdmissionConfiguration::load).transpose();
        Ok(Settings {
            enabled: self.enable_admission_plugins.clone(),
            disabled: self.disable_admission_plugins.clone(),
            configuration: configuration
                .context("failed to apply admission: failed to read plugin config")?
                .unwrap_or_default(),
            tolerations: self.tolerations,
        })
    }
}
