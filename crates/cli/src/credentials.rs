//! `~/.fluyt/credentials`: how this user reaches the service.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{Failure, Result};

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Credentials {
    pub endpoint: String,
    pub subscription: String,
    pub token: String,
    /// The authority of the service's certificate, PEM.
    pub ca: String,
}

pub fn home() -> Result<PathBuf> {
    std::env::home_dir().ok_or_else(|| Failure::new("HOME is not set"))
}

pub fn path() -> Result<PathBuf> {
    Ok(home()?.join(".fluyt/credentials"))
}

// === impl Credentials ===

impl Credentials {
    pub fn load() -> Result<Self> {
        let path = path()?;
        let Ok(text) = std::fs::read(&path) else {
            return Err(Failure::new(
                "Please run 'fluyt login' to set up your account.",
            ));
        };
        serde_json::from_slice(&text).map_err(|error| {
            Failure::new(format!(
                "{}: {error}. Run 'fluyt login' again.",
                path.display()
            ))
        })
    }
}
