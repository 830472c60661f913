//! certificatesigningrequest-signing-controller: issues what was approved, for the `kubernetes.io/` signers.

use std::time::Duration;

use fluyt_client::{Action, Informer, ObjectKey, WorkQueue, controller, is_not_found};
use k8s_openapi::{ByteString, api::certificates::v1::CertificateSigningRequest};
use kube::{Api, Client, api::PostParams};
use rcgen::{
    CertificateSigningRequestParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SerialNumber,
};
use time::OffsetDateTime;
use tracing::{error, info};

use super::{
    KUBE_APISERVER_CLIENT, KUBE_APISERVER_CLIENT_KUBELET, KUBELET_SERVING, LEGACY_UNKNOWN,
    add_condition, has_condition, is_issued,
    request::{self, Requested},
};
use crate::{Context, common::enqueue, config::SigningAuthority};

/// Certificates are valid from a little before now, for machines whose clocks are behind.
const BACKDATE: Duration = Duration::from_secs(5 * 60);
const SHORTEST: Duration = Duration::from_secs(10 * 60);

/// Issues certificates of one authority.
struct Signer {
    issuer: Issuer<'static, KeyPair>,
    /// End of the authority's own validity.
    not_after: OffsetDateTime,
    longest: Duration,
}

/// Run the controller until shutdown.
pub async fn run(context: Context) {
    let Some(authority) = &context.config.cluster_signing else {
        return;
    };
    let signer = match Signer::new(authority, context.config.cluster_signing_duration) {
        Ok(signer) => signer,
        Err(error) => {
            error!(%error, "the signing authority is unusable, no certificates will be issued");
            return;
        }
    };
    let requests = context.informers.get::<CertificateSigningRequest>();
    requests.synced().await;
    let queue = WorkQueue::new();
    enqueue(&requests, &queue);
    let reconcile = |key| reconcile(key, &requests, &signer, &context.client);
    let shutdown = context.shutdown.clone();
    controller::run(
        "certificatesigningrequest-signing-controller",
        queue,
        2,
        reconcile,
        shutdown,
    )
    .await;
}

async fn reconcile(
    key: ObjectKey,
    requests: &Informer<CertificateSigningRequest>,
    signer: &Signer,
    client: &Client,
) -> anyhow::Result<Action> {
    let Some(request) = requests.get_key(&key) else {
        return Ok(Action::Await);
    };
    let is_ours = [
        KUBE_APISERVER_CLIENT,
        KUBE_APISERVER_CLIENT_KUBELET,
        KUBELET_SERVING,
        LEGACY_UNKNOWN,
    ];
    let waits = has_condition(&request, "Approved")
        && !has_condition(&request, "Denied")
        && !has_condition(&request, "Failed")
        && !is_issued(&request);
    if !waits || !is_ours.contains(&request.spec.signer_name.as_str()) {
        return Ok(Action::Await);
    }
    let mut answered = (*request).clone();
    match issue(&request, signer) {
        Ok(certificate) => {
            info!(
                request = key.name,
                signer = request.spec.signer_name,
                "issued a certificate"
            );
            answered.status.get_or_insert_default().certificate =
                Some(ByteString(certificate.into_bytes()));
        }
        Err(message) => add_condition(&mut answered, "Failed", "SignerValidationFailure", &message),
    }
    let api = Api::<CertificateSigningRequest>::all(client.clone());
    match api
        .replace_status(&key.name, &PostParams::default(), &answered)
        .await
    {
        Err(error) if is_not_found(&error) => {}
        result => drop(result?),
    }
    Ok(Action::Await)
}

fn issue(request: &CertificateSigningRequest, signer: &Signer) -> Result<String, String> {
    let spec = &request.spec;
    let requested = request::parse(&spec.request.0)?;
    let usages = spec.usages.as_deref().unwrap_or_default();
    check(&spec.signer_name, &requested, usages)?;
    let seconds = spec
        .expiration_seconds
        .and_then(|seconds| u64::try_from(seconds).ok());
    let pem = String::from_utf8_lossy(&spec.request.0);
    signer.sign(
        &pem,
        usages,
        seconds.map(Duration::from_secs),
        OffsetDateTime::now_utc(),
    )
}

/// The rules of the signers, <https://kubernetes.io/docs/reference/access-authn-authz/certificate-signing-requests>.
fn check(signer: &str, requested: &Requested, usages: &[String]) -> Result<(), String> {
    // The issuing library keeps one value per subject attribute; a certificate with fewer groups than approved
    // would be worse than none.
    if requested.organizations.len() > 1 {
        return Err("more than one organization in the subject is not supported".to_owned());
    }
    match signer {
        KUBE_APISERVER_CLIENT => {
            let allowed = ["digital signature", "key encipherment", "client auth"];
            let fits = usages.iter().all(|usage| allowed.contains(&usage.as_str()));
            if fits && usages.iter().any(|usage| usage == "client auth") {
                Ok(())
            } else {
                Err("usages did not match the signer's".to_owned())
            }
        }
        KUBE_APISERVER_CLIENT_KUBELET => {
            request::check_kubelet_client(requested, usages).map_err(str::to_owned)
        }
        KUBELET_SERVING => request::check_kubelet_serving(requested, usages).map_err(str::to_owned),
        _ => Ok(()),
    }
}

impl Signer {
    fn new(authority: &SigningAuthority, longest: Duration) -> anyhow::Result<Self> {
        let key = KeyPair::from_pem(&authority.key)?;
        let (_, block) = x509_parser::pem::parse_x509_pem(authority.certificate.as_bytes())?;
        let not_after = block.parse_x509()?.validity().not_after.to_datetime();
        Ok(Self {
            issuer: Issuer::from_ca_cert_pem(&authority.certificate, key)?,
            not_after,
            longest,
        })
    }

    /// Issue the certificate that the PEM-encoded request asks for, with exactly these usages.
    fn sign(
        &self,
        pem: &str,
        usages: &[String],
        wanted: Option<Duration>,
        now: OffsetDateTime,
    ) -> Result<String, String> {
        let mut request =
            CertificateSigningRequestParams::from_pem(pem).map_err(|error| error.to_string())?;
        let params = &mut request.params;
        params.is_ca = IsCa::NoCa;
        params.key_usages.clear();
        params.extended_key_usages.clear();
        for usage in usages {
            match usage_of(usage).ok_or_else(|| format!("unknown usage {usage:?}"))? {
                Usage::Key(purpose) => params.key_usages.push(purpose),
                Usage::Extended(purpose) => params.extended_key_usages.push(purpose),
            }
        }
        let duration = wanted.map_or(self.longest, |wanted| wanted.clamp(SHORTEST, self.longest));
        params.not_before = now - BACKDATE;
        params.not_after = (now + duration).min(self.not_after);
        params.use_authority_key_identifier_extension = true;
        let mut serial: [u8; 16] = rand::random();
        // Positive in DER, as serial numbers have to be.
        serial[0] &= 0x7f;
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        let certificate = request
            .signed_by(&self.issuer)
            .map_err(|error| error.to_string())?;
        Ok(certificate.pem())
    }
}

enum Usage {
    Key(KeyUsagePurpose),
    Extended(ExtendedKeyUsagePurpose),
}

fn usage_of(name: &str) -> Option<Usage> {
    Some(match name {
        "signing" | "digital signature" => Usage::Key(KeyUsagePurpose::DigitalSignature),
        "content commitment" => Usage::Key(KeyUsagePurpose::ContentCommitment),
        "key encipherment" => Usage::Key(KeyUsagePurpose::KeyEncipherment),
        "data encipherment" => Usage::Key(KeyUsagePurpose::DataEncipherment),
        "key agreement" => Usage::Key(KeyUsagePurpose::KeyAgreement),
        "cert sign" => Usage::Key(KeyUsagePurpose::KeyCertSign),
        "crl sign" => Usage::Key(KeyUsagePurpose::CrlSign),
        "encipher only" => Usage::Key(KeyUsagePurpose::EncipherOnly),
        "decipher only" => Usage::Key(KeyUsagePurpose::DecipherOnly),
        "any" => Usage::Extended(ExtendedKeyUsagePurpose::Any),
        "server auth" => Usage::Extended(ExtendedKeyUsagePurpose::ServerAuth),
        "client auth" => Usage::Extended(ExtendedKeyUsagePurpose::ClientAuth),
        "code signing" => Usage::Extended(ExtendedKeyUsagePurpose::CodeSigning),
        "email protection" | "s/mime" => Usage::Extended(ExtendedKeyUsagePurpose::EmailProtection),
        "timestamping" => Usage::Extended(ExtendedKeyUsagePurpose::TimeStamping),
        "ocsp signing" => Usage::Extended(ExtendedKeyUsagePurpose::OcspSigning),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use k8s_openapi::api::{
        certificates::v1::CertificateSigningRequestSpec,
        core::v1::{Node, NodeAddress, NodeStatus},
    };
    use rcgen::{BasicConstraints, CertificateParams, DnType};

    use super::*;
    use crate::common::test_support::{context, named};

    fn authority() -> SigningAuthority {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.not_after = OffsetDateTime::now_utc() + Duration::from_secs(90 * 24 * 3600);
        params
            .distinguished_name
            .push(DnType::CommonName, "test CA");
        let key = KeyPair::generate().unwrap();
        SigningAuthority {
            certificate: params.self_signed(&key).unwrap().pem(),
            key: key.serialize_pem(),
        }
    }

    fn csr(common_name: &str, names: &[&str]) -> String {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params
            .distinguished_name
            .push(DnType::CommonName, common_name);
        params
            .distinguished_name
            .push(DnType::OrganizationName, "system:nodes");
        params
            .serialize_request(&KeyPair::generate().unwrap())
            .unwrap()
            .pem()
            .unwrap()
    }

    #[test]
    fn certificates_have_the_requested_life_within_limits() {
        let authority = authority();
        let day = Duration::from_secs(24 * 3600);
        let signer = Signer::new(&authority, 30 * day).unwrap();
        let now = OffsetDateTime::now_utc();
        let usages = ["client auth".to_owned(), "digital signature".to_owned()];
        let life = |signer: &Signer, wanted: Option<Duration>| {
            let pem = signer
                .sign(&csr("system:node:a", &[]), &usages, wanted, now)
                .unwrap();
            let (_, block) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
            let certificate = block.parse_x509().unwrap();
            let usage = certificate
                .extended_key_usage()
                .unwrap()
                .unwrap()
                .value
                .clone();
            assert!(usage.client_auth && !usage.server_auth);
            assert!(!certificate.is_ca());
            let end = certificate.validity().not_after.to_datetime();
            (end - now).whole_hours() + 1
        };
        assert_eq!(life(&signer, None), 30 * 24);
        assert_eq!(life(&signer, Some(day)), 24);
        assert_eq!(life(&signer, Some(Duration::ZERO)), 1);
        assert_eq!(life(&signer, Some(400 * day)), 30 * 24);
        let long = Signer::new(&authority, 400 * day).unwrap();
        assert_eq!(
            life(&long, None),
            90 * 24,
            "not longer than the authority itself"
        );
        assert!(signer.sign("nonsense", &usages, None, now).is_err());
        assert!(
            signer
                .sign(&csr("a", &[]), &["fly".to_owned()], None, now)
                .is_err()
        );
    }

    #[tokio::test]
    async fn a_node_gets_its_serving_certificate_once_its_address_is_known() {
        let (fake, mut context) = context();
        Arc::get_mut(&mut context.config).unwrap().cluster_signing = Some(authority());
        let mut node = fake.insert(Node {
            metadata: named("", "node-0"),
            ..Node::default()
        });
        fake.insert(CertificateSigningRequest {
            metadata: named("", "csr"),
            spec: CertificateSigningRequestSpec {
                request: ByteString(csr("system:node:node-0", &["10.224.0.4"]).into_bytes()),
                signer_name: KUBELET_SERVING.to_owned(),
                username: Some("system:node:node-0".to_owned()),
                groups: Some(vec!["system:nodes".to_owned()]),
                usages: Some(vec![
                    "digital signature".to_owned(),
                    "server auth".to_owned(),
                ]),
                ..CertificateSigningRequestSpec::default()
            },
            status: None,
        });
        tokio::spawn(super::super::approver::run(context.clone()));
        tokio::spawn(run(context));
        let address = NodeAddress {
            type_: "InternalIP".to_owned(),
            address: "10.224.0.4".to_owned(),
        };
        node.status = Some(NodeStatus {
            addresses: Some(vec![address]),
            ..NodeStatus::default()
        });
        fake.update(&node);
        fake.until("certificate", |fake| {
            fake.get::<CertificateSigningRequest>("", "csr")
                .is_some_and(|request| is_issued(&request))
        })
        .await;
    }

    #[tokio::test]
    async fn what_breaks_the_signers_rules_fails_although_approved() {
        let (fake, mut context) = context();
        Arc::get_mut(&mut context.config).unwrap().cluster_signing = Some(authority());
        let mut request = CertificateSigningRequest {
            metadata: named("", "csr"),
            spec: CertificateSigningRequestSpec {
                request: ByteString(csr("admin", &[]).into_bytes()),
                signer_name: KUBE_APISERVER_CLIENT_KUBELET.to_owned(),
                usages: Some(vec![
                    "digital signature".to_owned(),
                    "client auth".to_owned(),
                ]),
                ..CertificateSigningRequestSpec::default()
            },
            status: None,
        };
        add_condition(&mut request, "Approved", "ByHand", "");
        fake.insert(request);
        tokio::spawn(run(context));
        fake.until("failure", |fake| {
            let request = fake.get::<CertificateSigningRequest>("", "csr");
            request.is_some_and(|request| has_condition(&request, "Failed") && !is_issued(&request))
        })
        .await;
    }
}
