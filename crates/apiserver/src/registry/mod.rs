//! The one write path: normalise, admit, validate, and commit one optimistic transaction.

mod claims;
mod delete;
mod devices;
mod empties;
mod event_leases;
mod managed;
mod names;
mod owners;
mod privileged;
pub(crate) mod service;
mod write;

use std::sync::Arc;

use anyhow::Context as _;
use fluyt_api::resources::Resource;
use fluyt_api::strategy::{self, MetaCheck, Strategy};
use fluyt_api::validation::{self, Errors};
use fluyt_api::{Error, Reason, defaults, meta};
use fluyt_etcd::{KeyValue, Keys, OpResult, Range};
use futures::future::BoxFuture;
use serde_json::Value;

use crate::Config;
use crate::admission::{self, Attributes, Operation};
use crate::audit::{Layer, Record};
use crate::cache::{Caches, Entry, REGISTRY, storage_resource};
use crate::custom::{self, Converter};
use crate::features::Features;
use crate::spans;
use crate::user::User;
use crate::warnings::Warnings;

pub use delete::{DeleteOptions, Deleted};
use empties::Empties;
use event_leases::EventLeases;
pub use managed::Writer;
pub(crate) use managed::replicas_path;
use owners::Stage;
pub use service::ServiceNetwork;
use service::{Allocation, NodePorts, Plan};
use write::Write;

/// Attempts of an update without resourceVersion that keeps losing races.
const ATTEMPTS: usize = 20;

/// Choices of what goes with a new object that other servers may be faster to commit. Each of them has got something then,
/// so it is only near the end of a range that there are many.
const COLLISIONS: usize = 1000;

/// Names that are tried for an object that wants a generated one.
const GENERATED_NAMES: usize = 8;

/// Writes objects.
pub struct Registry {
    caches: Arc<Caches>,
    pub(crate) converter: Arc<Converter>,
    admission: admission::Chain,
    features: Features,
    services: service::Allocator,
    event_leases: EventLeases,
    allow_privileged: bool,
    collects_garbage: bool,
}

/// What makes the new object of the present one. It may run several times.
pub type Change<'a> = Box<dyn Fn(&Value) -> Result<Value, Error> + Send + Sync + 'a>;

/// On whose behalf, and how, something is written.
#[derive(Clone, Debug, Default)]
pub struct WriteContext {
    pub user: User,
    pub dry_run: bool,
    /// Who comes to own the fields that change; nobody for writes of the server itself.
    pub writer: Option<Writer>,
    pub warnings: Warnings,
    pub record: Record,
    /// The group in which the request names the resource: of kinds that are in several, one may ask more than another.
    pub group: Option<&'static str>,
    /// The objects that are written are made by a patch.
    pub patches: bool,
}

impl WriteContext {
    /// What is asked of an object that is written through this request.
    fn strategy<'a>(&self, at: Location<'a>) -> &'a dyn Strategy {
        match self.group.filter(|group| *group != at.resource.group) {
            Some(group) => strategy::of(group, at.resource.kind),
            None => at.strategy(),
        }
    }
}

/// Which object of a resource, through which endpoint.
#[derive(Clone, Copy, Debug)]
pub struct Location<'a> {
    pub resource: &'a Resource,
    pub namespace: &'a str,
    pub name: &'a str,
    pub subresource: &'a str,
}

impl<'a> Location<'a> {
    fn strategy(&self) -> &'a dyn Strategy {
        self.resource.strategy()
    }

    /// `namespace/name` or `name`.
    #[must_use]
    pub fn key(&self) -> String {
        if self.namespace.is_empty() {
            self.name.to_owned()
        } else {
            format!("{}/{}", self.namespace, self.name)
        }
    }

    fn store_key(&self) -> Keys {
        Keys::One(format!("{REGISTRY}{}", self.store_path()).into())
    }

    /// Where the object is below the root of the store.
    fn store_path(&self) -> String {
        format!("{}/{}", storage_resource(self.resource).storage, self.key())
    }

    #[must_use]
    pub fn not_found(&self) -> Error {
        Error::not_found(self.resource.group, self.resource.plural, self.name)
    }
}

impl Registry {
    /// # Errors
    /// When what is said about admission plugins makes no sense.
    pub fn new(config: &Config, shared: &admission::Shared) -> anyhow::Result<Self> {
        Ok(Self {
            converter: shared.converter.clone(),
            admission: admission::Chain::new(shared, &config.admission, config.features)
                .context("failed to apply admission")?,
            features: config.features,
            services: service::Allocator::new(&config.service_network),
            caches: shared.caches.clone(),
            event_leases: EventLeases::new(config.event_ttl, config.lease_reuse),
            allow_privileged: config.allow_privileged,
            collects_garbage: config.enable_garbage_collector,
        })
    }

    fn drop_disabled_fields(
        &self,
        strategy: &dyn Strategy,
        object: &mut Value,
        old: Option<&Value>,
    ) {
        strategy::drop_disabled_fields(strategy, object, old, |gate| self.features.enables(gate));
    }

    /// The node ports in use.
    pub(crate) fn node_ports(&self) -> &NodePorts {
        &self.services.ports
    }

    /// The present object, from a cache that has caught up.
    ///
    /// # Errors
    /// Not found, or a cache that does not catch up.
    pub fn get<'a>(&'a self, at: Location<'a>) -> BoxFuture<'a, Result<Arc<Entry>, Error>> {
        Box::pin(async move {
            self.caches.feed(at.resource).consistent().await?;
            let entry = self
                .caches
                .of(storage_resource(at.resource))
                .get(&at.key())
                .ok_or_else(|| at.not_found())?;
            self.in_version(entry, at.resource).await
        })
    }

    /// An entry in the version that a custom resource is asked for.
    async fn in_version(
        &self,
        entry: Arc<Entry>,
        resource: &Resource,
    ) -> Result<Arc<Entry>, Error> {
        if entry.version.is_none_or(|v| v == resource.version) {
            return Ok(entry);
        }
        let object = self.converter.one(entry.object(), resource).await?;
        let arrived = entry.arrived;
        let converted = Entry::new(resource, &entry.key, entry.revision, arrived, &object);
        Ok(Arc::new(converted))
    }

    /// Creates an object in its stored version.
    ///
    /// # Errors
    /// Whatever admission, validation or the store object to.
    pub fn create<'a>(
        &'a self,
        cx: &'a WriteContext,
        at: Location<'a>,
        mut object: Value,
    ) -> BoxFuture<'a, Result<Value, Error>> {
        Box::pin(async move {
            let generated =
                meta::name(&object).is_empty() && !meta::str(&object, "generateName").is_empty();
            if !generated {
                return self.create_once(cx, at, object).await;
            }
            for _ in 0..GENERATED_NAMES {
                let mut attempt = object.clone();
                let name = names::generate(meta::str(&object, "generateName"));
                meta::set(&mut attempt, "name", name);
                match self.create_once(cx, at, attempt).await {
                    Err(error) if error.reason == Reason::AlreadyExists => {}
                    done => return done,
                }
            }
            object = object["metadata"].take();
            let name = object["generateName"]
                .as_str()
                .unwrap_or_default()
                .to_owned();
            Err(Error::already_exists(
                at.resource.group,
                at.resource.plural,
                &name,
            ))
        })
    }

    async fn create_once(
        &self,
        cx: &WriteContext,
        at: Location<'_>,
        mut object: Value,
    ) -> Result<Value, Error> {
        let (resource, strategy) = (at.resource, cx.strategy(at));
        if !meta::resource_version(&object).is_empty() {
            return Err(Error::bad_request(
                "resourceVersion should not be set on objects to be created",
            ));
        }
        if self.caches.is_terminating(resource) {
            let mut error = Error::method_not_allowed(resource.group, resource.plural, "create");
            error.message =
                "create not allowed while custom resource definition is terminating".into();
            return Err(error);
        }
        set_namespace(&mut object, at)?;
        stamp_new(&mut object, strategy);
        owners::drop_repeated(cx, Stage::Requested, &mut object);
        let empties = Empties::of(resource, &object);
        apply_defaults(resource, strategy, &mut object);
        self.track(cx, at, &Value::Null, &mut object);
        let name = meta::name(&object).to_owned();
        let at = Location { name: &name, ..at };
        // Everything that was committed when the request arrived counts for admission.
        self.caches.settled(resource).await?;
        let attributes = Attributes {
            cx,
            at,
            operation: Operation::Create,
            old: None,
        };
        self.admission.admit(&attributes, &mut object).await?;
        owners::drop_repeated(cx, Stage::Admitted, &mut object);
        self.drop_disabled_fields(strategy, &mut object, None);
        strategy.prepare_create(&mut object);
        apply_defaults(resource, strategy, &mut object);
        let mut next = Some(object);
        for attempt in 0..COLLISIONS {
            let Some(object) = next else {
                break;
            };
            next = service::allocates(resource).then(|| object.clone());
            let created = self.create_admitted(&attributes, object, &empties, attempt == 0);
            if let Some(created) = created.await? {
                return Ok(created);
            }
        }
        Err(Error::modified(resource.group, resource.plural, at.name))
    }

    /// Creates an object that admission has changed as it likes. Nothing is created when what goes with it has been given
    /// to somebody else; the next attempt is for another choice, not for another judgement of admission's.
    async fn create_admitted(
        &self,
        attributes: &Attributes<'_>,
        mut object: Value,
        empties: &Empties,
        is_first: bool,
    ) -> Result<Option<Value>, Error> {
        let (cx, at) = (attributes.cx, attributes.at);
        let (resource, strategy) = (at.resource, cx.strategy(at));
        let allocation = self
            .services
            .begin(&self.caches, at, &mut object, None, cx.dry_run);
        let allocation = allocation.await?;
        let mut errors = Errors::default();
        devices::admin_access(&self.caches, at, &object, None, &mut errors);
        validation::object_meta(
            &mut errors,
            &object,
            resource.namespaced,
            strategy.name_rule(),
        );
        if strategy.has_standard_finalizers() {
            validation::standard_finalizers(&mut errors, &object);
        }
        strategy.validate(&object, &mut errors);
        devices::selectors(resource, &object, None, &mut errors);
        if !self.allow_privileged {
            privileged::refuse(at, &object, None, &mut errors);
        }
        custom::validate_definition(resource, &object, None, &mut errors);
        admission::validate_configuration(resource, &object, None, &mut errors);
        admission::refuse_reserved_name(resource, &object, self.features, &mut errors);
        if errors.is_empty() {
            self.admission
                .authorize(attributes, &object, &mut errors)
                .await;
        }
        if !errors.is_empty() {
            empties.tell(&mut errors);
            return Err(Error::invalid(
                resource.group,
                resource.kind,
                meta::name(&object),
                errors.0,
            ));
        }
        cx.warnings.extend(strategy.warnings(&object, None));
        cx.warnings
            .extend(admission::reserved_name_warning(resource, &object));
        if is_first {
            self.admission.validate(attributes, &object).await?;
        }
        if cx.dry_run {
            return if self
                .caches
                .of(storage_resource(resource))
                .get(&at.key())
                .is_some()
            {
                Err(Error::already_exists(
                    resource.group,
                    resource.plural,
                    at.name,
                ))
            } else {
                Ok(Some(object))
            };
        }
        let lease = self.lease_for(resource).await?;
        let write = self.write(at, object, lease).await?;
        let committing = self.commit(at, 0, &write, allocation.as_ref());
        match cx.record.timed(Layer::Storage, committing).await? {
            Committed::At(revision) => Ok(Some(write.finish(revision))),
            Committed::Lost(_) => Err(Error::already_exists(
                resource.group,
                resource.plural,
                at.name,
            )),
            Committed::Collided => {
                self.caches.feed(resource).consistent().await?;
                Ok(None)
            }
        }
    }

    /// Replaces an object by what `change` makes of the present one, retrying when another writer was faster and `change`
    /// does not insist on a version.
    ///
    /// # Errors
    /// Whatever `change`, admission, validation or the store object to.
    pub fn update<'a>(
        &'a self,
        cx: &'a WriteContext,
        at: Location<'a>,
        change: Change<'a>,
    ) -> BoxFuture<'a, Result<Value, Error>> {
        let updating = async move {
            let mut current = self.get(at).await?;
            for _ in 0..ATTEMPTS {
                let old = current.object();
                let object = change(&old)?;
                let insists = !meta::resource_version(&object).is_empty();
                if insists && meta::resource_version(&object) != meta::resource_version(&old) {
                    return Err(Error::modified(
                        at.resource.group,
                        at.resource.plural,
                        at.name,
                    ));
                }
                match self.update_once(cx, at, &current, &old, object).await? {
                    Updated::Done(object) => return Ok(object),
                    Updated::Collided => {
                        self.caches.feed(at.resource).consistent().await?;
                    }
                    Updated::Lost(None) => return Err(at.not_found()),
                    Updated::Lost(Some(newer)) => {
                        current = self.in_version(newer, at.resource).await?;
                    }
                }
            }
            Err(Error::modified(
                at.resource.group,
                at.resource.plural,
                at.name,
            ))
        };
        let step = storing(at, "GuaranteedUpdate etcd3");
        Box::pin(spans::within(step, updating))
    }

    async fn update_once(
        &self,
        cx: &WriteContext,
        at: Location<'_>,
        current: &Arc<Entry>,
        old: &Value,
        mut object: Value,
    ) -> Result<Updated, Error> {
        let (resource, strategy) = (at.resource, cx.strategy(at));
        let unconditional = meta::resource_version(&object).is_empty();
        if unconditional && at.subresource.is_empty() && !strategy.allow_unconditional_update() {
            let mut errors = Errors::default();
            errors.invalid(
                "metadata.resourceVersion",
                &0.into(),
                "must be specified for an update",
            );
            let kind = match &resource.definition {
                Some(_) => resource.plural,
                None => resource.kind,
            };
            return Err(Error::invalid(resource.group, kind, at.name, errors.0));
        }
        check_uid(&object, old, at)?;
        set_namespace(&mut object, at)?;
        keep_system_metadata(&mut object, old);
        owners::drop_repeated(cx, Stage::Requested, &mut object);
        let empties = Empties::of(resource, &object);
        if !matches!(at.subresource, "binding" | "scale") {
            apply_defaults(resource, strategy, &mut object);
        }
        self.track(cx, at, old, &mut object);
        let managed = object["metadata"]["managedFields"].clone();
        // First: what is dropped is no change.
        self.drop_disabled_fields(strategy, &mut object, Some(old));
        match at.subresource {
            "status" => strategy.prepare_status_update(&mut object, old),
            "" => strategy.prepare_update(&mut object, old),
            other => strategy.prepare_subresource_update(other, &mut object, old),
        }
        keep_system_metadata(&mut object, old);
        meta::set(&mut object, "managedFields", managed);
        let attributes = Attributes {
            cx,
            at,
            operation: Operation::Update,
            old: Some(old),
        };
        self.admission.admit(&attributes, &mut object).await?;
        owners::drop_repeated(cx, Stage::Admitted, &mut object);
        apply_defaults(resource, strategy, &mut object);
        // What is observed of an object, and that a pod is put on a node, is not a wish of its author.
        if !matches!(at.subresource, "status" | "binding") {
            bump_generation(&mut object, old, strategy);
        }
        let allocation = self
            .services
            .begin(&self.caches, at, &mut object, Some(old), cx.dry_run)
            .await?;
        let mut errors = Errors::default();
        devices::admin_access(&self.caches, at, &object, Some(old), &mut errors);
        let authorizer = self.admission.authorizer();
        claims::authorize_status(authorizer, &attributes, &object, &mut errors).await;
        validate_metadata(at, strategy, &object, old, &mut errors);
        match at.subresource {
            "" => {
                strategy.validate_on_update(&object, old, &mut errors);
                devices::selectors(resource, &object, Some(old), &mut errors);
                custom::validate_definition(resource, &object, Some(old), &mut errors);
                admission::validate_configuration(resource, &object, Some(old), &mut errors);
            }
            // Scaling a custom resource must leave it valid; its schema is all that says so.
            "scale" if resource.definition.is_some() => {
                strategy.validate_on_update(&object, old, &mut errors);
            }
            "status" => strategy.validate_status(&object, old, &mut errors),
            other => strategy.validate_subresource(other, &object, old, &mut errors),
        }
        if !self.allow_privileged {
            privileged::refuse(at, &object, Some(old), &mut errors);
        }
        if errors.is_empty() && at.subresource.is_empty() {
            self.admission
                .authorize(&attributes, &object, &mut errors)
                .await;
        }
        if !errors.is_empty() {
            empties.tell(&mut errors);
            return Err(Error::invalid(
                resource.group,
                resource.kind,
                at.name,
                errors.0,
            ));
        }
        let warnings = match at.subresource {
            "" => {
                let mut warnings = strategy.warnings(&object, Some(old));
                warnings.extend(admission::reserved_name_warning(resource, &object));
                warnings
            }
            "status" => strategy.status_warnings(&object),
            _ => Vec::new(),
        };
        cx.warnings.extend(warnings);
        self.admission.validate(&attributes, &object).await?;
        meta::set(
            &mut object,
            "resourceVersion",
            meta::resource_version(old).to_owned(),
        );
        managed::forget_mere_times(&mut object, old);
        let remove = delete::is_finished(resource, &object);
        let unchanged = &object == old && !remove;
        if cx.dry_run || (unchanged && !self.is_stale(at, current).await) {
            return Ok(Updated::Done(object));
        }
        let (write, allocation) = if remove {
            let released = self.services.release(resource, old);
            (Write::removal(at, object), released)
        } else {
            let lease = self.lease_for(resource).await?;
            (self.write(at, object, lease).await?, allocation)
        };
        let revision = current.revision;
        let committed = self.commit(at, revision, &write, allocation.as_ref());
        let committed = cx.record.timed(Layer::Storage, committed);
        match committed.await? {
            Committed::At(revision) => Ok(Updated::Done(write.finish(revision))),
            Committed::Lost(newer) => Ok(Updated::Lost(newer)),
            Committed::Collided => Ok(Updated::Collided),
        }
    }

    /// Whether an object would be stored in another form now. Of what is encrypted only the store can tell: keys change
    /// after the cache has read it.
    async fn is_stale(&self, at: Location<'_>, current: &Entry) -> bool {
        let stored_as = storage_resource(at.resource);
        let storage = &self.caches.codec;
        if current.stale || !storage.encryption.covers(stored_as) {
            return current.stale;
        }
        let store = self.caches.feed(stored_as).store();
        let found = store.range(Range::new(at.store_key())).await;
        let Some(kv) = found.ok().and_then(|found| found.kvs.into_iter().next()) else {
            return false;
        };
        let stored = storage.decode(stored_as, &kv.key, &kv.value).await;
        stored.is_ok_and(|stored| stored.stale)
    }

    /// Waits until the caches show a write, so that its author's next request is judged by it. A cache that lags does
    /// not undo the write; the next read waits for it again.
    async fn settle(&self, resource: &Resource, revision: i64) {
        if let Err(error) = self.caches.feed(resource).wait_for(revision).await {
            tracing::warn!(%error, "the caches lag behind the store");
        }
    }

    /// Asks admission about a connection to an object: exec, attach, port-forward or a proxy.
    ///
    /// # Errors
    /// The first refusal.
    pub async fn admit_connect(
        &self,
        cx: &WriteContext,
        at: Location<'_>,
        options: Value,
    ) -> Result<(), Error> {
        let attributes = Attributes {
            cx,
            at,
            operation: Operation::Connect,
            old: None,
        };
        let mut options = options;
        self.admission.admit(&attributes, &mut options).await?;
        self.admission.validate(&attributes, &options).await
    }

    /// Asks admission about a token request, which is never stored.
    ///
    /// # Errors
    /// The first refusal.
    pub async fn admit_token(
        &self,
        cx: &WriteContext,
        at: Location<'_>,
        request: &Value,
    ) -> Result<(), Error> {
        let attributes = Attributes {
            cx,
            at,
            operation: Operation::Create,
            old: None,
        };
        self.admission.validate(&attributes, request).await
    }

    /// Writes the object if it is still at `revision` (0: not there), and with it what its allocation takes and gives back;
    /// otherwise tells what is there now. What has been written is in the caches.
    async fn commit(
        &self,
        at: Location<'_>,
        revision: i64,
        write: &Write,
        allocation: Option<&Allocation>,
    ) -> Result<Committed, Error> {
        let sides = match allocation {
            Some(allocation) => self.address_sides(at, allocation).await?,
            None => Vec::new(),
        };
        let change = allocation.map(|a| &a.ports).filter(|p| !p.is_empty());
        let mut ports = match change {
            Some(change) => Some((self.services.ports.hold(&self.caches).await?, change)),
            None => None,
        };
        loop {
            let plan = match &mut ports {
                Some((held, change)) => held.plan(change).await?,
                None => Plan::Nothing,
            };
            let changed = match plan {
                Plan::Nothing => None,
                Plan::Write(changed) => Some(changed),
                Plan::Taken => return Ok(Committed::Collided),
            };
            let of_ports = changed.as_ref().map(|c| &c.side);
            let txn = write.txn(at, revision, sides.iter().chain(of_ports));
            let operation = write.operation(revision);
            let creates = operation == "create";
            let step = creates.then(|| storing(at, "Create etcd3")).flatten();
            let committing = self.caches.commit(operation, at.resource, txn);
            let result = spans::within(step.clone(), committing).await;
            if let Some(step) = step.or_else(spans::current) {
                match &result {
                    Ok(_) => step.event("Txn call succeeded", Vec::new()),
                    Err(error) => step.failing("Txn call failed", error),
                }
            }
            let result = result.map_err(store_error)?;
            if result.succeeded {
                if let (Some((held, _)), Some(changed)) = (&mut ports, changed) {
                    held.committed(changed, result.revision);
                }
                drop(ports);
                if let Some(allocation) = allocation {
                    allocation.committed();
                }
                self.settle(at.resource, result.revision).await;
                return Ok(Committed::At(result.revision));
            }
            let mut found = result.results.into_iter().map(only_found);
            let here = found.next().flatten();
            if here.as_ref().map_or(0, |kv| kv.mod_revision) != revision {
                return self.lost(at, revision, here).await;
            }
            let news = match (&mut ports, changed.is_some()) {
                (Some((held, _)), true) => held.learn(found.last().flatten().as_ref()).await?,
                _ => false,
            };
            if !news {
                return Ok(Committed::Collided);
            }
        }
    }

    /// Another writer was faster.
    async fn lost(
        &self,
        at: Location<'_>,
        revision: i64,
        found: Option<KeyValue>,
    ) -> Result<Committed, Error> {
        // Of what was to be created it is enough to know that it is there.
        let Some(kv) = found.filter(|_| revision != 0) else {
            return Ok(Committed::Lost(None));
        };
        let entry = self
            .caches
            .entry(storage_resource(at.resource), &at.key(), &kv)
            .await
            .map_err(Error::internal)?;
        Ok(Committed::Lost(Some(Arc::new(entry))))
    }

    /// Events live under a lease.
    async fn lease_for(&self, resource: &Resource) -> Result<i64, Error> {
        if resource.plural != "events" {
            return Ok(0);
        }
        let store = self.caches.feed(resource).store();
        self.event_leases.get(&**store).await
    }
}

enum Updated {
    Done(Value),
    Lost(Option<Arc<Entry>>),
    Collided,
}

enum Committed {
    At(i64),
    /// The object is not as it was; as it is now.
    Lost(Option<Arc<Entry>>),
    /// The object is as it was, but something that goes with it is not.
    Collided,
}

/// The step of a write that is the store's.
fn storing(at: Location<'_>, name: &str) -> Option<spans::Span> {
    spans::start(name, |span| {
        span.set("audit-id", span.audit_id());
        span.set("key", format!("/{}", at.store_path()));
        span.set("type", at.resource.kind);
        span.set("group", at.resource.group);
        span.set("resource", at.resource.plural);
    })
}

/// What there is under the one key that was asked for.
fn only_found(result: OpResult) -> Option<KeyValue> {
    match result {
        OpResult::Range(range) => range.kvs.into_iter().next(),
        _ => None,
    }
}

fn store_error(error: fluyt_etcd::Error) -> Error {
    match error {
        fluyt_etcd::Error::Compacted { .. } => Error::expired(error.to_string()),
        other => Error::internal(other),
    }
}

/// Static defaults, then those of the kind; what a strategy touched without setting does not stay behind as null.
/// Fills in what an object of a resource, in the version that it is worked in, leaves open.
pub(crate) fn apply_defaults(resource: &Resource, strategy: &dyn Strategy, object: &mut Value) {
    if let Some(definition) = &resource.definition {
        definition.default(object);
        return;
    }
    let normalise = |object: &mut Value| {
        if let Some(ty) = resource.ty {
            defaults::normalise(resource.schema(), ty, object);
        }
    };
    normalise(object);
    strategy.default(object);
    normalise(object);
}

fn set_namespace(object: &mut Value, at: Location<'_>) -> Result<(), Error> {
    if !at.resource.namespaced {
        meta::set(object, "namespace", Value::Null);
        return Ok(());
    }
    let given = meta::namespace(object);
    if !given.is_empty() && given != at.namespace {
        return Err(Error::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    meta::set(object, "namespace", at.namespace);
    Ok(())
}

/// Metadata that only the server sets.
fn stamp_new(object: &mut Value, strategy: &dyn Strategy) {
    for field in [
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "selfLink",
        "resourceVersion",
    ] {
        meta::set(object, field, Value::Null);
    }
    meta::set(object, "uid", uuid::Uuid::new_v4().to_string());
    meta::set(object, "creationTimestamp", meta::now());
    if strategy.has_generation() {
        meta::set(object, "generation", 1);
    }
}

fn keep_system_metadata(object: &mut Value, old: &Value) {
    let kept = &old["metadata"];
    for field in ["uid", "creationTimestamp", "generation"] {
        meta::set(object, field, kept[field].clone());
    }
    if !kept["deletionTimestamp"].is_null() {
        meta::set(
            object,
            "deletionTimestamp",
            kept["deletionTimestamp"].clone(),
        );
    }
    let grace = "deletionGracePeriodSeconds";
    if object["metadata"][grace].is_null() {
        meta::set(object, grace, kept[grace].clone());
    }
    meta::set(object, "selfLink", Value::Null);
}

fn bump_generation(object: &mut Value, old: &Value, strategy: &dyn Strategy) {
    if strategy.changes_generation(object, old) {
        meta::set(object, "generation", meta::generation(old) + 1);
    }
}

/// Metadata in an update, as often as upstream looks at it: once for every kind, then as the kind says.
fn validate_metadata(
    at: Location<'_>,
    strategy: &dyn Strategy,
    object: &Value,
    old: &Value,
    errors: &mut Errors,
) {
    let namespaced = at.resource.namespaced;
    validation::object_meta(errors, object, namespaced, validation::path_segment);
    validation::object_meta_update(errors, object, old);
    let checks = match at.subresource {
        "" => strategy.metadata_on_update(),
        _ => &[MetaCheck::Update],
    };
    for check in checks {
        match check {
            MetaCheck::Update => validation::object_meta_update(errors, object, old),
            MetaCheck::Whole => {
                validation::object_meta(errors, object, namespaced, strategy.name_rule());
            }
        }
        if strategy.has_standard_finalizers() {
            validation::standard_finalizers(errors, object);
        }
    }
}

fn check_uid(object: &Value, old: &Value, at: Location<'_>) -> Result<(), Error> {
    let (wanted, found) = (meta::uid(object), meta::uid(old));
    if wanted.is_empty() || wanted == found {
        return Ok(());
    }
    let key = at.store_path();
    let why = format!(
        "StorageError: invalid object, Code: 4, Key: /{key}, ResourceVersion: 0, AdditionalErrorMsg: Precondition failed: UID in precondition: {wanted}, UID in object meta: {found}"
    );
    Err(Error::conflict(
        at.resource.group,
        at.resource.plural,
        at.name,
        why,
    ))
}
