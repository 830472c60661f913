//! certificatesigningrequest-cleaner-controller: forgets requests that are settled or that nobody cares about.

use fluyt_client::{Action, Informer, ObjectKey, WorkQueue, controller, is_not_found};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use kube::{Api, Client, api::DeleteParams};

use super::{condition, is_issued};
use crate::{
    Context,
    common::{enqueue, to_wait},
};

const SETTLED: SignedDuration = SignedDuration::from_hours(1);
const PENDING: SignedDuration = SignedDuration::from_hours(24);

/// Run the controller until shutdown.
pub async fn run(context: Context) {
    let requests = context.informers.get::<CertificateSigningRequest>();
    requests.synced().await;
    let queue = WorkQueue::new();
    enqueue(&requests, &queue);
    let reconcile = |key| reconcile(key, &requests, &context.client);
    let shutdown = context.shutdown.clone();
    controller::run(
        "certificatesigningrequest-cleaner-controller",
        queue,
        1,
        reconcile,
        shutdown,
    )
    .await;
}

async fn reconcile(
    key: ObjectKey,
    requests: &Informer<CertificateSigningRequest>,
    client: &Client,
) -> anyhow::Result<Action> {
    let Some(request) = requests.get_key(&key) else {
        return Ok(Action::Await);
    };
    let Some(end) = end_of_life(&request) else {
        return Ok(Action::Await);
    };
    let left = end.duration_since(Timestamp::now());
    if left.is_positive() {
        return Ok(Action::Requeue(to_wait(left)));
    }
    let api = Api::<CertificateSigningRequest>::all(client.clone());
    match api.delete(&key.name, &DeleteParams::default()).await {
        Err(error) if is_not_found(&error) => {}
        result => drop(result?),
    }
    Ok(Action::Await)
}

/// When the request may be deleted.
fn end_of_life(request: &CertificateSigningRequest) -> Option<Timestamp> {
    let created = request.metadata.creation_timestamp.as_ref()?.0;
    let decided = ["Denied", "Failed", "Approved"]
        .iter()
        .find_map(|type_| condition(request, type_));
    let Some(decided) = decided else {
        return created.checked_add(PENDING).ok();
    };
    if decided.type_ == "Approved" && !is_issued(request) {
        // Another signer than ours may take its time.
        return created.checked_add(PENDING).ok();
    }
    let since = decided
        .last_update_time
        .as_ref()
        .map_or(created, |time| time.0);
    since.checked_add(SETTLED).ok()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::{ByteString, apimachinery::pkg::apis::meta::v1::Time};

    use super::*;
    use crate::certificates::add_condition;

    #[test]
    fn lives() {
        let created = Timestamp::now();
        let mut request = CertificateSigningRequest::default();
        request.metadata.creation_timestamp = Some(Time(created));
        let hours = |request: &CertificateSigningRequest| {
            (end_of_life(request)
                .unwrap()
                .duration_since(created)
                .as_secs()
                + 60)
                / 3600
        };
        assert_eq!(hours(&request), 24);
        let mut denied = request.clone();
        add_condition(&mut denied, "Denied", "", "");
        assert_eq!(hours(&denied), 1);
        add_condition(&mut request, "Approved", "", "");
        assert_eq!(hours(&request), 24);
        request.status.as_mut().unwrap().certificate = Some(ByteString(b"PEM".to_vec()));
        assert_eq!(hours(&request), 1);
    }
}
