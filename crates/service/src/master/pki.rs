//! A cluster's keys: its authorities, and the certificates of master and administrator, kept in the cluster's directory.
//! Made by whoever needs them first, the service or the master.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use fluyt_apiserver::Encryption;
use fluyt_pki::{Authority, Identity, Issued, TokenKeys, Usage};

use super::Config;
use crate::files;

/// Certificates are good for this long, in days, and made anew at a start after half of it.
const VALID_DAYS: i64 = 365;
const RENEW_AFTER: Duration = Duration::from_secs(182 * 24 * 3600);

/// The keys of a cluster.
pub struct Keys {
    pub ca: Authority,
    pub front_proxy_ca: Authority,
    pub apiserver: Issued,
    pub kubelet_client: Issued,
    pub proxy_client: Issued,
    /// The user whom `get-credentials` hands out.
    pub admin: Issued,
    pub service_account_pem: String,
    /// What is encrypted in the store, and with what.
    pub encryption: String,
}

/// Loads the keys, making those that are missing or old.
///
/// # Errors
/// When a file is damaged or the disk refuses.
pub fn ensure(config: &Config) -> anyhow::Result<Keys> {
    let directory = directory(&config.directory);
    // One at a time: who looks while another makes them would make them again, and the last to write would win on the
    // disk but not in the master that runs already.
    std::fs::create_dir_all(&directory)
        .with_context(|| format!("creating {}", directory.display()))?;
    let lock = File::options()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(directory.join("lock"))?;
    lock.lock()
        .with_context(|| format!("locking {}", directory.display()))?;
    let ca = authority(&directory, "ca", "kubernetes")?;
    let front_proxy_ca = authority(&directory, "front-proxy-ca", "front-proxy-ca")?;
    let service_account = directory.join("sa.key");
    if !service_account.exists() {
        files::write_private(
            &service_account,
            TokenKeys::create()?.private_pem().as_bytes(),
        )?;
    }
    let encryption = directory.join("encryption.json");
    if !encryption.exists() {
        files::write_private(&encryption, Encryption::generate()?.as_bytes())?;
        // What is encrypted with a key that a crash takes is lost: its name has to be on the disk as well.
        File::open(&directory)?.sync_all()?;
    }
    Ok(Keys {
        encryption: files::read(&encryption)?,
        apiserver: certificate(
            &directory,
            "apiserver",
            &ca,
            &apiserver(config),
            Usage::Server,
        )?,
        kubelet_client: certificate(
            &directory,
            "apiserver-kubelet-client",
            &ca,
            &client("kube-apiserver-kubelet-client", &[]),
            Usage::Client,
        )?,
        proxy_client: certificate(
            &directory,
            "front-proxy-client",
            &front_proxy_ca,
            &client("front-proxy-client", &[]),
            Usage::Client,
        )?,
        admin: certificate(
            &directory,
            "admin",
            &ca,
            &client("masterclient", &["system:masters"]),
            Usage::Client,
        )?,
        service_account_pem: files::read(&service_account)?,
        ca,
        front_proxy_ca,
    })
}

fn directory(of_cluster: &Path) -> PathBuf {
    of_cluster.join("pki")
}

fn client(name: &str, groups: &[&str]) -> Identity {
    Identity {
        common_name: name.to_owned(),
        organizations: groups.iter().map(|g| (*g).to_owned()).collect(),
        ..Identity::default()
    }
}

/// All names and addresses under which the master is reached.
fn apiserver(config: &Config) -> Identity {
    let names = [
        "localhost",
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
    ];
    Identity {
        common_name: "kube-apiserver".to_owned(),
        organizations: Vec::new(),
        dns_names: names
            .iter()
            .map(|n| (*n).to_owned())
            .chain([config.fqdn.clone()])
            .collect(),
        addresses: vec![
            IpAddr::V4(Ipv4Addr::LOCALHOST),
            config.kubernetes_service_ip().into(),
            config.gateway.into(),
        ],
    }
}

fn authority(directory: &Path, name: &str, common_name: &str) -> anyhow::Result<Authority> {
    let (certificate, key) = pair(directory, name);
    if certificate.exists() {
        return Ok(Authority::load(
            &files::read(&certificate)?,
            &files::read(&key)?,
        )?);
    }
    let authority = Authority::create(common_name)?;
    // The certificate last: its presence says that the key is there.
    files::write_private(&key, authority.key_pem().as_bytes())?;
    files::write_private(&certificate, authority.certificate_pem().as_bytes())?;
    Ok(authority)
}

fn certificate(
    directory: &Path,
    name: &str,
    ca: &Authority,
    identity: &Identity,
    usage: Usage,
) -> anyhow::Result<Issued> {
    let (certificate, key) = pair(directory, name);
    if is_fresh(&certificate) {
        return Ok(Issued {
            certificate_pem: files::read(&certificate)?,
            key_pem: files::read(&key)?,
        });
    }
    let issued = ca.issue(identity, usage, VALID_DAYS)?;
    let _ = std::fs::remove_file(&certificate);
    files::write_private(&key, issued.key_pem.as_bytes())?;
    files::write_private(&certificate, issued.certificate_pem.as_bytes())?;
    Ok(issued)
}

fn pair(directory: &Path, name: &str) -> (PathBuf, PathBuf) {
    (
        directory.join(format!("{name}.crt")),
        directory.join(format!("{name}.key")),
    )
}

fn is_fresh(certificate: &Path) -> bool {
    let made = certificate.metadata().and_then(|m| m.modified());
    made.is_ok_and(|made| SystemTime::now().duration_since(made).unwrap_or_default() < RENEW_AFTER)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn all_who_ask_at_once_get_the_same() {
        let directory = tempfile::tempdir().unwrap();
        let config = crate::master::tests::config(directory.path());
        let made: Vec<String> = std::thread::scope(|scope| {
            let asking: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| ensure(&config).unwrap()))
                .collect();
            asking
                .into_iter()
                .map(|a| a.join().unwrap().ca.certificate_pem().to_owned())
                .collect()
        });
        assert!(made.iter().all(|ca| *ca == made[0]));
    }

    #[test]
    fn keys_are_made_once_and_for_root_only() {
        let directory = tempfile::tempdir().unwrap();
        let config = crate::master::tests::config(directory.path());
        let first = ensure(&config).unwrap();
        let again = ensure(&config).unwrap();
        assert_eq!(first.ca.certificate_pem(), again.ca.certificate_pem());
        assert_eq!(first.encryption, again.encryption);
        assert_eq!(
            first.apiserver.certificate_pem,
            again.apiserver.certificate_pem
        );
        for file in std::fs::read_dir(directory.path().join("pki")).unwrap() {
            let file = file.unwrap();
            assert_eq!(
                file.metadata().unwrap().permissions().mode() & 0o777,
                0o600,
                "{:?}",
                file.path()
            );
        }
    }
}
