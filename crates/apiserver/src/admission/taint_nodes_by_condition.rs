//! A new node takes no pods before it has said that it is ready.

use async_trait::async_trait;
use fluyt_api::Error;
use serde_json::{Value, json};

use super::{Attributes, Operation, Plugin};
use crate::cache::Caches;

const NOT_READY: &str = "node.kubernetes.io/not-ready";

pub(super) struct TaintNodesByCondition;

#[async_trait]
impl Plugin for TaintNodesByCondition {
    async fn admit(
        &self,
        _caches: &Caches,
        attributes: &Attributes<'_>,
        node: &mut Value,
    ) -> Result<(), Error> {
        if !attributes.is("nodes", Operation::Create) {
            return Ok(());
        }
        let taint = json!({"key": NOT_READY, "effect": "NoSchedule"});
        match node["spec"]["taints"].as_array_mut() {
            Some(taints) if taints.iter().any(|t| t["key"] == NOT_READY) => {}
            Some(taints) => taints.push(taint),
            None => node["spec"]["taints"] = json!([taint]),
        }
        Ok(())
    }
}
