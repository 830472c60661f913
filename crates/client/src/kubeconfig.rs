//! Clients from a kubeconfig file, or from the service account of the pod we run in.

use std::path::Path;

use http::{HeaderValue, header::USER_AGENT};
use kube::{
    Client, Config,
    config::{AuthInfo, KubeConfigOptions, Kubeconfig},
};

/// Why no client could be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("kubeconfig {path}: {source}")]
    Kubeconfig {
        path: String,
        source: Box<kube::config::KubeconfigError>,
    },
    #[error("no kubeconfig given and not inside a cluster: {0}")]
    InCluster(#[from] kube::config::InClusterError),
    #[error("user agent {0:?} can't be sent in a header")]
    UserAgent(String),
    #[error("can't make a client: {0}")]
    Client(#[from] Box<kube::Error>),
}

/// A client of the cluster that `kubeconfig`'s current context names; in-cluster configuration when `None`.
pub async fn client(kubeconfig: Option<&Path>, user_agent: &str) -> Result<Client, Error> {
    build(config(kubeconfig).await?, user_agent)
}

/// A client of the same cluster that presents no credentials.
pub(crate) async fn anonymous_client(
    kubeconfig: Option<&Path>,
    user_agent: &str,
) -> Result<Client, Error> {
    let mut config = config(kubeconfig).await?;
    config.auth_info = AuthInfo::default();
    build(config, user_agent)
}

fn build(mut config: Config, user_agent: &str) -> Result<Client, Error> {
    let agent =
        HeaderValue::from_str(user_agent).map_err(|_| Error::UserAgent(user_agent.to_owned()))?;
    config.headers.push((USER_AGENT, agent));
    Client::try_from(config).map_err(|error| Error::Client(Box::new(error)))
}

async fn config(kubeconfig: Option<&Path>) -> Result<Config, Error> {
    let Some(path) = kubeconfig else {
        return Ok(Config::incluster()?);
    };
    let wrap = |source| Error::Kubeconfig {
        path: path.display().to_string(),
        source: Box::new(source),
    };
    let file = Kubeconfig::read_from(path).map_err(wrap)?;
    let options = KubeConfigOptions::default();
    Config::from_custom_kubeconfig(file, &options)
        .await
        .map_err(wrap)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_missing_file_is_named_in_the_error() {
        let Err(error) = client(Some(Path::new("/no/such/kubeconfig")), "test").await else {
            panic!("there is no such file");
        };
        assert!(error.to_string().contains("/no/such/kubeconfig"), "{error}");
    }
}
