//! Leader election over a Lease, with client-go's protocol and parameters, so that replicas of ours and of
//! upstream's can stand for the same office.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
};
use kube::{Api, Client, api::PostParams};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use crate::is_not_found;

/// A candidate for the office that the Lease `namespace/name` stands for.
#[derive(Clone)]
pub struct LeaderElector {
    pub client: Client,
    pub namespace: String,
    pub name: String,
    /// Distinguishes the candidates; conventionally `<host>_<uuid>`.
    pub identity: String,
    /// How long others wait for a silent leader.
    pub lease_duration: Duration,
    /// How long a leader tries to renew before it gives up.
    pub renew_deadline: Duration,
    /// Time between tries.
    pub retry_period: Duration,
}

/// The leader could not renew in time; its work was cancelled. The process should exit or stand again.
#[derive(Debug, thiserror::Error)]
#[error("leader election lost")]
pub struct Lost;

/// `<host>_<random>`: an identity no other candidate has, not even after a restart on the same host.
pub fn unique_identity() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}_{:032x}", host.trim(), rand::random::<u128>())
}

/// What we last saw in the Lease, and when: only our own clock counts, as clocks of others may be off.
struct Observed {
    lease: Lease,
    at: Instant,
}

impl LeaderElector {
    /// A candidate with client-go's 15 s / 10 s / 2 s.
    pub fn new(client: Client, namespace: &str, name: &str, identity: &str) -> Self {
        Self {
            client,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            identity: identity.to_owned(),
            lease_duration: Duration::from_secs(15),
            renew_deadline: Duration::from_secs(10),
            retry_period: Duration::from_secs(2),
        }
    }

    /// Wait until elected, then run `work` with a token that is cancelled when leadership is lost. The lease is
    /// released when `work` ends or `shutdown` is cancelled.
    pub async fn run<F, Fut, T>(
        self,
        shutdown: CancellationToken,
        work: F,
    ) -> Result<Option<T>, Lost>
    where
        F: FnOnce(CancellationToken) -> Fut,
        Fut: Future<Output = T>,
    {
        let mut observed = None;
        tokio::select! {
            () = shutdown.cancelled() => return Ok(None),
            () = self.acquire(&mut observed) => {}
        }
        info!(lease = self.name, identity = self.identity, "became leader");
        let leading = shutdown.child_token();
        let mut work = std::pin::pin!(work(leading.clone()));
        tokio::select! {
            result = &mut work => {
                self.release(&mut observed).await;
                Ok(Some(result))
            }
            () = self.keep(&mut observed) => {
                leading.cancel();
                work.await;
                Err(Lost)
            }
        }
    }

    async fn acquire(&self, observed: &mut Option<Observed>) {
        while !self.try_acquire_or_renew(observed).await {
            // Jitter of 20 %, so that candidates don't try in step.
            let jitter = 1.0 + 0.2 * rand::random::<f64>();
            tokio::time::sleep(self.retry_period.mul_f64(jitter)).await;
        }
    }

    /// Renew until that fails for `renew_deadline`.
    async fn keep(&self, observed: &mut Option<Observed>) {
        let mut renewed = Instant::now();
        loop {
            tokio::time::sleep(self.retry_period).await;
            let deadline = renewed + self.renew_deadline;
            let attempt = self.try_acquire_or_renew(observed);
            match tokio::time::timeout_at(deadline, attempt).await {
                Ok(true) => renewed = Instant::now(),
                _ if Instant::now() >= deadline => return,
                _ => {}
            }
        }
    }

    async fn try_acquire_or_renew(&self, observed: &mut Option<Observed>) -> bool {
        match self.attempt(observed).await {
            Ok(leading) => leading,
            Err(error) => {
                debug!(lease = self.name, %error, "can't update the leader lease");
                false
            }
        }
    }

    async fn attempt(&self, observed: &mut Option<Observed>) -> kube::Result<bool> {
        let api = Api::<Lease>::namespaced(self.client.clone(), &self.namespace);
        let now = MicroTime(Timestamp::now());
        let current = match api.get(&self.name).await {
            Ok(lease) => lease,
            Err(error) if is_not_found(&error) => {
                let lease = Lease {
                    metadata: ObjectMeta {
                        name: Some(self.name.clone()),
                        namespace: Some(self.namespace.clone()),
                        ..ObjectMeta::default()
                    },
                    spec: Some(self.claim(&LeaseSpec::default(), now)),
                };
                let lease = api.create(&PostParams::default(), &lease).await?;
                *observed = Some(Observed::now(lease));
                return Ok(true);
            }
            Err(error) => return Err(error),
        };
        if observed
            .as_ref()
            .is_none_or(|seen| seen.lease.spec != current.spec)
        {
            *observed = Some(Observed::now(current.clone()));
        }
        let spec = current.spec.clone().unwrap_or_default();
        let holder = spec.holder_identity.as_deref().unwrap_or_default();
        if !holder.is_empty() && holder != self.identity {
            let term = spec.lease_duration_seconds.unwrap_or(15).max(0);
            let valid_for = Duration::from_secs(u64::from(term.unsigned_abs()));
            if observed
                .as_ref()
                .is_some_and(|seen| seen.at.elapsed() < valid_for)
            {
                return Ok(false);
            }
        }
        let mut claimed = current;
        claimed.spec = Some(self.claim(&spec, now));
        let lease = api
            .replace(&self.name, &PostParams::default(), &claimed)
            .await?;
        *observed = Some(Observed::now(lease));
        Ok(true)
    }

    fn claim(&self, before: &LeaseSpec, now: MicroTime) -> LeaseSpec {
        let ours = before.holder_identity.as_deref() == Some(self.identity.as_str());
        let transitions = before.lease_transitions.unwrap_or(0);
        let first = before.holder_identity.is_none();
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(self.lease_duration.as_secs()).ok(),
            acquire_time: if ours {
                before.acquire_time.clone()
            } else {
                Some(now.clone())
            },
            renew_time: Some(now),
            lease_transitions: Some(if ours || first {
                transitions
            } else {
                transitions + 1
            }),
            ..LeaseSpec::default()
        }
    }

    /// Let the next candidate in at once.
    async fn release(&self, observed: &mut Option<Observed>) {
        let Some(Observed { mut lease, .. }) = observed.take() else {
            return;
        };
        let now = MicroTime(Timestamp::now());
        lease.spec = Some(LeaseSpec {
            holder_identity: Some(String::new()),
            lease_duration_seconds: Some(1),
            acquire_time: Some(now.clone()),
            renew_time: Some(now),
            lease_transitions: lease.spec.and_then(|spec| spec.lease_transitions),
            ..LeaseSpec::default()
        });
        let api = Api::<Lease>::namespaced(self.client.clone(), &self.namespace);
        let params = PostParams::default();
        let release = api.replace(&self.name, &params, &lease);
        // The API server may be going down together with us.
        let release = tokio::time::timeout(Duration::from_secs(1), release);
        if !matches!(release.await, Ok(Ok(_))) {
            debug!(
                lease = self.name,
                "leader lease not released, it will expire"
            );
        }
    }
}

impl Observed {
    fn now(lease: Lease) -> Self {
        Self {
            lease,
            at: Instant::now(),
        }
    }
}
