//! The controllers of CertificateSigningRequests: approving, signing, cleaning up.

pub mod approver;
pub mod cleaner;
mod request;
pub mod signer;

use k8s_openapi::api::certificates::v1::{
    CertificateSigningRequest, CertificateSigningRequestCondition,
};

use crate::common::now;

const KUBE_APISERVER_CLIENT: &str = "kubernetes.io/kube-apiserver-client";
const KUBE_APISERVER_CLIENT_KUBELET: &str = "kubernetes.io/kube-apiserver-client-kubelet";
const KUBELET_SERVING: &str = "kubernetes.io/kubelet-serving";
const LEGACY_UNKNOWN: &str = "kubernetes.io/legacy-unknown";

fn has_condition(request: &CertificateSigningRequest, type_: &str) -> bool {
    condition(request, type_).is_some()
}

fn condition<'a>(
    request: &'a CertificateSigningRequest,
    type_: &str,
) -> Option<&'a CertificateSigningRequestCondition> {
    let mut conditions = request.status.as_ref()?.conditions.iter().flatten();
    conditions.find(|condition| condition.type_ == type_ && condition.status == "True")
}

fn is_issued(request: &CertificateSigningRequest) -> bool {
    let certificate = request
        .status
        .as_ref()
        .and_then(|status| status.certificate.as_ref());
    certificate.is_some_and(|certificate| !certificate.0.is_empty())
}

fn add_condition(
    request: &mut CertificateSigningRequest,
    type_: &str,
    reason: &str,
    message: &str,
) {
    let condition = CertificateSigningRequestCondition {
        type_: type_.to_owned(),
        status: "True".to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_update_time: Some(now()),
        last_transition_time: Some(now()),
    };
    request
        .status
        .get_or_insert_default()
        .conditions
        .get_or_insert_default()
        .push(condition);
}
