//! Creating and deleting the pods of a controller, with the events that tell about it.

use fluyt_client::{EventType, Recorder, is_namespace_terminating, is_not_found};
use k8s_openapi::{
    api::core::v1::{ObjectReference, Pod, PodTemplateSpec},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};
use kube::{
    Api, Client,
    api::{DeleteParams, PostParams},
};

use super::name;

/// A controlling object, as pods and events refer to it.
#[derive(Clone)]
pub struct Owner {
    pub reference: OwnerReference,
    pub object: ObjectReference,
}

/// Writes pods in the name of one controller.
#[derive(Clone)]
pub struct PodControl {
    pub client: Client,
    pub recorder: Recorder,
}

/// The pod that `template` describes, owned by `owner`. Named by the API server unless the caller sets a name.
pub fn pod_from_template(template: &PodTemplateSpec, owner: &Owner) -> Pod {
    let meta = template.metadata.clone().unwrap_or_default();
    Pod {
        metadata: ObjectMeta {
            generate_name: Some(generate_name(&owner.reference.name)),
            namespace: owner.object.namespace.clone(),
            labels: meta.labels,
            annotations: meta.annotations,
            finalizers: meta.finalizers,
            owner_references: Some(vec![owner.reference.clone()]),
            ..ObjectMeta::default()
        },
        spec: template.spec.clone(),
        status: None,
    }
}

/// `<owner>-`, shortened so that the generated name is a valid pod name and host name.
fn generate_name(owner: &str) -> String {
    const LONGEST: usize = 63 - 5;
    let mut prefix = format!("{owner}-");
    if prefix.len() > LONGEST && prefix.is_ascii() {
        prefix.truncate(LONGEST);
    }
    prefix
}

impl PodControl {
    /// Create `pod` and tell about it on its owner.
    pub async fn create(&self, owner: &Owner, pod: &Pod) -> kube::Result<Pod> {
        let namespace = owner.object.namespace.as_deref().unwrap_or_default();
        let api = Api::<Pod>::namespaced(self.client.clone(), namespace);
        match api.create(&PostParams::default(), pod).await {
            Ok(created) => {
                let message = format!("Created pod: {}", name(&created.metadata));
                self.recorder.event(
                    &owner.object,
                    EventType::Normal,
                    "SuccessfulCreate",
                    message,
                );
                Ok(created)
            }
            Err(error) => {
                if !is_namespace_terminating(&error) {
                    let message = format!("Error creating: {}", message_of(&error));
                    self.recorder
                        .event(&owner.object, EventType::Warning, "FailedCreate", message);
                }
                Err(error)
            }
        }
    }

    /// Delete the pod if it still is the one we saw.
    pub async fn delete(&self, owner: &Owner, pod: &ObjectMeta) -> kube::Result<()> {
        let namespace = owner.object.namespace.as_deref().unwrap_or_default();
        let api = Api::<Pod>::namespaced(self.client.clone(), namespace);
        let pod_name = name(pod);
        match api.delete(pod_name, &DeleteParams::default()).await {
            Ok(_) => {
                let message = format!("Deleted pod: {pod_name}");
                self.recorder.event(
                    &owner.object,
                    EventType::Normal,
                    "SuccessfulDelete",
                    message,
                );
                Ok(())
            }
            Err(error) if is_not_found(&error) => Err(error),
            Err(error) => {
                let message = format!("Error deleting: {}", message_of(&error));
                self.recorder
                    .event(&owner.object, EventType::Warning, "FailedDelete", message);
                Err(error)
            }
        }
    }
}

/// The server's message, without kube's decoration.
pub fn message_of(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_names_leave_room_for_the_suffix() {
        assert_eq!(generate_name("web"), "web-");
        assert_eq!(generate_name(&"x".repeat(200)).len(), 58);
    }
}
