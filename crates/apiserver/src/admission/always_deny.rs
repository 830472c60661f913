//! `AlwaysDeny` refuses every write and every connection.

use async_trait::async_trait;
use fluyt_api::Error;
use serde_json::Value;

use super::always_admit::warn_of;
use super::{Attributes, Plugin};
use crate::cache::Caches;

pub(super) struct AlwaysDeny;

impl AlwaysDeny {
    pub(super) fn new() -> Self {
        warn_of("AlwaysDeny");
        Self
    }
}

fn refuse(attributes: &Attributes<'_>) -> Result<(), Error> {
    Err(attributes.forbidden("admission control is denying all modifications"))
}

#[async_trait]
impl Plugin for AlwaysDeny {
    async fn admit(
        &self,
        _caches: &Caches,
        attributes: &Attributes<'_>,
        _object: &mut Value,
    ) -> Result<(), Error> {
        refuse(attributes)
    }

    async fn validate(
        &self,
        _caches: &Caches,
        attributes: &Attributes<'_>,
        _object: &Value,
    ) -> Result<(), Error> {
        refuse(attributes)
    }
}
