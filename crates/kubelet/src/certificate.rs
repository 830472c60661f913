//! Certificates from the cluster: keys, signing requests through the CSR API, files with key and certificate in one,
//! and when to renew.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{
    CertificateSigningRequest, CertificateSigningRequestSpec,
};
use kube::api::{ObjectMeta, PostParams, WatchEvent, WatchParams};
use kube::{Api, Client};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SanType};

use futures::{StreamExt, TryStreamExt};

/// A key and the certificate chain for it, both PEM.
#[derive(Clone)]
pub struct Pair {
    pub key: String,
    pub certificate: String,
}

/// What to ask the cluster to sign.
pub struct Request<'a> {
    pub signer: &'a str,
    pub node: &'a str,
    pub usages: &'a [&'a str],
    pub names: Vec<SanType>,
}

/// How long one request waits for its approval before another one is made.
const PATIENCE: Duration = Duration::from_secs(15 * 60);

impl Pair {
    /// The pair `name-current.pem` in `dir`, if it is there and still valid.
    pub fn load(dir: &Path, name: &str) -> Option<Pair> {
        let text = std::fs::read_to_string(current(dir, name)).ok()?;
        let at = text
            .find("-----BEGIN PRIVATE KEY")
            .or_else(|| text.find("-----BEGIN EC PRIVATE KEY"))?;
        let pair = Pair {
            certificate: text[..at].to_string(),
            key: text[at..].to_string(),
        };
        let (_, expires) = pair.validity().ok()?;
        (expires > Timestamp::now()).then_some(pair)
    }

    /// Writes the pair to a file of its own and points `name-current.pem` to it.
    pub fn store(&self, dir: &Path, name: &str) -> anyhow::Result<PathBuf> {
        std::fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
        let stamp = Timestamp::now().strftime("%Y-%m-%d-%H-%M-%S");
        let file = format!("{name}-{stamp}.pem");
        let path = dir.join(&file);
        std::fs::write(&path, format!("{}{}", self.certificate, self.key))
            .with_context(|| format!("writing {}", path.display()))?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        let pending = dir.join(format!(".{name}.tmp"));
        let _ = std::fs::remove_file(&pending);
        symlink(&file, &pending)?;
        std::fs::rename(&pending, current(dir, name))?;
        for entry in std::fs::read_dir(dir)?.flatten() {
            let other = entry.file_name().to_string_lossy().into_owned();
            let old = other.starts_with(&format!("{name}-2")) && other != file;
            if old {
                let _ = std::fs::remove_file(entry.path());
            }
        }
        Ok(current(dir, name))
    }

    fn validity(&self) -> anyhow::Result<(Timestamp, Timestamp)> {
        let (_, pem) = x509_parser::pem::parse_x509_pem(self.certificate.as_bytes())?;
        let certificate = pem.parse_x509()?;
        let validity = certificate.validity();
        Ok((
            Timestamp::from_second(validity.not_before.timestamp())?,
            Timestamp::from_second(validity.not_after.timestamp())?,
        ))
    }

    /// When it should be renewed: somewhere between 70 and 90 % of its life, so that not all nodes come at once.
    pub fn renew_in(&self) -> Duration {
        let Ok((from, to)) = self.validity() else {
            return Duration::ZERO;
        };
        let life = to.duration_since(from).as_secs_f64();
        let at = from.as_second() as f64 + life * rand::random_range(0.7..0.9);
        Duration::try_from_secs_f64(at - Timestamp::now().as_second() as f64).unwrap_or_default()
    }
}

pub fn current(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!("{name}-current.pem"))
}

/// Makes a key, asks for a certificate, and waits until it is issued.
pub async fn request(client: &Client, wanted: &Request<'_>) -> anyhow::Result<Pair> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.subject_alt_names = wanted.names.clone();
    let mut subject = DistinguishedName::new();
    subject.push(DnType::OrganizationName, "system:nodes");
    subject.push(DnType::CommonName, format!("system:node:{}", wanted.node));
    params.distinguished_name = subject;
    let csr = params.serialize_request(&key)?.pem()?;
    let object = CertificateSigningRequest {
        metadata: ObjectMeta {
            generate_name: Some("csr-".into()),
            ..ObjectMeta::default()
        },
        spec: CertificateSigningRequestSpec {
            request: ByteString(csr.into_bytes()),
            signer_name: wanted.signer.into(),
            usages: Some(wanted.usages.iter().map(ToString::to_string).collect()),
            ..CertificateSigningRequestSpec::default()
        },
        status: None,
    };
    let api: Api<CertificateSigningRequest> = Api::all(client.clone());
    let created = api
        .create(&PostParams::default(), &object)
        .await
        .context("creating the CSR")?;
    let certificate = tokio::time::timeout(PATIENCE, issued(&api, created))
        .await
        .context("the certificate signing request was not approved in time")??;
    Ok(Pair {
        key: key.serialize_pem(),
        certificate,
    })
}

/// Follows the request until it is signed or refused.
async fn issued(
    api: &Api<CertificateSigningRequest>,
    created: CertificateSigningRequest,
) -> anyhow::Result<String> {
    let name = created
        .metadata
        .name
        .clone()
        .context("the CSR has no name")?;
    let params = WatchParams::default().fields(&format!("metadata.name={name}"));
    let mut version = created
        .metadata
        .resource_version
        .unwrap_or_else(|| "0".into());
    let mut object = api.get(&name).await?;
    loop {
        if let Some(certificate) = verdict(&object)? {
            return Ok(certificate);
        }
        let mut events = api.watch(&params, &version).await?.boxed();
        while let Some(event) = events.try_next().await? {
            match event {
                WatchEvent::Added(changed) | WatchEvent::Modified(changed) => {
                    if let Some(certificate) = verdict(&changed)? {
                        return Ok(certificate);
                    }
                    version = changed.metadata.resource_version.unwrap_or(version);
                }
                WatchEvent::Deleted(_) => bail!("the certificate signing request was deleted"),
                WatchEvent::Error(_) => break,
                WatchEvent::Bookmark(_) => {}
            }
        }
        object = api.get(&name).await?;
        version = object.metadata.resource_version.clone().unwrap_or(version);
    }
}

fn verdict(csr: &CertificateSigningRequest) -> anyhow::Result<Option<String>> {
    let status = csr.status.as_ref();
    for condition in status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten())
    {
        if matches!(condition.type_.as_str(), "Denied" | "Failed") {
            bail!(
                "the certificate signing request was {}: {}",
                condition.type_.to_lowercase(),
                condition.message.as_deref().unwrap_or_default()
            );
        }
    }
    let certificate = status.and_then(|status| status.certificate.as_ref());
    Ok(match certificate {
        Some(bytes) if !bytes.0.is_empty() => Some(String::from_utf8(bytes.0.clone())?),
        _ => None,
    })
}

/// A certificate of our own making, until the cluster has issued one.
pub fn self_signed(node: &str, names: Vec<SanType>) -> anyhow::Result<Pair> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.subject_alt_names = names;
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, node);
    params.distinguished_name = subject;
    let certificate = params.self_signed(&key)?;
    Ok(Pair {
        key: key.serialize_pem(),
        certificate: certificate.pem(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use fluyt_client::fake::FakeApi;
    use serde_json::json;

    #[test]
    fn stored_pairs_come_back() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Pair::load(dir.path(), "kubelet-client").is_none());
        let pair = self_signed("node-0", Vec::new()).unwrap();
        pair.store(dir.path(), "kubelet-client").unwrap();
        let loaded = Pair::load(dir.path(), "kubelet-client").unwrap();
        assert_eq!(
            (loaded.key, loaded.certificate),
            (pair.key.clone(), pair.certificate.clone())
        );
        assert!(pair.renew_in() > Duration::from_secs(3600));
    }

    #[tokio::test]
    async fn a_request_is_followed_to_its_verdict() {
        let fake = FakeApi::new();
        let wanted = Request {
            signer: "kubernetes.io/kubelet-serving",
            node: "node-0",
            usages: &["digital signature", "server auth"],
            names: Vec::new(),
        };
        let client = fake.client();
        let sign = async {
            let has_request = |fake: &FakeApi| !fake.list::<CertificateSigningRequest>().is_empty();
            fake.until("a request", has_request).await;
            let mut csr = fake.list::<CertificateSigningRequest>().remove(0);
            assert_eq!(csr.spec.signer_name, "kubernetes.io/kubelet-serving");
            csr.status = serde_json::from_value(json!({"certificate": "Q0VSVA=="})).unwrap();
            fake.update(&csr);
        };
        let (pair, ()) = tokio::join!(request(&client, &wanted), sign);
        assert_eq!(pair.unwrap().certificate, "CERT");
    }
}
