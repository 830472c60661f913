//! Stateful sets.

use serde_json::Value;

use super::{Strategy, default_at, storage, template};
use crate::validation::Errors;

pub(super) struct StatefulSet;

impl Strategy for StatefulSet {
    fn default(&self, object: &mut Value) {
        template::default_spec(&mut object["spec"]["template"]["spec"]);
        if object["spec"]["updateStrategy"]["type"] == "RollingUpdate" {
            default_at(
                object,
                &["spec", "updateStrategy", "rollingUpdate", "partition"],
                0,
            );
        }
        for claim in object["spec"]["volumeClaimTemplates"]
            .as_array_mut()
            .into_iter()
            .flatten()
        {
            storage::default_claim(claim);
            default_at(claim, &["apiVersion"], "v1");
            default_at(claim, &["kind"], "PersistentVolumeClaim");
        }
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        let spec = &object["spec"];
        errors.non_negative("spec.replicas", &spec["replicas"]);
        errors.non_negative("spec.minReadySeconds", &spec["minReadySeconds"]);
        errors.one_of(
            "spec.podManagementPolicy",
            &spec["podManagementPolicy"],
            &["OrderedReady", "Parallel"],
        );
        errors.one_of(
            "spec.updateStrategy.type",
            &spec["updateStrategy"]["type"],
            &["OnDelete", "RollingUpdate"],
        );
        template::validate_selector(object, errors);
        // Volumes of claim templates are known to the pods only once they are created.
        let mut with_claims = spec["template"].clone();
        let claims = spec["volumeClaimTemplates"]
            .as_array()
            .into_iter()
            .flatten();
        let volumes: Vec<Value> = claims
            .map(|c| serde_json::json!({"name": c["metadata"]["name"], "persistentVolumeClaim": {"claimName": "x"}}))
            .chain(with_claims["spec"]["volumes"].as_array().into_iter().flatten().cloned())
            .collect();
        if with_claims["spec"].is_object() {
            with_claims["spec"]["volumes"] = volumes.into();
        }
        template::validate_template(&with_claims, "spec.template", &["Always"], errors);
    }

    fn validate_update(&self, object: &Value, old: &Value, errors: &mut Errors) {
        let fixed = |o: &Value| {
            let mut spec = o["spec"].clone();
            if let Some(map) = spec.as_object_mut() {
                for open in [
                    "replicas",
                    "ordinals",
                    "template",
                    "updateStrategy",
                    "revisionHistoryLimit",
                    "persistentVolumeClaimRetentionPolicy",
                    "minReadySeconds",
                ] {
                    map.remove(open);
                }
            }
            spec
        };
        if fixed(object) != fixed(old) {
            errors.forbidden("spec", "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden");
        }
    }
}
