//! DefaultBinder: binds through the pods/binding subresource.

use k8s_openapi::{
    api::core::v1::{Binding, ObjectReference, Pod},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{Api, Client, api::PostParams};

use crate::framework::{BindResult, Plugin, PodInfo};

pub struct DefaultBinder {
    pub client: Client,
}

impl Plugin for DefaultBinder {
    fn name(&self) -> &'static str {
        "DefaultBinder"
    }

    fn bind<'a>(&'a self, pod: &'a PodInfo, node: &'a str) -> Option<BindResult<'a>> {
        Some(Box::pin(async move {
            let meta = &pod.pod.metadata;
            let name = meta.name.as_deref().unwrap_or_default();
            let binding = Binding {
                metadata: ObjectMeta {
                    name: meta.name.clone(),
                    namespace: meta.namespace.clone(),
                    // Another pod of the same name must not be bound instead.
                    uid: meta.uid.clone(),
                    ..ObjectMeta::default()
                },
                target: ObjectReference {
                    kind: Some("Node".to_owned()),
                    name: Some(node.to_owned()),
                    ..ObjectReference::default()
                },
            };
            let api = Api::<Pod>::namespaced(self.client.clone(), pod.namespace());
            let params = PostParams::default();
            // The answer is a Status; whatever it says, it is a success.
            api.create_subresource::<_, serde_json::Value>("binding", name, &params, &binding)
                .await?;
            Ok(())
        }))
    }
}
