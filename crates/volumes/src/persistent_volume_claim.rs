//! `persistentVolumeClaim`: finds the volume a claim is bound to and sets that up.

use k8s_openapi::api::core::v1::Pod;

use crate::{Context, Mounted, VolumeError, host_path, local, namespace};

pub async fn set_up(
    context: &Context,
    pod: &Pod,
    name: &str,
    claim_name: &str,
    read_only: bool,
) -> Result<Mounted, VolumeError> {
    let claim = context
        .objects
        .persistent_volume_claim(namespace(pod), claim_name)
        .await?
        .ok_or_else(|| VolumeError::NotFound {
            kind: "persistentvolumeclaim",
            name: claim_name.to_string(),
        })?;
    let unusable = |reason: &str| VolumeError::Claim(format!("PVC {claim_name} {reason}"));
    if claim.metadata.deletion_timestamp.is_some()
        && claim
            .status
            .as_ref()
            .and_then(|status| status.phase.as_deref())
            != Some("Bound")
    {
        return Err(unusable("is being deleted"));
    }
    let volume_name = claim
        .spec
        .as_ref()
        .and_then(|spec| spec.volume_name.as_deref())
        .filter(|name| !name.is_empty())
        .filter(|_| {
            claim
                .status
                .as_ref()
                .and_then(|status| status.phase.as_deref())
                == Some("Bound")
        })
        .ok_or_else(|| unusable("is not bound"))?;
    let volume = context
        .objects
        .persistent_volume(volume_name)
        .await?
        .ok_or_else(|| VolumeError::NotFound {
            kind: "persistentvolume",
            name: volume_name.to_string(),
        })?;
    let Some(spec) = &volume.spec else {
        return Err(VolumeError::NoPlugin);
    };
    let claimed_by = spec.claim_ref.as_ref().and_then(|claim| claim.uid.as_ref());
    if claimed_by != claim.metadata.uid.as_ref() {
        return Err(unusable("is bound to a volume of another claim"));
    }
    if let Some(source) = &spec.local {
        local::set_up(context, pod, name, &volume, source, read_only)
    } else if let Some(source) = &spec.host_path {
        let mounted = host_path::set_up(source)?;
        Ok(Mounted {
            read_only,
            ..mounted
        })
    } else {
        Err(VolumeError::NoPlugin)
    }
}

#[cfg(test)]
mod tests {
    use crate::{fake, set_up, tear_down_pod};
    use k8s_openapi::api::core::v1::Volume;

    #[tokio::test]
    async fn local_data_outlives_the_pod() {
        let objects = fake::Objects::default();
        let (dir, context) = fake::context(objects.clone());
        let path = dir.path().join("volumes/pv-1");
        objects.put_claim("data", "Bound", "pv-1", &path);
        let pod = fake::pod();
        let volume: Volume = serde_json::from_value(serde_json::json!({
            "name": "v", "persistentVolumeClaim": {"claimName": "data"}}))
        .unwrap();
        let mounted = set_up(&context, &pod, &volume).await.unwrap();
        std::fs::write(mounted.host_path.join("f"), "x").unwrap();
        tear_down_pod(&context, "u").unwrap();
        assert!(!context.pod_dir("u").exists());
        assert_eq!(std::fs::read(path.join("f")).unwrap(), b"x");

        objects.put_claim("data", "Pending", "", &path);
        let error = set_up(&context, &pod, &volume).await.unwrap_err();
        assert_eq!(error.to_string(), "PVC data is not bound");
    }
}
