//! `PodGroupProtection`: groups of pods carry a finalizer so that they outlive their pods.

use async_trait::async_trait;
use fluyt_api::Error;
use serde_json::Value;

use super::{Attributes, Operation, Plugin};
use crate::cache::Caches;

const FINALIZER: &str = "scheduling.k8s.io/podgroup-protection";

pub(super) struct PodGroupProtection;

#[async_trait]
impl Plugin for PodGroupProtection {
    async fn admit(
        &self,
        _caches: &Caches,
        attributes: &Attributes<'_>,
        object: &mut Value,
    ) -> Result<(), Error> {
        if attributes.is_of("scheduling.k8s.io", "podgroups", Operation::Create) {
            super::add_finalizer(object, FINALIZER);
        }
        Ok(())
    }
}
