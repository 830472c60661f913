//! Clients that act as service accounts of kube-system, for `--use-service-account-credentials`: every controller
//! has the rights of its own account only. Tokens come from the TokenRequest API and are renewed in time.

use std::{path::Path, sync::Arc, time::Duration};

use http::{HeaderValue, Request, header::AUTHORIZATION};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::{
    authentication::v1::{TokenRequest, TokenRequestSpec},
    core::v1::ServiceAccount,
};
use kube::{
    Api, Client,
    api::PostParams,
    client::{AuthError, Body},
    core::ObjectMeta,
};
use tokio::sync::Mutex;

use crate::{is_already_exists, is_not_found, kubeconfig};

const NAMESPACE: &str = "kube-system";
const LIFE_SECONDS: i64 = 3600;
/// Tokens are renewed when less than this is left.
const MARGIN: SignedDuration = SignedDuration::from_mins(12);
const PATIENCE: Duration = Duration::from_secs(10);

/// Makes clients of the cluster of one kubeconfig.
#[derive(Clone)]
pub struct ServiceAccountClients {
    /// Asks for tokens.
    manager: Client,
    /// Sends requests without credentials.
    anonymous: Client,
}

#[derive(Default)]
struct Cached {
    header: Option<HeaderValue>,
    renew_at: Timestamp,
}

impl ServiceAccountClients {
    /// `manager` must be allowed to create tokens of (and missing) service accounts in kube-system.
    pub async fn new(
        manager: Client,
        kubeconfig: Option<&Path>,
        user_agent: &str,
    ) -> Result<Self, kubeconfig::Error> {
        let anonymous = kubeconfig::anonymous_client(kubeconfig, user_agent).await?;
        Ok(Self { manager, anonymous })
    }

    /// A client that acts as `system:serviceaccount:kube-system:<account>`.
    pub fn client(&self, account: &str) -> Client {
        let (this, account) = (self.clone(), Arc::<str>::from(account));
        let token = Arc::new(Mutex::new(Cached::default()));
        let service = tower::service_fn(move |mut request: Request<Body>| {
            let (this, account, token) = (this.clone(), Arc::clone(&account), Arc::clone(&token));
            async move {
                let header = this.authorization(&account, &token).await?;
                request.headers_mut().insert(AUTHORIZATION, header);
                this.anonymous.send(request).await
            }
        });
        Client::new(service, NAMESPACE)
    }

    async fn authorization(
        &self,
        account: &str,
        token: &Mutex<Cached>,
    ) -> kube::Result<HeaderValue> {
        let mut cached = token.lock().await;
        if let Some(header) = &cached.header
            && Timestamp::now() < cached.renew_at
        {
            return Ok(header.clone());
        }
        let status = self
            .request_token(account)
            .await?
            .status
            .unwrap_or_default();
        let header = HeaderValue::try_from(format!("Bearer {}", status.token.unwrap_or_default()))
            .map_err(|error| kube::Error::Auth(AuthError::InvalidBearerToken(error)))?;
        let now = Timestamp::now();
        let expires = status.expiration_timestamp.map_or(now, |time| time.0);
        cached.renew_at = expires.checked_sub(MARGIN).unwrap_or(now);
        cached.header = Some(header.clone());
        Ok(header)
    }

    async fn request_token(&self, account: &str) -> kube::Result<TokenRequest> {
        let accounts = Api::<ServiceAccount>::namespaced(self.manager.clone(), NAMESPACE);
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                expiration_seconds: Some(LIFE_SECONDS),
                ..TokenRequestSpec::default()
            }),
            ..TokenRequest::default()
        };
        let params = PostParams::default();
        let create =
            || accounts.create_subresource::<_, TokenRequest>("token", account, &params, &request);
        match tokio::time::timeout(PATIENCE, create()).await {
            Ok(Err(error)) if is_not_found(&error) => {}
            Ok(result) => return result,
            Err(_) => return Err(kube::Error::Service("no token in time".into())),
        }
        let missing = ServiceAccount {
            metadata: ObjectMeta {
                name: Some(account.to_owned()),
                namespace: Some(NAMESPACE.to_owned()),
                ..ObjectMeta::default()
            },
            ..ServiceAccount::default()
        };
        match accounts.create(&params, &missing).await {
            Err(error) if is_already_exists(&error) => {}
            result => drop(result?),
        }
        create().await
    }
}
