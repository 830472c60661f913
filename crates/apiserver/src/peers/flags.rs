//! Flags about other API servers of the cluster.

use anyhow::{Context as _, ensure};

use super::Settings;
use crate::features::{Feature, Features};

#[derive(clap::Args, Clone, Debug, Default)]
pub struct PeerFlags {
    /// Authorities that vouch for other API servers of the cluster. With it, requests for resources that only others serve
    /// are passed on to them, and discovery shows what they serve.
    #[arg(long, default_value = "")]
    peer_ca_file: String,
    /// Address by which other API servers reach this one, with --peer-advertise-port. The advertised one by default.
    #[arg(long, default_value = "")]
    peer_advertise_ip: String,
    /// Port by which other API servers reach this one, with --peer-advertise-ip.
    #[arg(long, default_value = "")]
    peer_advertise_port: String,
}

impl PeerFlags {
    /// What the flags say.
    ///
    /// # Errors
    /// When the feature is off, requests could not be passed on for want of a client certificate, or the file cannot be
    /// read.
    pub fn settings(
        &self,
        features: Features,
        proxy_client: Option<&(String, String)>,
    ) -> anyhow::Result<Settings> {
        if !features.has(Feature::UnknownVersionInteroperabilityProxy) {
            for (flag, value) in [
                ("peer-ca-file", &self.peer_ca_file),
                ("peer-advertise-ip", &self.peer_advertise_ip),
                ("peer-advertise-port", &self.peer_advertise_port),
            ] {
                ensure!(
                    value.is_empty(),
                    "--{flag} requires UnknownVersionInteroperabilityProxy feature to be turned on"
                );
            }
        }
        let (ip, port) = (&*self.peer_advertise_ip, &*self.peer_advertise_port);
        let is_given = !ip.is_empty() && !port.is_empty();
        let ca_pem = if self.peer_ca_file.is_empty() {
            None
        } else {
            ensure!(
                proxy_client.is_some(),
                "error building peer proxy handler, proxy-cert-file not specified"
            );
            let read = std::fs::read_to_string(&self.peer_ca_file);
            Some(read.with_context(|| self.peer_ca_file.clone())?)
        };
        Ok(Settings {
            ca_pem,
            advertise: is_given.then(|| super::join_host_port(ip, port)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn advertised(ip: &str, port: &str) -> Option<String> {
        let flags = PeerFlags {
            peer_advertise_ip: ip.into(),
            peer_advertise_port: port.into(),
            ..PeerFlags::default()
        };
        flags.settings(Features::default(), None).unwrap().advertise
    }

    #[test]
    fn an_address_needs_a_port() {
        assert_eq!(advertised("192.0.2.1", "1").unwrap(), "192.0.2.1:1");
        assert_eq!(advertised("2001:db8::1", "1").unwrap(), "[2001:db8::1]:1");
        assert_eq!(advertised("192.0.2.1", ""), None);
        assert_eq!(advertised("", "1"), None);
    }
}
