//! The certificates that the server shows: the usual one, and others for the names that clients ask for.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use anyhow::Context as _;
use fluyt_api::validation::dns_subdomain;
use parking_lot::RwLock;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject as _;
use tokio_util::sync::CancellationToken;
use x509_parser::extensions::GeneralName;

use super::verify::provider;
use crate::reload;
use crate::server::certificates;

/// A certificate and its private key: PEM files, read again when they change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// Files for certain names: `certificate,key` or `certificate,key:name,name`. Without names, the certificate's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedPair {
    pub pair: Pair,
    /// Exact, or with `*` for the first label. An address is one that clients connect to without asking for a name.
    pub names: Vec<String>,
}

/// Where the usual certificate is from.
#[derive(Clone)]
pub enum Usual {
    Pem { certificate: String, key: String },
    Files(Pair),
}

/// What is shown now, and where it is read again from.
pub struct Certificates {
    usual: Usual,
    named: Vec<NamedPair>,
    current: RwLock<Arc<Current>>,
}

struct Current {
    usual: Arc<CertifiedKey>,
    by_name: HashMap<String, Arc<CertifiedKey>>,
}

/// Certificates for a connection to one of the server's addresses.
#[derive(Debug)]
pub(super) struct At {
    pub certificates: Arc<Certificates>,
    pub address: IpAddr,
}

// === impl Pair ===

impl Pair {
    fn read(&self) -> anyhow::Result<Arc<CertifiedKey>> {
        let read =
            |path: &Path| std::fs::read_to_string(path).with_context(|| path.display().to_string());
        certified(&read(&self.certificate)?, &read(&self.key)?)
    }
}

fn certified(certificate: &str, key: &str) -> anyhow::Result<Arc<CertifiedKey>> {
    let chain = certificates(certificate)?;
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes())?;
    Ok(Arc::new(CertifiedKey::from_der(chain, key, &provider())?))
}

// === impl NamedPair ===

impl FromStr for NamedPair {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (files, names) = match text.split_once(':') {
            Some((_, names)) if names.trim().is_empty() => {
                return Err("empty names list is not allowed");
            }
            Some((files, names)) => (
                files,
                names.split(',').map(|n| n.trim().to_owned()).collect(),
            ),
            None => (text, Vec::new()),
        };
        let mut files = files.split(',').map(|file| PathBuf::from(file.trim()));
        match (files.next(), files.next(), files.next()) {
            (Some(certificate), Some(key), None) => Ok(Self {
                pair: Pair { certificate, key },
                names,
            }),
            _ => Err("expected comma separated certificate and key file paths"),
        }
    }
}

// === impl Certificates ===

impl Certificates {
    /// # Errors
    /// When a certificate cannot be read.
    pub fn load(usual: Usual, named: Vec<NamedPair>) -> anyhow::Result<Arc<Self>> {
        let current = Current::read(&usual, &named)?;
        Ok(Arc::new(Self {
            usual,
            named,
            current: RwLock::new(Arc::new(current)),
        }))
    }

    /// Reads files again when they change, until shutdown. A pair that does not fit together changes nothing.
    ///
    /// # Errors
    /// When files cannot be watched.
    pub fn follow(self: &Arc<Self>, shutdown: &CancellationToken) -> anyhow::Result<()> {
        let usual = match &self.usual {
            Usual::Files(pair) => Some(pair),
            Usual::Pem { .. } => None,
        };
        let pairs = usual.into_iter().chain(self.named.iter().map(|n| &n.pair));
        for path in pairs.flat_map(|pair| [&pair.certificate, &pair.key]) {
            let followed = Arc::downgrade(self);
            reload::spawn(path.clone(), shutdown.clone(), move |_| {
                if let Some(certificates) = followed.upgrade() {
                    certificates.read_again();
                }
            })?;
        }
        Ok(())
    }

    fn read_again(&self) {
        match Current::read(&self.usual, &self.named) {
            Ok(current) => {
                *self.current.write() = Arc::new(current);
                tracing::info!("the serving certificates were reloaded");
            }
            Err(error) => {
                let error = format!("{error:#}");
                tracing::error!(error, "the serving certificates were not reloaded");
            }
        }
    }

    /// Whether some certificate is for an address.
    pub(super) fn knows_addresses(&self) -> bool {
        let current = self.current.read();
        current.by_name.keys().any(|n| n.parse::<IpAddr>().is_ok())
    }

    /// The certificate for the name that a client asks for, or the usual one.
    fn of_name(&self, name: Option<&str>) -> Arc<CertifiedKey> {
        let current = self.current.read().clone();
        let named = name.and_then(|name| {
            let name = name.to_ascii_lowercase();
            let of_domain = || {
                let rest = name.split_once('.').map(|(_, rest)| format!("*.{rest}"));
                current.by_name.get(&rest.unwrap_or_else(|| "*".to_owned()))
            };
            current.by_name.get(&name).or_else(of_domain)
        });
        named.unwrap_or(&current.usual).clone()
    }
}

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Certificates")
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.of_name(hello.server_name()))
    }
}

impl ResolvesServerCert for At {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let address = self.address.to_canonical().to_string();
        let name = hello.server_name().unwrap_or(&address);
        Some(self.certificates.of_name(Some(name)))
    }
}

// === impl Current ===

impl Current {
    fn read(usual: &Usual, named: &[NamedPair]) -> anyhow::Result<Self> {
        let usual = match usual {
            Usual::Pem { certificate, key } => certified(certificate, key),
            Usual::Files(pair) => pair.read(),
        };
        let usual = usual.context("invalid serving cert keypair")?;
        let (mut own, mut given) = (HashMap::new(), HashMap::new());
        // Backwards, so that the first of several for a name is the one that stays.
        for named in named.iter().rev() {
            let key = named.pair.read();
            let key = key.context("failed to load SNI cert and key")?;
            if named.names.is_empty() {
                own.extend(names_of(&key)?.into_iter().map(|name| (name, key.clone())));
            }
            given.extend(named.names.iter().map(|name| (name.clone(), key.clone())));
        }
        own.extend(given);
        Ok(Self {
            usual,
            by_name: own,
        })
    }
}

/// The names that a certificate is for. Its addresses do not count: clients do not ask for them.
fn names_of(key: &CertifiedKey) -> anyhow::Result<Vec<String>> {
    let (_, certificate) = x509_parser::parse_x509_certificate(key.end_entity_cert()?)?;
    let common = certificate.subject().iter_common_name().last();
    let common = common.and_then(|name| name.as_str().ok());
    let is_name = |name: &&str| {
        let domain = name.strip_prefix("*.").unwrap_or(name);
        *name == "*" || (name.parse::<IpAddr>().is_err() && dns_subdomain(domain).is_empty())
    };
    let mut names: Vec<String> = common
        .filter(is_name)
        .map(str::to_owned)
        .into_iter()
        .collect();
    if let Some(alternatives) = certificate.subject_alternative_name()? {
        let alternatives = &alternatives.value.general_names;
        names.extend(alternatives.iter().filter_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            _ => None,
        }));
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use fluyt_pki::{Authority, Identity, Usage};

    use super::*;

    struct Issuer {
        authority: Authority,
        directory: tempfile::TempDir,
    }

    impl Issuer {
        fn new() -> Self {
            Self {
                authority: Authority::create("test").unwrap(),
                directory: tempfile::tempdir().unwrap(),
            }
        }

        /// Files of a certificate: their paths as the flag has them.
        fn issue(&self, file: &str, common_name: &str, dns_names: &[&str]) -> String {
            let identity = Identity {
                common_name: common_name.into(),
                dns_names: dns_names.iter().map(|n| (*n).to_owned()).collect(),
                ..Identity::default()
            };
            let issued = self.authority.issue(&identity, Usage::Server, 1).unwrap();
            let path = |end: &str| self.directory.path().join(format!("{file}.{end}"));
            std::fs::write(path("crt"), issued.certificate_pem).unwrap();
            std::fs::write(path("key"), issued.key_pem).unwrap();
            format!("{},{}", path("crt").display(), path("key").display())
        }
    }

    fn common_name(key: &CertifiedKey) -> String {
        let (_, certificate) = x509_parser::parse_x509_certificate(&key.cert[0]).unwrap();
        let name = certificate.subject().iter_common_name().next().unwrap();
        name.as_str().unwrap().to_owned()
    }

    #[test]
    fn flags_are_two_files_and_names() {
        let parsed: NamedPair = "a.crt, a.key : *.foo.com, foo.com".parse().unwrap();
        assert_eq!(parsed.pair.key, Path::new("a.key"));
        assert_eq!(parsed.names, ["*.foo.com", "foo.com"]);
        let refused = |text: &str| text.parse::<NamedPair>().unwrap_err();
        assert_eq!(refused("a,b: "), "empty names list is not allowed");
        for text in ["a", "a,b,c", "a:b"] {
            assert_eq!(
                refused(text),
                "expected comma separated certificate and key file paths"
            );
        }
    }

    #[test]
    fn names_choose_the_certificate() {
        let issuer = Issuer::new();
        let files = |paths: String| paths.parse::<NamedPair>().unwrap();
        let usual = files(issuer.issue("usual", "usual", &[])).pair;
        let named = vec![
            files(issuer.issue("own", "own.example", &["also.example", "*.own.example"])),
            files(issuer.issue("later", "later", &["also.example"])),
            files(
                issuer.issue("given", "given", &["x.example"])
                    + ":own.example,*.wild.example,127.0.0.9",
            ),
        ];
        let certificates = Certificates::load(Usual::Files(usual), named).unwrap();
        for (asked, shown) in [
            (None, "usual"),
            (Some("other.example"), "usual"),
            (Some("ALSO.example"), "own.example"),
            (Some("a.own.example"), "own.example"),
            (Some("a.b.own.example"), "usual"),
            // Names that are given count more than a certificate's own, and are all that it is shown for.
            (Some("own.example"), "given"),
            (Some("x.example"), "usual"),
            (Some("a.wild.example"), "given"),
            (Some("127.0.0.9"), "given"),
            (Some("later"), "later"),
        ] {
            let key = certificates.of_name(asked);
            assert_eq!(common_name(&key), shown, "{asked:?}");
        }
        assert!(certificates.knows_addresses());
    }

    #[test]
    fn a_pair_fits_together() {
        let issuer = Issuer::new();
        let (a, b) = (issuer.issue("a", "a", &[]), issuer.issue("b", "b", &[]));
        let (a, b): (NamedPair, NamedPair) = (a.parse().unwrap(), b.parse().unwrap());
        let mixed = Pair {
            certificate: a.pair.certificate.clone(),
            key: b.pair.key,
        };
        assert!(Certificates::load(Usual::Files(mixed.clone()), vec![]).is_err());
        let sni = NamedPair {
            pair: mixed,
            names: vec![],
        };
        let error = Certificates::load(Usual::Files(a.pair), vec![sni]).unwrap_err();
        let error = format!("{error:#}");
        assert!(
            error.starts_with("failed to load SNI cert and key: "),
            "{error}"
        );
    }
}
