//! Getting a container's image: pull policy, credentials, backoff, and the reasons users know.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine;
use fluyt_client::{EventType, Recorder};
use fluyt_volumes::Objects;
use jiff::Timestamp;
use k8s_cri::v1 as cri;
use k8s_openapi::api::core::v1::{Container, ObjectReference, Pod};
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use crate::backoff::Backoff;
use crate::cri::Cri;
use crate::pod::PodExt;

/// Why there is no image: the container's waiting reason and its message.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct ImageError {
    pub reason: &'static str,
    pub message: String,
    /// When to try again.
    pub retry: Option<Duration>,
}

/// An image that is there: the id to create the container with.
#[derive(Clone, Debug)]
pub struct ImageRef {
    pub id: String,
}

pub struct ImageManager {
    cri: Cri,
    backoff: Backoff,
    pulls: Semaphore,
    /// The failure a key backs off from.
    failures: Mutex<HashMap<String, (Timestamp, String)>>,
}

const RETRY_MISSING: Duration = Duration::from_secs(10);

impl ImageManager {
    pub fn new(cri: Cri, serialize: bool) -> Self {
        ImageManager {
            cri,
            backoff: Backoff::new(Duration::from_secs(10), Duration::from_secs(300)),
            pulls: Semaphore::new(if serialize { 1 } else { 16 }),
            failures: Mutex::default(),
        }
    }

    /// Makes sure that the container's image is there.
    pub async fn ensure(
        &self,
        pod: &Pod,
        container: &Container,
        sandbox: Option<&cri::PodSandboxConfig>,
        objects: &dyn Objects,
        recorder: &Recorder,
        reference: &ObjectReference,
    ) -> Result<ImageRef, ImageError> {
        let given = container.image.as_deref().unwrap_or_default();
        let image = normalize(given).ok_or_else(|| {
            let message = format!(
                "Failed to apply default image tag {given:?}: couldn't parse image name {given:?}: invalid reference format"
            );
            recorder.event(reference, EventType::Warning, "InspectFailed", message.clone());
            ImageError {
                reason: "InvalidImageName",
                message,
                retry: None,
            }
        })?;
        let spec = cri::ImageSpec {
            image: image.clone(),
            user_specified_image: given.to_string(),
            ..Default::default()
        };
        let present = self.present(&spec).await.map_err(|error| {
            let message = format!("Failed to inspect image {image:?}: {}", error.message());
            recorder.event(
                reference,
                EventType::Warning,
                "InspectFailed",
                message.clone(),
            );
            ImageError {
                reason: "ImageInspectError",
                message,
                retry: Some(RETRY_MISSING),
            }
        })?;
        match (policy(container), present) {
            ("IfNotPresent" | "Never", Some(id)) => {
                let message = format!(
                    "Container image {image:?} already present on machine and can be accessed by the pod"
                );
                recorder.event(reference, EventType::Normal, "Pulled", message);
                return Ok(ImageRef { id });
            }
            ("Never", None) => {
                let message =
                    format!("Container image {image:?} is not present with pull policy of Never");
                recorder.event(
                    reference,
                    EventType::Warning,
                    "ErrImageNeverPull",
                    message.clone(),
                );
                return Err(ImageError {
                    reason: "ErrImageNeverPull",
                    message,
                    retry: Some(RETRY_MISSING),
                });
            }
            _ => {}
        }
        self.pull(pod, spec, sandbox, objects, recorder, reference)
            .await
    }

    async fn present(&self, spec: &cri::ImageSpec) -> crate::cri::Result<Option<String>> {
        let request = cri::ImageStatusRequest {
            image: Some(spec.clone()),
            verbose: false,
        };
        let answer = self.cri.image_status(request).await?;
        Ok(answer.image.map(|image| image.id))
    }

    async fn pull(
        &self,
        pod: &Pod,
        spec: cri::ImageSpec,
        sandbox: Option<&cri::PodSandboxConfig>,
        objects: &dyn Objects,
        recorder: &Recorder,
        reference: &ObjectReference,
    ) -> Result<ImageRef, ImageError> {
        let image = spec.image.clone();
        let key = format!("{}_{image}", pod.uid());
        let failure = self.failures.lock().get(&key).cloned();
        if let Some((failed_at, why)) = &failure
            && let Some(wait) = self.backoff.remaining(&key, *failed_at, Timestamp::now())
        {
            let message = format!("Back-off pulling image {image:?}");
            recorder.event(reference, EventType::Normal, "BackOff", message.clone());
            return Err(ImageError {
                reason: "ImagePullBackOff",
                message: format!("{message}: ErrImagePull: {why}"),
                retry: Some(wait.remaining),
            });
        }
        let waiting = Instant::now();
        recorder.event(
            reference,
            EventType::Normal,
            "Pulling",
            format!("Pulling image {image:?}"),
        );
        let _one_of_few = self.pulls.acquire().await;
        let pulling = Instant::now();
        match self.pull_with_secrets(pod, &spec, sandbox, objects).await {
            Ok(_) => {
                self.failures.lock().remove(&key);
                let size = self.size(&spec).await;
                let message = format!(
                    "Successfully pulled image {image:?} in {} ({} including waiting). Image size: {size} bytes.",
                    rounded(pulling.elapsed()),
                    rounded(waiting.elapsed()),
                );
                recorder.event(reference, EventType::Normal, "Pulled", message);
                let id = self.present(&spec).await.ok().flatten().unwrap_or(image);
                Ok(ImageRef { id })
            }
            Err(error) => {
                let why = error.message().to_string();
                let message = format!("Failed to pull image {image:?}: {why}");
                recorder.event(reference, EventType::Warning, "Failed", message);
                let now = Timestamp::now();
                let failed_at = failure.map_or(now, |(at, _)| at);
                self.backoff.next(&key, failed_at, now);
                self.failures.lock().insert(key, (now, why.clone()));
                Err(ImageError {
                    reason: "ErrImagePull",
                    message: why,
                    // At once, so that the state turns to ImagePullBackOff.
                    retry: Some(Duration::from_secs(1)),
                })
            }
        }
    }

    /// Tries the pod's credentials for the registry one after the other, or none at all.
    async fn pull_with_secrets(
        &self,
        pod: &Pod,
        spec: &cri::ImageSpec,
        sandbox: Option<&cri::PodSandboxConfig>,
        objects: &dyn Objects,
    ) -> crate::cri::Result<String> {
        let mut credentials = Vec::new();
        for secret in pod.spec().image_pull_secrets.iter().flatten() {
            if let Ok(Some(secret)) = objects.secret(pod.namespace(), &secret.name).await {
                credentials.extend(credentials_of(&secret, &spec.image));
            }
        }
        let mut attempts: Vec<Option<cri::AuthConfig>> =
            credentials.into_iter().map(Some).collect();
        if attempts.is_empty() {
            attempts.push(None);
        }
        let mut last = tonic::Status::unknown("no attempt");
        for auth in attempts {
            let request = cri::PullImageRequest {
                image: Some(spec.clone()),
                auth,
                sandbox_config: sandbox.cloned(),
            };
            match self.cri.pull_image(request).await {
                Ok(reference) => return Ok(reference),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    async fn size(&self, spec: &cri::ImageSpec) -> u64 {
        let request = cri::ImageStatusRequest {
            image: Some(spec.clone()),
            verbose: false,
        };
        let answer = self.cri.image_status(request).await.ok();
        answer
            .and_then(|answer| answer.image)
            .map_or(0, |image| image.size)
    }

    /// The pod is gone.
    pub fn forget(&self, uid: &str) {
        let prefix = format!("{uid}_");
        self.backoff.forget(&prefix);
        self.failures
            .lock()
            .retain(|key, _| !key.starts_with(&prefix));
    }
}

fn policy(container: &Container) -> &str {
    match container.image_pull_policy.as_deref() {
        Some(policy) => policy,
        None if tag_is_latest(container.image.as_deref().unwrap_or_default()) => "Always",
        None => "IfNotPresent",
    }
}

/// No tag means `latest`; a digest never is.
pub fn tag_is_latest(image: &str) -> bool {
    if image.contains('@') {
        return false;
    }
    let last = image.rsplit('/').next().unwrap_or(image);
    last.split_once(':').is_none_or(|(_, tag)| tag == "latest")
}

/// The reference with its tag filled in, or `None` if it can't be one.
fn normalize(image: &str) -> Option<String> {
    let (name, digest) = match image.split_once('@') {
        Some((name, digest)) => (name, Some(digest)),
        None => (image, None),
    };
    let slash = name.rfind('/').map_or(0, |at| at + 1);
    let (repository, tag) = match name[slash..].find(':') {
        Some(at) => (&name[..slash + at], Some(&name[slash + at + 1..])),
        None => (name, None),
    };
    let mut parts = repository.split('/').peekable();
    let first = parts.peek().copied().unwrap_or_default();
    let has_host = repository.contains('/')
        && (first.contains('.') || first.contains(':') || first == "localhost");
    if has_host {
        parts.next();
    }
    let path_fine = |part: &str| {
        let edge =
            |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
        edge(part.chars().next())
            && edge(part.chars().last())
            && part
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c))
    };
    let tag_fine = |tag: &str| {
        (1..=128).contains(&tag.len())
            && !tag.starts_with(['.', '-'])
            && tag
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
    };
    let digest_fine = |digest: &str| {
        digest
            .split_once(':')
            .is_some_and(|(_, hex)| hex.len() >= 32 && hex.chars().all(|c| c.is_ascii_hexdigit()))
    };
    let mut any = false;
    for part in parts {
        any = true;
        if !path_fine(part) {
            return None;
        }
    }
    if !any || !tag.is_none_or(tag_fine) || !digest.is_none_or(digest_fine) {
        return None;
    }
    Some(match (tag, digest) {
        (None, None) => format!("{image}:latest"),
        _ => image.to_string(),
    })
}

/// The registry host of an image, and the path below it.
fn registry(image: &str) -> (String, String) {
    match image.split_once('/') {
        Some((host, path)) if host.contains(['.', ':']) || host == "localhost" => {
            (host.to_string(), path.to_string())
        }
        _ => ("index.docker.io".into(), image.to_string()),
    }
}

/// Credentials in a pull secret that fit the image's registry, the longest match first.
fn credentials_of(
    secret: &Arc<k8s_openapi::api::core::v1::Secret>,
    image: &str,
) -> Vec<cri::AuthConfig> {
    let data = secret.data.as_ref();
    let config: Option<serde_json::Value> = data.and_then(|data| {
        data.get(".dockerconfigjson")
            .and_then(|bytes| serde_json::from_slice::<serde_json::Value>(&bytes.0).ok())
            .map(|mut config| config["auths"].take())
            .or_else(|| {
                data.get(".dockercfg")
                    .and_then(|bytes| serde_json::from_slice(&bytes.0).ok())
            })
    });
    let (host, path) = registry(image);
    let mut found: Vec<(usize, cri::AuthConfig)> = Vec::new();
    for (server, entry) in config
        .iter()
        .filter_map(|config| config.as_object())
        .flatten()
    {
        let bare = server
            .trim_start_matches("https://")
            .trim_start_matches("http://")
            .trim_end_matches('/');
        let bare = bare
            .strip_suffix("/v1")
            .or(bare.strip_suffix("/v2"))
            .unwrap_or(bare);
        let (server_host, server_path) = bare.split_once('/').unwrap_or((bare, ""));
        let docker = |host: &str| {
            matches!(
                host,
                "index.docker.io" | "docker.io" | "registry-1.docker.io"
            )
        };
        let host_fits = server_host == host
            || docker(server_host) && docker(&host)
            || server_host
                .strip_prefix("*.")
                .is_some_and(|suffix| host.ends_with(&format!(".{suffix}")));
        if !host_fits || !path.starts_with(server_path) {
            continue;
        }
        let text = |field: &str| entry[field].as_str().unwrap_or_default().to_string();
        let (mut username, mut password) = (text("username"), text("password"));
        if let Some((user, pass)) = base64::engine::general_purpose::STANDARD
            .decode(text("auth"))
            .ok()
            .and_then(|bytes| String::from_utf8(bytes).ok())
            .as_deref()
            .and_then(|pair| pair.split_once(':'))
        {
            username = user.to_string();
            password = pass.to_string();
        }
        let auth = cri::AuthConfig {
            username,
            password,
            identity_token: text("identitytoken"),
            registry_token: text("registrytoken"),
            ..Default::default()
        };
        found.push((bare.len(), auth));
    }
    found.sort_by_key(|(length, _)| std::cmp::Reverse(*length));
    found.into_iter().map(|(_, auth)| auth).collect()
}

fn rounded(duration: Duration) -> String {
    let millis = duration.as_millis();
    if millis < 1000 {
        format!("{millis}ms")
    } else {
        format!("{}.{:03}s", millis / 1000, millis % 1000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for (image, expected) in [
            ("nginx", Some("nginx:latest")),
            ("nginx:1.27", Some("nginx:1.27")),
            ("localhost:5000/a/b", Some("localhost:5000/a/b:latest")),
            (
                "mcr.fluyt.local/coredns:v0.1.0",
                Some("mcr.fluyt.local/coredns:v0.1.0"),
            ),
            ("Nginx", None),
            ("nginx:", None),
            ("a b", None),
            ("", None),
            ("nginx@sha256:xyz", None),
            ("///", None),
        ] {
            assert_eq!(normalize(image).as_deref(), expected, "{image}");
        }
        assert!(tag_is_latest("localhost:5000/a"));
        assert!(!tag_is_latest("a:1"));
        assert!(!tag_is_latest("a@sha256:0"));
    }

    #[test]
    fn pull_secrets() {
        let auth = base64::engine::general_purpose::STANDARD.encode("me:pass:word");
        let config = serde_json::json!({"auths": {
            "https://registry.example/v2/": {"auth": auth},
            "registry.example/team": {"username": "team", "password": "t"},
            "other.example": {"username": "no", "password": "no"}
        }});
        let secret: k8s_openapi::api::core::v1::Secret = serde_json::from_value(serde_json::json!({
            "data": {".dockerconfigjson": base64::engine::general_purpose::STANDARD.encode(config.to_string())}
        }))
        .unwrap();
        let secret = Arc::new(secret);
        let users = |image: &str| -> Vec<String> {
            credentials_of(&secret, image)
                .into_iter()
                .map(|auth| auth.username)
                .collect()
        };
        assert_eq!(users("registry.example/team/app:1"), ["team", "me"]);
        assert_eq!(users("registry.example/app:1"), ["me"]);
        assert!(users("nginx:1").is_empty());
    }
}
