//! What holds between services, the objects of their addresses and the bitmap of node ports is kept by every write of this
//! server, but not by everybody: older versions of it knew neither, upstream's servers write them one after the other, and
//! users may delete addresses. So it is made good before the server is ready, when something changes, and now and then.
//! These are upstream's `ipallocator-repair-controller` and `portallocator-repair-controller`.

mod addresses;
mod ports;

use std::sync::Arc;
use std::time::Duration;

use fluyt_api::resources::{self, Resource};
use fluyt_api::{Error, meta};

use crate::cache::{Filter, Subscription, WatchEvent};
use crate::registry::service::{addresses as address_resource, service_cidrs};
use crate::{Server, default_service_cidr};

/// How often everything is looked at, upstream's figure.
const INTERVAL: Duration = Duration::from_secs(180);

fn services() -> Result<&'static Resource, Error> {
    resources::find("", "v1", "services").ok_or_else(Error::no_route)
}

/// The repair of one server.
#[derive(Default)]
pub struct Repair {
    leaks: ports::Leaks,
}

/// The changes that it has to do with.
struct Changes {
    services: Subscription,
    addresses: Subscription,
    cidrs: Subscription,
}

impl Repair {
    /// Looks at everything; when to look again.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn once(&mut self, server: &Arc<Server>) -> Result<Duration, Error> {
        ports::repair(server, &mut self.leaks).await?;
        let next = addresses::all(server).await?;
        Ok(next.map_or(INTERVAL, |next| next.min(INTERVAL)))
    }

    /// Goes on until shutdown, from `next` on.
    pub async fn run(mut self, server: Arc<Server>, mut next: Duration) {
        loop {
            let followed = tokio::select! {
                followed = follow(&server, next) => followed,
                () = server.shutdown.cancelled() => return,
            };
            let looked = match followed {
                Ok(()) => self.once(&server).await,
                Err(error) => Err(error),
            };
            next = looked.unwrap_or_else(|error| {
                tracing::warn!(%error, "cannot repair what services have");
                INTERVAL
            });
        }
    }
}

/// Looks at what changes, for some time or until changes are missed.
async fn follow(server: &Arc<Server>, time: Duration) -> Result<(), Error> {
    let subscribe = |resource| {
        let cache = server.caches.of(resource);
        cache.subscribe_with_state(Filter::default()).2
    };
    let mut changes = Changes {
        services: subscribe(services()?),
        addresses: subscribe(address_resource()?),
        cidrs: subscribe(service_cidrs()?),
    };
    let end = tokio::time::sleep(time);
    tokio::pin!(end);
    loop {
        let changed = tokio::select! {
            () = &mut end => return Ok(()),
            changed = changes.services.events.recv() => changed.map(|(_, event)| Changed::Service(event)),
            changed = changes.addresses.events.recv() => changed.map(|(_, event)| Changed::Address(event)),
            changed = changes.cidrs.events.recv() => changed.map(|(_, event)| Changed::Cidr(event)),
        };
        let Some(changed) = changed else {
            return Ok(());
        };
        if let Err(error) = changed.look(server).await {
            tracing::warn!(%error, "cannot repair what a service has");
        }
    }
}

enum Changed {
    Service(Arc<WatchEvent>),
    Address(Arc<WatchEvent>),
    Cidr(Arc<WatchEvent>),
}

impl Changed {
    async fn look(&self, server: &Arc<Server>) -> Result<(), Error> {
        let (Self::Service(event) | Self::Address(event) | Self::Cidr(event)) = self;
        // What was written with it is in the caches, too.
        server.caches.main().wait_for(event.revision).await?;
        match self {
            Self::Service(event) if event.is_deletion() => Ok(()),
            Self::Service(event) => addresses::service(server, &event.entry.key).await,
            Self::Address(event) => {
                let address = event.entry.object();
                let parent = &address["spec"]["parentRef"];
                let text = |field: &str| parent[field].as_str().unwrap_or_default();
                let key = format!("{}/{}", text("namespace"), text("name"));
                addresses::service(server, &key).await?;
                addresses::address(server, meta::name(&address))
                    .await
                    .map(drop)
            }
            Self::Cidr(event) if event.entry.name() == default_service_cidr::NAME => {
                default_service_cidr::sync(server).await
            }
            Self::Cidr(_) => Ok(()),
        }
    }
}
