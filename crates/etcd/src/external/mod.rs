//! The external engine: the [`Store`] trait over a real etcd cluster (3.4 and later).
//!
//! Connections are shared by all requests and made again by themselves. A request that did not reach a server is tried
//! again until its time is up; a write that may have reached one never is, because it would run twice.

mod connector;
mod convert;
mod error;
mod watch;

use std::future::Future;
use std::time::Duration;

use etcd_client::{
    Certificate, Client, ConnectOptions, Identity, KvClient, LeaseGrantOptions, TlsOptions,
    WatchClient,
};
use tokio::sync::watch as latest;
use tokio::time::Instant;

use crate::{Error, Range, RangeResult, Store, Txn, TxnResult, Watch, WatchStream};
use error::Failure;

pub use connector::{Connecting, Connector, Stream};

/// The pause between two attempts of a request.
const RETRY: Duration = Duration::from_millis(50);

/// How to reach a cluster; the periods are those of upstream's API server.
#[derive(Clone, Debug)]
pub struct Config {
    /// `http://host:port` or `https://host:port`, any number of members.
    pub endpoints: Vec<String>,
    /// Authorities of the servers' certificates, PEM.
    pub ca_pem: Option<String>,
    /// Certificate and key to present, PEM.
    pub client_pem: Option<(String, String)>,
    /// How often an idle connection is tested, and how long an answer may take before it counts as broken. A server
    /// refuses tests more often than its `--grpc-keepalive-min-time`.
    pub keep_alive: (Duration, Duration),
    pub connect_timeout: Duration,
    /// How long one request may take, all attempts together.
    pub request_timeout: Duration,
    /// How connections are opened; directly when not given.
    pub connector: Option<Connector>,
}

impl Config {
    #[must_use]
    pub fn new(endpoints: Vec<String>) -> Self {
        Self {
            endpoints,
            ca_pem: None,
            client_pem: None,
            keep_alive: (Duration::from_secs(30), Duration::from_secs(10)),
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(20),
            connector: None,
        }
    }
}

/// A connection to a cluster. Cheap to clone.
#[derive(Clone)]
pub struct External {
    client: Client,
    request_timeout: Duration,
    /// The newest revision that anybody asked to see; running watches make sure to report it.
    wanted: latest::Sender<i64>,
}

impl External {
    /// Connects lazily: this succeeds while no member can be reached.
    ///
    /// # Errors
    /// When an endpoint or a certificate makes no sense.
    pub async fn connect(config: Config) -> anyhow::Result<Self> {
        let mut options = ConnectOptions::new()
            .with_keep_alive(config.keep_alive.0, config.keep_alive.1)
            .with_keep_alive_while_idle(true)
            .with_connect_timeout(config.connect_timeout)
            // A member that lost its cluster must say so instead of keeping silent.
            .with_require_leader(true);
        if config.ca_pem.is_some() || config.client_pem.is_some() {
            let mut tls = TlsOptions::new();
            if let Some(ca) = config.ca_pem {
                tls = tls.ca_certificate(Certificate::from_pem(ca));
            }
            if let Some((certificate, key)) = config.client_pem {
                tls = tls.identity(Identity::from_pem(certificate, key));
            }
            options = options.with_tls(tls);
        }
        let (endpoints, options) = (config.endpoints, Some(options));
        let client = match config.connector {
            None => Client::connect(endpoints, options).await?,
            Some(connector) => {
                Client::connect_with_balanced_channel(endpoints, options, connector).await?
            }
        };
        Ok(Self {
            client,
            request_timeout: config.request_timeout,
            wanted: latest::Sender::new(0),
        })
    }

    fn kv(&self) -> KvClient {
        let client = self.client.kv_client();
        client
            .max_decoding_message_size(usize::MAX)
            .max_encoding_message_size(usize::MAX)
    }

    fn watches(&self) -> WatchClient {
        self.client
            .watch_client()
            .max_decoding_message_size(usize::MAX)
    }

    /// Runs a request until it has an answer or its time is up. `repeatable` ones may reach the server twice.
    async fn call<T, F>(
        &self,
        repeatable: bool,
        mut request: impl FnMut() -> F + Send,
    ) -> Result<T, Error>
    where
        F: Future<Output = Result<T, etcd_client::Error>> + Send,
    {
        let deadline = Instant::now() + self.request_timeout;
        loop {
            let failure = match tokio::time::timeout_at(deadline, request()).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) => Failure::from(error),
                Err(_) => return Err(Error::Unavailable("request timed out".into())),
            };
            let again = !failure.reached || (repeatable && failure.transient);
            if !again || Instant::now() + RETRY >= deadline {
                return Err(failure.error);
            }
            tokio::time::sleep(RETRY).await;
        }
    }
}

#[async_trait::async_trait]
impl Store for External {
    async fn range(&self, range: Range) -> Result<RangeResult, Error> {
        let (key, options) = convert::range(&range);
        let response = self
            .call(true, || {
                let (key, options, mut kv) = (key.clone(), options.clone(), self.kv());
                async move { kv.get(key, Some(options)).await }
            })
            .await?;
        Ok(convert::range_result(response.0))
    }

    async fn txn(&self, txn: Txn) -> Result<TxnResult, Error> {
        let request = convert::txn(txn);
        let response = self
            .call(false, || {
                let (request, mut kv) = (request.clone(), self.kv());
                async move { kv.txn(request).await }
            })
            .await?;
        convert::txn_result(response.0)
    }

    async fn watch(&self, mut watch: Watch) -> Result<WatchStream, Error> {
        if watch.start_revision <= 0 {
            watch.start_revision = self.newest().await? + 1;
        }
        Ok(watch::start(self.clone(), watch))
    }

    async fn compact(&self, revision: i64) -> Result<(), Error> {
        self.call(false, || {
            let mut kv = self.kv();
            async move { kv.compact(revision, None).await }
        })
        .await
        .map(drop)
    }

    async fn lease_grant(&self, id: i64, ttl: i64) -> Result<(i64, i64), Error> {
        let response = self
            .call(false, || {
                let mut leases = self.client.lease_client();
                let options = LeaseGrantOptions::new().with_id(id);
                async move { leases.grant(ttl, Some(options)).await }
            })
            .await?;
        Ok((response.id(), response.ttl()))
    }

    async fn lease_revoke(&self, id: i64) -> Result<(), Error> {
        self.call(false, || {
            let mut leases = self.client.lease_client();
            async move { leases.revoke(id).await }
        })
        .await
        .map(drop)
    }

    async fn lease_keep_alive(&self, id: i64) -> Result<i64, Error> {
        self.call(true, || {
            let mut leases = self.client.lease_client();
            async move {
                let (mut keeper, mut answers) = match leases.keep_alive(id).await {
                    // The client's own word for an answer of 0.
                    Err(etcd_client::Error::LeaseKeepAliveError(reason))
                        if reason == "lease not found" =>
                    {
                        return Ok(0);
                    }
                    opened => opened?,
                };
                keeper.keep_alive().await?;
                Ok(answers.message().await?.map_or(0, |answer| answer.ttl()))
            }
        })
        .await
    }

    async fn revision(&self) -> Result<i64, Error> {
        let revision = self.newest().await?;
        // In a shared cluster revisions pass that no watcher has an event for: those who wait for one must learn of it.
        self.wanted.send_if_modified(|wanted| {
            let newer = revision > *wanted;
            *wanted = revision.max(*wanted);
            newer
        });
        Ok(revision)
    }

    async fn size(&self) -> Result<i64, Error> {
        let status = self
            .call(true, || {
                let mut maintenance = self.client.maintenance_client();
                async move { maintenance.status().await }
            })
            .await?;
        Ok(status.db_size())
    }
}

impl External {
    /// The revision of a linearizable read that finds nothing.
    async fn newest(&self) -> Result<i64, Error> {
        let nothing = Range {
            count_only: true,
            limit: 1,
            ..Range::new(crate::Keys::One("\0".into()))
        };
        Ok(self.range(nothing).await?.revision)
    }
}
