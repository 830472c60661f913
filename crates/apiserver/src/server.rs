//! The server: its parts, and the way of a request through them.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ::http::header::{CACHE_CONTROL, USER_AGENT};
use ::http::{HeaderValue, Request, Response};
use fluyt_api::Error;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use http_body_util::BodyExt as _;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::audit::Layer;
use crate::authn::jwt::AuthenticationConfiguration;
use crate::authn::{self, Authenticator, ClientCertificates};
use crate::authz::{AuthorizationConfiguration, Authorizer, Question};
use crate::browsers::Browsers;
use crate::cache::Caches;
use crate::config::Config;
use crate::dial::Dialer;
use crate::drain::Drain;
use crate::features::Features;
use crate::flowcontrol::{self, FlowControl};
use crate::handlers::{self, Call};
use crate::http::{self, Body, BoxError, Wanted};
use crate::limits;
use crate::listen::Certificates;
use crate::metrics::{self, Labels, Metrics};
use crate::peers::{Gvr, Peers};
use crate::registry::Registry;
use crate::request::{RequestInfo, Target};
use crate::served::Versions;
use crate::spans::{self, Arrival, Held, Tracer};
use crate::startup::Startup;
use crate::storage::Codec;
use crate::tokens::Tokens;
use crate::user::User;
use crate::warnings::Warnings;
use crate::{
    admission, aggregator, audit, bootstrap, compactor, custom, discovery, endpoint_reconciler,
    health, identity, openapi, peers, reload, webhook, zpages,
};

/// A running API server.
pub struct Server {
    pub(crate) config: Config,
    pub(crate) caches: Arc<Caches>,
    pub(crate) registry: Registry,
    pub(crate) authenticator: Authenticator,
    pub(crate) authorizer: Arc<Authorizer>,
    pub(crate) tokens: Arc<Tokens>,
    pub(crate) dialer: Arc<dyn Dialer>,
    pub(crate) certificates: Arc<Certificates>,
    pub(crate) kubelet_tls: Arc<ClientConfig>,
    /// For targets whose certificates nobody vouches for (`https:` proxies, `insecureSkipTLSVerify`).
    pub(crate) insecure_tls: Arc<ClientConfig>,
    pub(crate) metrics: Arc<Metrics>,
    shown_metrics: metrics::Filter,
    /// Collects the spans of requests.
    pub(crate) tracer: Option<Arc<Tracer>>,
    auditor: Arc<audit::Auditor>,
    pub(crate) flow_control: FlowControl,
    /// Cancelled when the server takes no new requests any more.
    pub(crate) shutdown: CancellationToken,
    pub(crate) drain: Arc<Drain>,
    /// What aggregated servers say they serve.
    pub(crate) aggregated: aggregator::Discovered,
    pub(crate) peers: Peers,
    pub(crate) startup: Startup,
    started: Instant,
}

/// What is said of a request whose handler has panicked.
fn panicked() -> Error {
    tracing::error!("a request handler panicked");
    Error::internal("this request caused apiserver to panic. Look in the logs for details.")
}

impl Server {
    /// Loads the caches, puts the defaults in place, and is then ready to [`Server::handle`] requests.
    ///
    /// # Errors
    /// When a key or certificate is malformed or the store cannot be read.
    pub async fn start(config: Config) -> anyhow::Result<Arc<Self>> {
        let (server, uses) = Self::new(config)?;
        server.boot(uses).await?;
        Ok(server)
    }

    /// Starts and serves one listener until shutdown. From the beginning it says how it is; other requests wait.
    ///
    /// # Errors
    /// As [`Self::start`] and [`Self::listen`].
    pub async fn run(config: Config, listener: TcpListener) -> anyhow::Result<()> {
        let (server, uses) = Self::new(config)?;
        let mut listening = Box::pin(server.listen(listener));
        tokio::select! {
            booted = Box::pin(server.boot(uses)) => booted?,
            ended = &mut listening => return ended,
        }
        listening.await
    }

    /// A server that has read nothing yet, and where the uses of tokens arrive.
    fn new(config: Config) -> anyhow::Result<(Arc<Self>, authn::Uses)> {
        config.admission.check()?;
        let caches = Caches::new(
            config.store.clone(),
            &config.apart,
            Codec::new(&config.storage, config.served.versions.compatible),
            config.served.hidden.clone(),
        );
        let verifying = &config.authentication.service_account_keys;
        let tokens = Arc::new(Tokens::new(&config.service_account_signing, verifying)?);
        let front_proxies = config.requestheader_ca_pem.as_deref().unwrap_or_default();
        let trusted = authn::Trusted {
            clients: ClientCertificates::new(roots(&config.client_ca_pem)?)?,
            front_proxies: ClientCertificates::new(roots(front_proxies)?)?,
            tokens: tokens.clone(),
        };
        let (authenticator, uses) = Authenticator::new(
            caches.clone(),
            trusted,
            &config.service_account_issuer,
            config.api_audiences.clone(),
            &config.authentication,
            &config.control_plane,
            config.shutdown.clone(),
        )?;
        let kubelet_tls = client_tls(
            config.kubelet_ca_pem.as_deref(),
            config.kubelet_client.as_ref(),
        )?;
        let insecure_tls = client_tls(None, config.proxy_client.as_ref())?;
        let webhooks = Arc::new(webhook::Client::new(
            caches.clone(),
            config.dialer.clone(),
            config.routing,
            config.proxy_client.clone(),
        ));
        let authorizer = Arc::new(Authorizer::new(
            caches.clone(),
            &config.authorization,
            &config.control_plane,
        )?);
        let shared = admission::Shared {
            caches: caches.clone(),
            authorizer: authorizer.clone(),
            converter: Arc::new(custom::Converter::new(webhooks.clone())),
            webhooks,
            server: Arc::default(),
            manifests: Arc::new(admission::ManifestMetrics::new(&identity::name(
                &identity::host(),
            ))),
            shutdown: config.shutdown.clone(),
        };
        let named = config.tls.tls_sni_cert_key.clone();
        let certificates = Certificates::load(config.certificate.clone(), named)?;
        let drain = Drain::start(&config.limits, config.shutdown.clone());
        let server = Arc::new(Self {
            certificates,
            shutdown: drain.stopping.clone(),
            drain,
            registry: Registry::new(&config, &shared)?,
            authenticator,
            authorizer,
            tokens,
            dialer: config.dialer.clone(),
            kubelet_tls,
            insecure_tls,
            metrics: caches.metrics.clone(),
            shown_metrics: config.metrics.filter()?,
            tracer: tracer(&config)?,
            auditor: audit::Auditor::new(&config.audit, &config.control_plane, &config.shutdown)?,
            flow_control: FlowControl::new(caches.clone(), config.flow_control),
            aggregated: aggregator::Discovered::default(),
            peers: Peers::new(&config)?,
            startup: Startup::begin(config.startup.clone()),
            started: Instant::now(),
            caches,
            config,
        });
        let _ = shared.server.set(Arc::downgrade(&server));
        Ok((server, uses))
    }

    /// Fills the caches and puts the defaults in place.
    async fn boot(self: &Arc<Self>, uses: authn::Uses) -> anyhow::Result<()> {
        let server = self;
        // Requests and watches need it to the end.
        let (feeding, drained) = (server.caches.clone(), server.drain.drained.clone());
        tokio::spawn(async move { feeding.run(drained).await });
        server.caches.filled(&server.shutdown).await?;
        bootstrap::run(server).await?;
        server.follow_configuration()?;
        server.certificates.follow(&server.shutdown)?;
        if server.flow_control.is_enabled() {
            flowcontrol::bootstrap(server).await?;
            tokio::spawn(flowcontrol::run(server.clone()));
        }
        tokio::spawn(aggregator::register(server.clone()));
        tokio::spawn(aggregator::follow_definitions(server.clone()));
        tokio::spawn(aggregator::watch_availability(server.clone()));
        tokio::spawn(custom::run(server.clone()));
        tokio::spawn(uses.run(Arc::downgrade(server)));
        tokio::spawn(endpoint_reconciler::run(server.clone()));
        tokio::spawn(identity::run(server.clone()));
        peers::start(server);
        tokio::spawn(admission::watch_policies(server.clone()));
        for feed in server.caches.feeds() {
            tokio::spawn(compactor::run(
                feed.store().clone(),
                server.config.compaction_interval,
                server.shutdown.clone(),
            ));
        }
        let members = server.config.etcd_members.clone();
        members.follow(server.metrics.clone(), &server.shutdown);
        server.startup.finish_all();
        Ok(())
    }

    pub(crate) fn is_shutting_down(&self) -> bool {
        self.config.shutdown.is_cancelled()
    }

    /// Client settings that trust a base64 PEM bundle.
    pub(crate) fn trusting(&self, bundle: &str) -> anyhow::Result<Arc<ClientConfig>> {
        trusting(bundle, self.config.proxy_client.as_ref())
    }

    /// A client inside this process, acting as `user` and known as `agent`: the same server, without TLS or socket.
    #[must_use]
    pub fn service(self: &Arc<Self>, user: User, agent: &'static str) -> InProcess {
        InProcess {
            server: self.clone(),
            user,
            agent: HeaderValue::from_static(agent),
        }
    }

    /// Answers a request. What may take long to compute, or keep a thread waiting, is done in a task of its own: a
    /// connection's task runs the others that it carries.
    pub async fn handle<B>(self: &Arc<Self>, request: Request<B>) -> Response<Body>
    where
        B: http_body::Body<Data = bytes::Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let started = Instant::now();
        let request = request.map(|body| body.map_err(Into::into).boxed_unsync());
        let info = RequestInfo::parse(
            &self.caches.served(),
            request.method(),
            request.uri().path(),
            request.uri().query(),
        );
        if !info.is_extensive() && !self.authorizer.may_block() {
            return self.clone().answer(info, request, started).await;
        }
        let answer = tokio::spawn(self.clone().answer(info, request, started));
        AbortOnDropHandle::new(answer)
            .await
            .unwrap_or_else(|_| http::error(&panicked()))
    }

    /// Whether anything of what is asked may be recorded.
    pub(crate) fn is_audited(&self) -> bool {
        self.auditor.is_active()
    }

    /// The way of a request: panics are caught, it goes through [`Server::filtered`] to its handler, and the answer is
    /// brought into the client's format.
    async fn answer(
        self: Arc<Self>,
        info: RequestInfo,
        mut request: Request<Body>,
        started: Instant,
    ) -> Response<Body> {
        let id = request.headers().get("audit-id").cloned();
        let mut id = id.unwrap_or_else(new_audit_id);
        let is_elsewhere = |target: &Target| target.resource.is_none();
        if self.auditor.is_active() || info.target.as_ref().is_some_and(is_elsewhere) {
            let text = String::from_utf8_lossy(id.as_bytes()).into_owned();
            request.extensions_mut().insert(audit::AuditId(text));
        }
        let arrival = Arrival::of(self.tracer.as_ref(), request.headers(), &id, started);
        if let Some(arrival) = &arrival {
            request = arrival.accompany(request);
        }
        if self.config.features != Features::default() {
            request.extensions_mut().insert(self.config.features);
        }
        let labels = Labels::of(&info, request.headers());
        let in_flight = self.metrics.in_flight(labels.as_ref());
        let wanted = Wanted::of(request.headers(), &info, self.config.features);
        let (converts, compresses) = (info.is_api(), info.is_compressible());
        let origin = self.config.browsers.allowed(request.headers());
        let preflight = origin
            .as_ref()
            .map(|_| Browsers::preflight(request.method()));
        // Boxed: the future of a whole request is large, and most of it is rarely needed.
        let refusal = self.drain.refusal(&info, request.headers());
        let counted = self.drain.request(&info);
        let answer: BoxFuture<'static, _> = match refusal.or_else(|| preflight.flatten()) {
            Some(response) => Box::pin(std::future::ready(Ok(response))),
            None => Box::pin(self.clone().in_time(info, request)),
        };
        let answered = AssertUnwindSafe(answer).catch_unwind().await;
        let mut response = match answered {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => http::error(&error),
            Err(_) => http::error(&panicked()),
        };
        let arrival = arrival.map(|arrival| (arrival.serialize(&response), arrival));
        if converts {
            response = wanted.convert(response).await;
        }
        if compresses {
            response = wanted.compress(response).await;
        }
        if let Some((serializing, arrival)) = arrival {
            response = arrival.answer(response, serializing);
        }
        if self.auditor.is_active() {
            response = audit::complete(response);
        }
        let headers = response.headers_mut();
        // Headers so marked stay out of HTTP/2's tables, from which one that is never the same would drive the others.
        id.set_sensitive(true);
        headers.insert("audit-id", id);
        self.config.browsers.tell(origin, headers);
        // What is the state of the cluster is nobody's to keep, unless it says so.
        headers
            .entry(CACHE_CONTROL)
            .or_insert(HeaderValue::from_static("no-cache, private"));
        drop((in_flight, counted));
        self.metrics
            .observe(labels, response.status(), started.elapsed());
        response
    }

    /// Requests that are not as long as their clients want have a limit.
    async fn in_time(
        self: Arc<Self>,
        info: RequestInfo,
        request: Request<Body>,
    ) -> Result<Response<Body>, Error> {
        let limit = self.config.limits.timeout_of(&info)?;
        let answer = self.filtered(info, request);
        match limit {
            None => answer.await,
            Some(limit) => tokio::time::timeout(limit, answer)
                .await
                .unwrap_or_else(|_| Err(limits::timed_out())),
        }
    }

    /// The steps between reading a request and handling it.
    async fn filtered(
        self: Arc<Self>,
        info: RequestInfo,
        request: Request<Body>,
    ) -> Result<Response<Body>, Error> {
        if !self.startup.is_ready() {
            let held: BoxFuture<'_, _> = Box::pin(self.startup.hold(&info, &self.shutdown));
            held.await?;
        }
        let (mut parts, body) = request.into_parts();
        let question = Question::of(&info);
        let arrival = parts.extensions.get::<Arc<Arrival>>().cloned();
        let authentication = arrival.as_ref().and_then(|a| a.authentication());
        let received = Instant::now();
        let authenticating = self.authenticator.authenticate(&mut parts);
        let user = match spans::within(authentication, authenticating).await {
            Ok(user) => user,
            Err(error) => {
                let refused = self.auditor.refused(&info, &parts, &question, &error);
                Box::pin(refused).await;
                return Err(error);
            }
        };
        let serving = arrival.and_then(|arrival| arrival.serve(&info, &parts, &user));
        let request = Request::from_parts(parts, body);
        let recorded: BoxFuture<'_, _> =
            Box::pin(self.recorded(info, user, question, request, received));
        spans::within(spans::filter(serving, "audit"), recorded).await
    }

    /// The steps whose outcome is put on record.
    async fn recorded(
        self: Arc<Self>,
        info: RequestInfo,
        user: User,
        question: Question,
        request: Request<Body>,
        received: Instant,
    ) -> Result<Response<Body>, Error> {
        let (mut parts, body) = request.into_parts();
        let stale = parts.extensions.remove::<authn::StaleToken>();
        let auditor = &self.auditor;
        let exchange = auditor.begin(&info, &mut parts, &user, &question, received);
        let record = exchange.record().clone();
        if record.is_audited() {
            record.took(Layer::Authentication, received.elapsed());
        }
        exchange.received().await?;
        let request = Request::from_parts(parts, body);
        if let Some(stale) = stale {
            record.annotate("authentication.k8s.io/stale-token", stale.0);
        }
        let answer = self.audited(info, user, question, request, record).await;
        exchange.finish(answer).await
    }

    /// The steps that are on record.
    async fn audited(
        self: Arc<Self>,
        info: RequestInfo,
        user: User,
        question: Question,
        request: Request<Body>,
        record: audit::Record,
    ) -> Result<Response<Body>, Error> {
        let (mut parts, body) = request.into_parts();
        let headers = &mut parts.headers;
        let step = spans::filter(spans::current(), "constrainedimpersonation");
        let impersonation = authn::impersonate(&self.authorizer, &user, headers, &question);
        let begin = Instant::now();
        let user = match spans::within(step.clone(), impersonation).await {
            Ok(Some(impersonated)) => {
                record.took(Layer::Impersonation, begin.elapsed());
                record.impersonated(&impersonated);
                impersonated.user
            }
            Ok(None) => user,
            Err(error) => return Ok(http::refusal(&error)),
        };
        let step = spans::filter(step, "priorityandfairness");
        let arriving = self.flow_control.admit(&info, &user, &question, &parts.uri);
        let arriving = spans::within(step.clone(), arriving);
        let admission = match record.timed(Layer::Queue, arriving).await {
            Ok(admission) => admission,
            Err(refusal) => return Ok(refusal),
        };
        let is_list = info.verb == "list";
        let request = Request::from_parts(parts, body);
        let step = spans::filter(step, "authorization");
        let authorizing = self.authorize(&user, &question, &record);
        let authorizing = spans::within(step.clone(), authorizing);
        let served = match record.timed(Layer::Authorization, authorizing).await {
            Ok(()) => spans::within(step, self.dispatch(info, user, request)).await,
            Err(error) => Ok(http::refusal(&error)),
        };
        let response = served.unwrap_or_else(|error| http::error(&error));
        Ok(admission.finish(response, is_list))
    }

    async fn authorize(
        &self,
        user: &User,
        question: &Question,
        record: &audit::Record,
    ) -> Result<(), Error> {
        let decision = self.authorizer.decide(user, question).await;
        let word = if decision.allows() { "allow" } else { "forbid" };
        record.annotate("authorization.k8s.io/decision", word);
        record.annotate("authorization.k8s.io/reason", &decision.reason);
        decision.into_result(user, question).map(drop)
    }

    /// Configuration files that take effect when they change. One that is wrong changes nothing.
    fn follow_configuration(self: &Arc<Self>) -> anyhow::Result<()> {
        let install = |what: &'static str, installed: anyhow::Result<()>| match installed {
            Ok(()) => tracing::info!("the {what} configuration was reloaded"),
            Err(error) => {
                let error = format!("{error:#}");
                tracing::error!(error, "the {what} configuration was not reloaded");
            }
        };
        if let Some(path) = &self.config.authentication.config_file {
            let server = Arc::downgrade(self);
            reload::spawn(path.clone(), self.shutdown.clone(), move |text| {
                let Some(server) = server.upgrade() else {
                    return;
                };
                let own = [server.config.service_account_issuer.clone()];
                let parsed = AuthenticationConfiguration::parse(&text, &own);
                let installed = parsed.and_then(|c| server.authenticator.install(c));
                install("authentication", installed);
            })?;
        }
        if let Some(path) = &self.config.authorization.config_file {
            let server = Arc::downgrade(self);
            reload::spawn(path.clone(), self.shutdown.clone(), move |text| {
                let Some(server) = server.upgrade() else {
                    return;
                };
                let abac = server.config.authorization.policies.as_ref();
                let parsed = AuthorizationConfiguration::parse(&text, abac);
                let installed = parsed.and_then(|modes| server.authorizer.install(&modes));
                install("authorization", installed);
            })?;
        }
        Ok(())
    }

    async fn dispatch(
        self: Arc<Self>,
        info: RequestInfo,
        user: User,
        request: Request<Body>,
    ) -> Result<Response<Body>, Error> {
        let Some(target) = info.target.clone() else {
            let answer: BoxFuture<'static, _> = Box::pin(self.non_resource(info, user, request));
            return answer.await;
        };
        if let Some(resource) = target.resource.clone() {
            let (parts, body) = request.into_parts();
            let warnings = Warnings::default();
            let call = Call {
                warnings: warnings.clone(),
                server: self.clone(),
                info,
                target,
                resource,
                user,
                parts,
                body: body.into(),
            };
            let handling = spans::handling(&call.info, &call.parts);
            let span = handling.as_ref().map(|held| held.span.clone());
            let handled: BoxFuture<'static, _> = Box::pin(handlers::handle(call));
            let mut response = match spans::within(span, handled).await {
                Ok(response) => response,
                Err(error) => http::error(&error),
            };
            if let Some(held) = handling.filter(|held| held.is_object) {
                response.extensions_mut().insert::<Held>(held);
            }
            warnings.tell(response.headers_mut());
            return Ok(response);
        }
        let elsewhere: BoxFuture<'static, _> = Box::pin(self.elsewhere(target, user, request));
        elsewhere.await
    }

    /// Requests for resources that are not served here: another server does, for a group or as a peer, or nobody.
    async fn elsewhere(
        self: Arc<Self>,
        target: Target,
        user: User,
        request: Request<Body>,
    ) -> Result<Response<Body>, Error> {
        if let Some(service) = aggregator::find(&self.caches, &target.group, &target.version) {
            return aggregator::proxy(self, service, user, request).await;
        }
        let gvr = Gvr::of(&target);
        if let Some(answer) = peers::pass_on(&self, gvr, &user, request).await? {
            return Ok(answer);
        }
        // Of a group that is known upstream's router says so, of others nobody says anything.
        if self.caches.served().has_builtin_group(&target.group) {
            Err(Error::no_route())
        } else {
            Ok(handlers::page_not_found())
        }
    }

    async fn non_resource(
        self: Arc<Self>,
        info: RequestInfo,
        user: User,
        request: Request<Body>,
    ) -> Result<Response<Body>, Error> {
        if health::is_health(&info.path) {
            let answer = health::answer(&self, &info.path, &info.query).await;
            return Ok(answer.unwrap_or_else(handlers::page_not_found));
        }
        if let Some(response) = discovery::handle(&self, &info.path, request.headers()) {
            return match *request.method() {
                ::http::Method::GET | ::http::Method::HEAD => Ok(response),
                _ => Err(Error::no_method()),
            };
        }
        let (path, query) = (&info.path, &info.query);
        if let Some(response) = openapi::handle(&self, path, query, request.headers()).await {
            return Ok(response);
        }
        if let Some(page) = zpages::handle(&self, path, request.headers()) {
            return Ok(page);
        }
        let ok = ::http::StatusCode::OK;
        if let Some(dump) = self.flow_control.debug(&info) {
            return Ok(http::text(ok, dump));
        }
        match info.path.as_str() {
            "/version" | "/version/" => Ok(http::json(ok, &version(self.config.served.versions))),
            "/metrics" => Ok(http::text(ok, self.render_metrics().await)),
            "/openid/v1/jwks" => {
                let set = json!(self.tokens.jwks());
                let age = self.tokens.max_age();
                Ok(http::public("application/jwk-set+json", age, &set))
            }
            "/.well-known/openid-configuration" => {
                let configuration = self.openid_configuration();
                let age = self.tokens.max_age();
                Ok(http::public("application/json", age, &configuration))
            }
            "/" => Ok(http::json(ok, &discovery::paths(&self))),
            _ => {
                // A group that another server serves: its discovery is its own.
                let path = info.path.trim_start_matches("/openapi/v3");
                let mut segments = path.trim_start_matches('/').split('/');
                if let (Some("apis"), Some(group), Some(version)) =
                    (segments.next(), segments.next(), segments.next())
                    && let Some(service) = aggregator::find(&self.caches, group, version)
                {
                    return aggregator::proxy(self, service, user, request).await;
                }
                Ok(handlers::page_not_found())
            }
        }
    }

    async fn render_metrics(&self) -> String {
        let counts_objects = !self
            .config
            .etcd_checks
            .etcd_count_metric_poll_period
            .is_zero();
        let mut text = self.metrics.render(&self.caches, counts_objects).await;
        self.registry.render_metrics(&mut text);
        self.auditor.render_metrics(&mut text);
        self.tokens.render_metrics(&mut text);
        self.peers.render_metrics(&mut text);
        let hidden = self.shown_metrics.shows_hidden();
        self.flow_control.render_metrics(&mut text, hidden);
        self.shown_metrics.apply(text)
    }

    /// How long it has been running.
    pub(crate) fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    fn openid_configuration(&self) -> serde_json::Value {
        let issuer = &self.config.service_account_issuer;
        let own = || format!("https://{}/openid/v1/jwks", self.config.external_address());
        let jwks_uri = self.config.authentication.jwks_uri.clone();
        json!({
            "issuer": issuer, "jwks_uri": jwks_uri.unwrap_or_else(own),
            "response_types_supported": ["id_token"], "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": self.tokens.algorithms(),
        })
    }
}

fn tracer(config: &Config) -> anyhow::Result<Option<Arc<Tracer>>> {
    let instance = || config.server_id();
    let tracer = config.tracing.as_ref().map(|tracing| {
        let (network, shutdown) = (config.control_plane.clone(), config.shutdown.clone());
        Tracer::new(tracing, &instance(), network, shutdown)
    });
    tracer.transpose()
}

/// The id of a request whose sender has not chosen one.
fn new_audit_id() -> HeaderValue {
    let id = uuid::Uuid::new_v4().to_string();
    HeaderValue::from_str(&id).unwrap_or_else(|_| HeaderValue::from_static(""))
}

fn version(versions: Versions) -> serde_json::Value {
    let mut numbers = crate::VERSION.trim_start_matches('v').split('.');
    json!({
        "major": numbers.next(), "minor": numbers.next(), "gitVersion": crate::VERSION, "gitCommit": "", "gitTreeState": "clean",
        "buildDate": "", "goVersion": "", "compiler": "rustc", "platform": "linux/amd64",
        "emulationMajor": "1", "emulationMinor": versions.emulated.to_string(), "minCompatibilityMajor": "1", "minCompatibilityMinor": versions.compatible.to_string(),
    })
}

/// All certificates of a PEM text.
pub(crate) fn certificates(pem: &str) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    Ok(CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>()?)
}

pub(crate) fn roots(pem: &str) -> anyhow::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(pem)? {
        roots.add(certificate)?;
    }
    Ok(roots)
}

/// Client settings that trust a base64 PEM bundle.
pub(crate) fn trusting(
    bundle: &str,
    identity: Option<&(String, String)>,
) -> anyhow::Result<Arc<ClientConfig>> {
    use base64::Engine as _;
    let pem = String::from_utf8(base64::engine::general_purpose::STANDARD.decode(bundle)?)?;
    client_tls(Some(&pem), identity)
}

/// Settings for outgoing TLS: verified against `ca` if given, with a client certificate if there is one.
pub(crate) fn client_tls(
    ca: Option<&str>,
    identity: Option<&(String, String)>,
) -> anyhow::Result<Arc<ClientConfig>> {
    let builder = ClientConfig::builder();
    let builder = match ca {
        Some(pem) => builder.with_root_certificates(roots(pem)?),
        None => builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(crate::listen::AnyServer)),
    };
    Ok(Arc::new(match identity {
        Some((certificate, key)) => builder.with_client_auth_cert(
            certificates(certificate)?,
            PrivateKeyDer::from_pem_slice(key.as_bytes())?,
        )?,
        None => builder.with_no_client_auth(),
    }))
}

/// The server as a `tower` service for clients in the same process.
#[derive(Clone)]
pub struct InProcess {
    server: Arc<Server>,
    user: User,
    agent: HeaderValue,
}

impl<B> tower::Service<Request<B>> for InProcess
where
    B: http_body::Body<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<Body>;
    type Error = std::convert::Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(
        &mut self,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<(), Self::Error>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let server = self.server.clone();
        request.extensions_mut().insert(self.user.clone());
        let agent = || self.agent.clone();
        request
            .headers_mut()
            .entry(USER_AGENT)
            .or_insert_with(agent);
        Box::pin(async move { Ok(server.handle(request).await) })
    }
}
