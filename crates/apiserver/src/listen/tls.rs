//! Which TLS is spoken.

use crate::go_bool;
use std::sync::Arc;

use anyhow::bail;
use clap::ArgAction;
use rustls::version::{TLS12, TLS13};
use rustls::{ConfigBuilder, ServerConfig, SupportedCipherSuite, WantsVerifier};

use super::certificates::NamedPair;
use super::verify::provider;

/// What a client must be able to do to connect.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct TlsSettings {
    /// The oldest version of TLS that is spoken: VersionTLS12 or VersionTLS13. Older ones never are.
    #[arg(long, value_parser = ["VersionTLS10", "VersionTLS11", "VersionTLS12", "VersionTLS13"])]
    tls_min_version: Option<String>,
    /// Cipher suites for TLS 1.2 by their names in Go, comma separated. Those of TLS 1.3 are not a matter of choice.
    #[arg(long, value_delimiter = ',', value_parser = cipher_suite)]
    tls_cipher_suites: Vec<String>,
    /// Key exchanges by their numbers in Go (23 P-256, 24 P-384, 29 X25519), comma separated; in what order does not matter.
    #[arg(long, value_delimiter = ',', value_parser = curve)]
    tls_curve_preferences: Vec<u16>,
    /// Files of a certificate and its key for the names after a colon, exact or with a wildcard, or for the certificate's own:
    /// foo.crt,foo.key:*.foo.com,foo.com. May be repeated; files are read again when they change.
    #[arg(long)]
    pub tls_sni_cert_key: Vec<NamedPair>,
    /// Serve HTTP/1.1 only.
    #[arg(long, value_parser = go_bool::parse, action = ArgAction::Set, num_args = 0..=1, default_value_t = false, default_missing_value = "true", require_equals = true)]
    pub disable_http2_serving: bool,
}

impl TlsSettings {
    /// # Errors
    /// When the flags contradict each other.
    pub fn check(&self) -> anyhow::Result<()> {
        let curves = &self.tls_curve_preferences;
        if let Some(i) = (1..curves.len()).find(|i| curves[..*i].contains(&curves[*i])) {
            bail!("duplicate curve preference {}", curves[i]);
        }
        Ok(())
    }

    pub(super) fn builder(&self) -> anyhow::Result<ConfigBuilder<ServerConfig, WantsVerifier>> {
        let mut provider = (*provider()).clone();
        if !self.tls_cipher_suites.is_empty() {
            let chosen = |name: &str| self.tls_cipher_suites.iter().any(|wanted| wanted == name);
            provider
                .cipher_suites
                .retain(|suite| suite.tls13().is_some() || suite_name(suite).is_some_and(chosen));
        }
        if !self.tls_curve_preferences.is_empty() {
            let wanted = &self.tls_curve_preferences;
            provider
                .kx_groups
                .retain(|group| wanted.contains(&u16::from(group.name())));
        }
        let versions: &[_] = match self.tls_min_version.as_deref() {
            Some("VersionTLS13") => &[&TLS13],
            _ => &[&TLS12, &TLS13],
        };
        let builder = ServerConfig::builder_with_provider(Arc::new(provider));
        Ok(builder.with_protocol_versions(versions)?)
    }
}

fn suite_name(suite: &SupportedCipherSuite) -> Option<&'static str> {
    suite.suite().as_str()
}

/// The name of a suite that there is, by Go's name.
fn cipher_suite(name: &str) -> Result<String, String> {
    // Go has an older name for these as well.
    let name = match name {
        "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305" => "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
        "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305" => "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
        name => name,
    };
    let of_13 = name
        .strip_prefix("TLS_")
        .map(|rest| format!("TLS13_{rest}"));
    let known = provider()
        .cipher_suites
        .iter()
        .filter_map(suite_name)
        .any(|known| known == name || Some(known) == of_13.as_deref());
    if known {
        Ok(name.to_owned())
    } else {
        Err(format!(
            "Cipher suite {name} not supported or doesn't exist"
        ))
    }
}

/// The number of a key exchange that there is.
fn curve(text: &str) -> Result<u16, String> {
    let number: i32 = text
        .parse()
        .map_err(|_| format!("strconv.ParseInt: parsing {text:?}: invalid syntax"))?;
    let Some(id) = u16::try_from(number).ok().filter(|id| *id > 0) else {
        return Err(format!(
            "curve preference {number} is out of range (must be 1-65535)"
        ));
    };
    let groups = &provider().kx_groups;
    if groups.iter().any(|group| u16::from(group.name()) == id) {
        Ok(id)
    } else {
        Err(format!("curve preference {id} is not supported"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn curves_are_known_and_named_once() {
        assert_eq!(curve("29"), Ok(29));
        assert_eq!(
            curve("70000").unwrap_err(),
            "curve preference 70000 is out of range (must be 1-65535)"
        );
        assert_eq!(
            curve("1").unwrap_err(),
            "curve preference 1 is not supported"
        );
        let settings = TlsSettings {
            tls_curve_preferences: vec![29, 23, 29],
            ..TlsSettings::default()
        };
        assert_eq!(
            settings.check().unwrap_err().to_string(),
            "duplicate curve preference 29"
        );
    }
}
