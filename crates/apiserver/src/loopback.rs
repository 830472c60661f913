//! What the server writes itself. It is a client of its own then, as upstream's is over its loopback connection: admission
//! sees `system:apiserver`, and the part of the server that writes comes to own the fields.

use fluyt_api::resources::{self, Resource};
use fluyt_api::{Error, Reason, meta};
use serde_json::{Value, json};

use crate::Server;
use crate::registry::{Change, DeleteOptions, Deleted, Location, WriteContext, Writer};
use crate::user::{MASTERS, User};

/// A part of the server that writes, by the name of its field manager.
#[derive(Clone, Copy)]
pub struct Loopback(pub &'static str);

/// The parts without a name of their own.
pub const SERVER: Loopback = Loopback("kube-apiserver");

impl Loopback {
    pub fn context(self, resource: &Resource) -> WriteContext {
        WriteContext {
            user: User::new("system:apiserver", &[MASTERS]),
            writer: Some(Writer {
                manager: self.0.to_owned(),
                api_version: resource.api_version(),
                applied: false,
            }),
            ..WriteContext::default()
        }
    }

    /// Creates an object unless it is there; whether it was created.
    ///
    /// # Errors
    /// When the object is refused, or the store fails.
    pub async fn create(
        self,
        server: &Server,
        group: &str,
        plural: &str,
        namespace: &str,
        mut object: Value,
    ) -> Result<bool, Error> {
        let resource = resources::find(group, "v1", plural).ok_or_else(Error::no_route)?;
        let name = meta::name(&object).to_owned();
        let at = Location {
            resource,
            namespace,
            name: &name,
            subresource: "",
        };
        if server.caches.of(resource).get(&at.key()).is_some() {
            return Ok(false);
        }
        object["apiVersion"] = resource.api_version().into();
        object["kind"] = resource.kind.into();
        let context = self.context(resource);
        match server.registry.create(&context, at, object).await {
            Ok(_) => Ok(true),
            Err(error) if error.reason == Reason::AlreadyExists => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Changes an object.
    ///
    /// # Errors
    /// When it is not there, the change is refused, or the store fails.
    pub async fn update(
        self,
        server: &Server,
        at: Location<'_>,
        change: Change<'_>,
    ) -> Result<Value, Error> {
        let context = self.context(at.resource);
        server.registry.update(&context, at, change).await
    }

    /// Changes an object unless it is as it should be: then there is nothing that admission could refuse.
    ///
    /// # Errors
    /// As for [`Self::update`].
    pub async fn amend(
        self,
        server: &Server,
        at: Location<'_>,
        change: Change<'_>,
    ) -> Result<(), Error> {
        let present = server.registry.get(at).await?.object();
        if change(&present)? == present {
            return Ok(());
        }
        self.update(server, at, change).await.map(drop)
    }

    /// Creates an object or sets the given parts of it.
    ///
    /// # Errors
    /// As for [`Self::create`] and [`Self::update`].
    pub async fn replace(
        self,
        server: &Server,
        group: &str,
        plural: &str,
        object: Value,
        parts: &[&str],
    ) -> Result<(), Error> {
        let namespace = meta::namespace(&object).to_owned();
        let creating = self.create(server, group, plural, &namespace, object.clone());
        if creating.await? {
            return Ok(());
        }
        let resource = resources::find(group, "v1", plural).ok_or_else(Error::no_route)?;
        let name = meta::name(&object).to_owned();
        let at = Location {
            resource,
            namespace: &namespace,
            name: &name,
            subresource: "",
        };
        let set: Change<'_> = Box::new(|current: &Value| {
            let mut updated = current.clone();
            for part in parts {
                updated[*part] = object[*part].clone();
            }
            Ok(updated)
        });
        self.amend(server, at, set).await
    }

    /// Applies a status, whoever owns the fields.
    ///
    /// # Errors
    /// As for [`Self::update`].
    pub async fn apply_status(
        self,
        server: &Server,
        at: Location<'_>,
        status: Value,
    ) -> Result<(), Error> {
        let version = at.resource.api_version();
        let config = json!({
            "apiVersion": version, "kind": at.resource.kind, "metadata": {"name": at.name}, "status": status,
        });
        let at = Location {
            subresource: "status",
            ..at
        };
        let mut context = self.context(at.resource);
        context.writer = context.writer.map(|writer| Writer {
            applied: true,
            ..writer
        });
        let registry = &server.registry;
        let merge: Change<'_> = Box::new(|current: &Value| {
            registry.with_field_manager(at, &version, |fields| {
                fields.apply(current, &config, at.resource.kind, self.0, true)
            })
        });
        registry.update(&context, at, merge).await.map(drop)
    }

    /// Deletes an object.
    ///
    /// # Errors
    /// When it is not there or not as `options` say, or the store fails.
    pub async fn delete(
        self,
        server: &Server,
        at: Location<'_>,
        options: &DeleteOptions,
    ) -> Result<Deleted, Error> {
        let context = self.context(at.resource);
        server.registry.delete(&context, at, options).await
    }
}
