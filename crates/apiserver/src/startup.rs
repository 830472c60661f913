//! How the server begins: it listens while its caches are filled and its defaults are put in place, and answers for its
//! health; what else is asked waits until then.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fluyt_api::Error;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::drain::is_always_served;
use crate::limits;
use crate::request::RequestInfo;

/// Flags about the time before the server is ready.
#[derive(clap::Args, Clone, Debug)]
pub struct StartupFlags {
    /// How long after its start the server counts as live (/livez) although it has not finished to start.
    #[arg(long, default_value = "0s", value_parser = limits::duration)]
    pub livez_grace_period: Duration,
    /// How long requests wait for a server that is starting; later ones are asked to come again.
    #[arg(long, default_value = "1m0s", value_parser = limits::duration)]
    pub storage_initialization_timeout: Duration,
}

impl Default for StartupFlags {
    fn default() -> Self {
        Self {
            livez_grace_period: Duration::ZERO,
            storage_initialization_timeout: Duration::from_secs(60),
        }
    }
}

/// The steps of the start in their order, each a check of `/livez` and `/readyz` by upstream's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    SystemNamespaces,
    Roles,
    PriorityClasses,
    ServiceRepair,
    KubernetesService,
    AuthenticationInfo,
    TokenTracking,
    FlowControl,
}

impl Step {
    pub const ALL: [Self; 8] = [
        Self::SystemNamespaces,
        Self::Roles,
        Self::PriorityClasses,
        Self::ServiceRepair,
        Self::KubernetesService,
        Self::AuthenticationInfo,
        Self::TokenTracking,
        Self::FlowControl,
    ];

    /// The check of the step.
    #[must_use]
    pub fn check(self) -> &'static str {
        match self {
            Self::SystemNamespaces => "poststarthook/start-system-namespaces-controller",
            Self::Roles => "poststarthook/rbac/bootstrap-roles",
            Self::PriorityClasses => "poststarthook/scheduling/bootstrap-system-priority-classes",
            Self::ServiceRepair => "poststarthook/start-service-ip-repair-controllers",
            Self::KubernetesService => "poststarthook/bootstrap-controller",
            Self::AuthenticationInfo => {
                "poststarthook/start-cluster-authentication-info-controller"
            }
            Self::TokenTracking => "poststarthook/start-legacy-token-tracking-controller",
            Self::FlowControl => "poststarthook/priority-and-fairness-config-producer",
        }
    }
}

/// How far the start has got.
pub struct Startup {
    flags: StartupFlags,
    began: Instant,
    /// How many steps are done.
    done: watch::Sender<usize>,
    ready: AtomicBool,
}

impl Startup {
    #[must_use]
    pub fn begin(flags: StartupFlags) -> Self {
        Self {
            flags,
            began: Instant::now(),
            done: watch::Sender::new(0),
            ready: AtomicBool::new(false),
        }
    }

    /// Whether every step is done.
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }

    pub fn finish(&self, step: Step) {
        self.done.send_replace(step as usize + 1);
    }

    /// Everything is in place.
    pub fn finish_all(&self) {
        self.ready.store(true, Ordering::Release);
        self.done.send_replace(Step::ALL.len());
    }

    pub fn has_finished(&self, step: Step) -> bool {
        *self.done.borrow() > step as usize
    }

    /// Whether `/livez` still takes what is not finished as if it were.
    pub fn is_graced(&self) -> bool {
        self.began.elapsed() < self.flags.livez_grace_period
    }

    /// Holds a request until the server is ready.
    ///
    /// # Errors
    /// When that takes too long, or the server stops.
    pub async fn hold(
        &self,
        info: &RequestInfo,
        stopping: &CancellationToken,
    ) -> Result<(), Error> {
        if is_always_served(&info.path) {
            return Ok(());
        }
        let mut done = self.done.subscribe();
        let ready = done.wait_for(|_| self.is_ready());
        let deadline = self.began + self.flags.storage_initialization_timeout;
        tokio::select! {
            _ = ready => Ok(()),
            () = tokio::time::sleep_until(deadline) => {
                Err(Error::too_many_requests("storage is (re)initializing", 1))
            }
            () = stopping.cancelled() => Err(Error::unavailable("the server is shutting down")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fluyt_api::resources::Snapshot;

    fn info(path: &str) -> RequestInfo {
        RequestInfo::parse(&Snapshot::default(), &::http::Method::GET, path, None)
    }

    #[tokio::test(start_paused = true)]
    async fn requests_wait_for_the_end_of_the_start_but_not_for_ever() {
        let startup = Startup::begin(StartupFlags::default());
        let stopping = CancellationToken::new();
        let (pods, livez) = (info("/api/v1/pods"), info("/livez"));
        startup.hold(&livez, &stopping).await.unwrap();
        let finishing = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            startup.finish_all();
        };
        let (held, ()) = tokio::join!(startup.hold(&pods, &stopping), finishing);
        held.unwrap();
        assert_eq!(startup.began.elapsed(), Duration::from_secs(1));

        let startup = Startup::begin(StartupFlags::default());
        let late = startup.hold(&pods, &stopping).await.unwrap_err();
        assert_eq!((late.code, late.retry_after_seconds), (429, 1));
        assert_eq!(startup.began.elapsed(), Duration::from_secs(60));
        stopping.cancel();
        let startup = Startup::begin(StartupFlags::default());
        assert_eq!(startup.hold(&pods, &stopping).await.unwrap_err().code, 503);
    }

    #[test]
    fn steps_are_done_in_their_order() {
        let startup = Startup::begin(StartupFlags {
            livez_grace_period: Duration::from_secs(3600),
            ..StartupFlags::default()
        });
        startup.finish(Step::Roles);
        let finished: Vec<_> = Step::ALL.map(|step| startup.has_finished(step)).into();
        assert_eq!(finished[..3], [true, true, false]);
        assert!(startup.is_graced() && !startup.is_ready());
        startup.finish_all();
        assert!(Step::ALL.iter().all(|step| startup.has_finished(*step)));
        assert!(!Startup::begin(StartupFlags::default()).is_graced());
    }
}
