//! Nobody adds external addresses to services: who may could draw the traffic of others.

use async_trait::async_trait;
use fluyt_api::Error;
use serde_json::Value;

use super::{Attributes, Plugin};
use crate::cache::Caches;

pub(super) struct DenyServiceExternalIps;

fn addresses(service: &Value) -> &[Value] {
    service["spec"]["externalIPs"]
        .as_array()
        .map_or(&[], Vec::as_slice)
}

#[async_trait]
impl Plugin for DenyServiceExternalIps {
    async fn validate(
        &self,
        _caches: &Caches,
        attributes: &Attributes<'_>,
        service: &Value,
    ) -> Result<(), Error> {
        if !attributes.writes("services") {
            return Ok(());
        }
        // Those that it has may stay.
        let known = attributes.old.map_or(&[][..], addresses);
        if addresses(service).iter().all(|a| known.contains(a)) {
            return Ok(());
        }
        Err(attributes.forbidden("Use of external IPs is denied by admission control"))
    }
}
