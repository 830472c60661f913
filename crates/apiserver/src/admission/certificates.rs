//! Who may approve, sign and attest certificates: `CertificateApproval`, `CertificateSigning`,
//! `CertificateSubjectRestriction` and `ClusterTrustBundleAttest`.

use async_trait::async_trait;
use fluyt_api::Error;
use fluyt_api::validation::Errors;
use serde_json::Value;

use super::{Attributes, Operation, Plugin, Shared};
use crate::authz::Question;
use crate::cache::Caches;

/// Whether the user may do `verb` on a signer, by its name or its domain.
fn allowed(shared: &Shared, attributes: &Attributes<'_>, verb: &str, signer: &str) -> bool {
    let domain = signer
        .split_once('/')
        .map(|(domain, _)| format!("{domain}/*"));
    std::iter::once(signer.to_owned())
        .chain(domain)
        .any(|name| {
            let question = Question {
                verb: verb.into(),
                group: "certificates.k8s.io".into(),
                resource: "signers".into(),
                name,
                ..Question::default()
            };
            shared
                .authorizer
                .allows(&attributes.cx.user, &question)
                .is_some()
        })
}

fn is_request(attributes: &Attributes<'_>, subresource: &str, operation: Operation) -> bool {
    let at = attributes.at;
    at.resource.group == "certificates.k8s.io"
        && at.resource.plural == "certificatesigningrequests"
        && at.subresource == subresource
        && attributes.operation == operation
}

fn signer(object: &Value) -> &str {
    object["spec"]["signerName"].as_str().unwrap_or_default()
}

/// Approving needs the verb `approve` on the signer.
pub(super) struct Approval(pub Shared);

#[async_trait]
impl Plugin for Approval {
    async fn validate(
        &self,
        _: &Caches,
        attributes: &Attributes<'_>,
        object: &Value,
    ) -> Result<(), Error> {
        let concerns = is_request(attributes, "approval", Operation::Update);
        if !concerns || allowed(&self.0, attributes, "approve", signer(object)) {
            return Ok(());
        }
        Err(attributes.forbidden(format!(
            "user not permitted to approve requests with signerName {:?}",
            signer(object)
        )))
    }
}

/// Issuing a certificate needs the verb `sign` on the signer.
pub(super) struct Signing(pub Shared);

#[async_trait]
impl Plugin for Signing {
    async fn validate(
        &self,
        _: &Caches,
        attributes: &Attributes<'_>,
        object: &Value,
    ) -> Result<(), Error> {
        if let Some(old) = attributes.old
            && is_of_pod(attributes)
        {
            return self.check_of_pod(attributes, object, old);
        }
        let Some(old) = attributes
            .old
            .filter(|_| is_request(attributes, "status", Operation::Update))
        else {
            return Ok(());
        };
        let failed = |o: &Value| {
            let conditions = o["status"]["conditions"].as_array();
            conditions.is_some_and(|c| c.iter().any(|c| c["type"] == "Failed"))
        };
        let same = old["status"]["certificate"] == object["status"]["certificate"]
            && failed(old) == failed(object);
        if same || allowed(&self.0, attributes, "sign", signer(old)) {
            return Ok(());
        }
        Err(attributes.forbidden(format!(
            "user not permitted to sign requests with signerName {:?}",
            signer(old)
        )))
    }
}

/// Whether this is about the status of a request for a pod's certificate.
fn is_of_pod(attributes: &Attributes<'_>) -> bool {
    let at = attributes.at;
    at.resource.plural == "podcertificaterequests"
        && at.resource.group == "certificates.k8s.io"
        && at.subresource == "status"
        && attributes.operation == Operation::Update
}

impl Signing {
    /// Whoever answers a pod's request is told what is missing as if the request were wrong.
    fn check_of_pod(
        &self,
        attributes: &Attributes<'_>,
        object: &Value,
        old: &Value,
    ) -> Result<(), Error> {
        let signer = signer(old);
        if object["status"] == old["status"] || allowed(&self.0, attributes, "sign", signer) {
            return Ok(());
        }
        let mut errors = Errors::default();
        let why = format!(
            "User {:?} is not permitted to \"sign\" for signer {signer:?}",
            attributes.cx.user.name
        );
        errors.forbidden("spec.signerName", &why);
        let resource = attributes.at.resource;
        let name = attributes.at.name;
        Err(Error::invalid(
            resource.group,
            resource.kind,
            name,
            errors.0,
        ))
    }
}

/// Nobody asks the API server's own signer for membership in the group that may do everything.
pub(super) struct SubjectRestriction;

#[async_trait]
impl Plugin for SubjectRestriction {
    async fn validate(
        &self,
        _: &Caches,
        attributes: &Attributes<'_>,
        object: &Value,
    ) -> Result<(), Error> {
        if !is_request(attributes, "", Operation::Create)
            || signer(object) != "kubernetes.io/kube-apiserver-client"
        {
            return Ok(());
        }
        match organizations(object["spec"]["request"].as_str().unwrap_or_default()) {
            None => Err(attributes.forbidden("could not parse CSR: PEM block type must be CERTIFICATE REQUEST")),
            Some(groups) if groups.iter().any(|g| g == "system:masters") => {
                Err(attributes.forbidden("use of kubernetes.io/kube-apiserver-client signer with system:masters group is not allowed"))
            }
            Some(_) => Ok(()),
        }
    }
}

/// The organizations that a certificate request (PEM in base64) names.
fn organizations(request: &str) -> Option<Vec<String>> {
    use base64::Engine as _;
    use x509_parser::prelude::FromDer as _;
    let pem = base64::engine::general_purpose::STANDARD
        .decode(request)
        .ok()?;
    let (_, pem) = x509_parser::pem::parse_x509_pem(&pem).ok()?;
    let (_, csr) =
        x509_parser::certification_request::X509CertificationRequest::from_der(&pem.contents)
            .ok()?;
    let subject = &csr.certification_request_info.subject;
    Some(
        subject
            .iter_organization()
            .filter_map(|o| o.as_str().ok().map(str::to_owned))
            .collect(),
    )
}

/// A trust bundle of a signer needs the verb `attest` on it.
pub(super) struct TrustBundleAttest(pub Shared);

#[async_trait]
impl Plugin for TrustBundleAttest {
    async fn validate(
        &self,
        _: &Caches,
        attributes: &Attributes<'_>,
        object: &Value,
    ) -> Result<(), Error> {
        let at = attributes.at;
        let concerns = at.resource.kind == "ClusterTrustBundle"
            && matches!(attributes.operation, Operation::Create | Operation::Update);
        let signer = signer(object);
        if !concerns
            || signer.is_empty()
            || attributes.old.is_some_and(|o| o["spec"] == object["spec"])
        {
            return Ok(());
        }
        if allowed(&self.0, attributes, "attest", signer) {
            return Ok(());
        }
        Err(attributes.forbidden(format!(
            "user not permitted to attest for signerName {signer:?}"
        )))
    }
}
