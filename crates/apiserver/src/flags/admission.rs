//! Flags about admission plugins.

use std::path::PathBuf;

use anyhow::{Context as _, ensure};

use crate::admission::{self, AdmissionConfiguration, Settings, Tolerations};

#[derive(clap::Args, Debug)]
pub struct AdmissionArgs {
    /// Admission plugins to turn on besides the default ones, comma separated.
    #[arg(long, value_delimiter = ',')]
    enable_admission_plugins: Vec<String>,
    /// Default admission plugins to turn off, comma separated.
    #[arg(long, value_delimiter = ',')]
    disable_admission_plugins: Vec<String>,
    /// Admission plugins to run, and no others, in any order, comma separated. Deprecated: the two flags above say more.
    #[arg(long, value_delimiter = ',')]
    admission_control: Vec<String>,
    /// File with an AdmissionConfiguration: what admission plugins are configured with.
    #[arg(long)]
    admission_control_config_file: Option<PathBuf>,
    #[command(flatten)]
    tolerations: Tolerations,
}

/// An empty list is one empty name.
fn named(names: &[String]) -> Vec<String> {
    names.iter().filter(|n| !n.is_empty()).cloned().collect()
}

impl AdmissionArgs {
    /// # Errors
    /// When the file cannot be read or decoded, or plugins are named in both ways.
    pub(super) fn settings(&self) -> anyhow::Result<Settings> {
        let only = named(&self.admission_control);
        let enabled = named(&self.enable_admission_plugins);
        let disabled = named(&self.disable_admission_plugins);
        let (enabled, disabled) = if only.is_empty() {
            (enabled, disabled)
        } else {
            ensure!(
                enabled.is_empty() && disabled.is_empty(),
                "admission-control and enable-admission-plugins/disable-admission-plugins flags are mutually exclusive"
            );
            let others = admission::others(&only)?;
            (only, others)
        };
        let file = self.admission_control_config_file.as_deref();
        let configuration = file.map(AdmissionConfiguration::load).transpose();
        Ok(Settings {
            enabled,
            disabled,
            configuration: configuration
                .context("failed to apply admission: failed to read plugin config")?
                .unwrap_or_default(),
            tolerations: self.tolerations,
        })
    }
}
