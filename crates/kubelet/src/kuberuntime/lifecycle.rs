//! Lifecycle hooks: a command in the container, an HTTP request to it, or a pause.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, LifecycleHandler, Pod};

use crate::kubelet::Kubelet;
use crate::pod::resolve_port;
use crate::prober::http;

/// Runs a hook to its end.
pub async fn run(
    kubelet: &Kubelet,
    _pod: &Pod,
    container: &Container,
    container_id: &str,
    ip: Option<&String>,
    hook: &LifecycleHandler,
) -> Result<(), String> {
    if let Some(exec) = &hook.exec {
        let command = exec.command.clone().unwrap_or_default();
        let answer = kubelet
            .cri
            .exec_sync(container_id, command.clone(), Duration::ZERO)
            .await
            .map_err(|error| error.message().to_string())?;
        if answer.exit_code != 0 {
            let output =
                String::from_utf8_lossy(&[answer.stdout, answer.stderr].concat()).into_owned();
            return Err(format!(
                "command '{}' exited with {}: {output}",
                command.join(" "),
                answer.exit_code
            ));
        }
        Ok(())
    } else if let Some(get) = &hook.http_get {
        let port = resolve_port(&get.port, container).ok_or("the hook's port is unknown")?;
        let host = get.host.clone().filter(|host| !host.is_empty());
        let host = host
            .or(ip.cloned())
            .ok_or("failed to find container's IP")?;
        let request = http::Request {
            https: get.scheme.as_deref() == Some("HTTPS"),
            host,
            port,
            path: get.path.clone().unwrap_or_else(|| "/".into()),
            headers: http::headers(get),
            user_agent: "kube-lifecycle/1.36",
        };
        match http::get(&request, Duration::from_secs(30)).await {
            Ok(answer) if (200..400).contains(&answer.code) => Ok(()),
            Ok(answer) => Err(format!("HTTP hook returned status {}", answer.code)),
            Err(error) => Err(error),
        }
    } else if let Some(sleep) = &hook.sleep {
        let seconds = u64::try_from(sleep.seconds).unwrap_or(0);
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        Ok(())
    } else {
        Err("invalid handler: neither exec, httpGet nor sleep".into())
    }
}
