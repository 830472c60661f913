//! How long tokens of service accounts live, and which ones count.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use fluyt_apiserver::{Signing, TokenLifetimes};
use fluyt_pki::{NamedReference, SecretClaims, TokenKeys};
use http::{Method, Request, StatusCode};
use http_body_util::Full;
use serde_json::{Value, json};

use crate::common::{Api, pod};
use crate::flags::{given, refused_or};

const TOKEN: &str = "/api/v1/namespaces/n/serviceaccounts/default/token";
const YEAR: i64 = 365 * 24 * 3600;

async fn api(flags: &[&str]) -> Api {
    let api = Api::configured(|config, _| config.token_lifetimes = given(flags)).await;
    api.namespace().await;
    let (status, made) = api.post("/api/v1/namespaces/n/pods", pod("p")).await;
    assert_eq!(status, StatusCode::CREATED, "{made}");
    api
}

/// Requests a token; the warning, and the answer.
async fn token(api: &Api, seconds: i64, bound: bool) -> (Option<String>, Value) {
    let mut spec = json!({"expirationSeconds": seconds});
    if bound {
        spec["boundObjectRef"] = json!({"kind": "Pod", "apiVersion": "v1", "name": "p"});
    }
    let body =
        json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec});
    let mut request = Request::post(TOKEN)
        .header("content-type", "application/json")
        .body(Full::from(body.to_string()))
        .unwrap();
    request.extensions_mut().insert(api.user.clone());
    let (status, headers, answer) = api.send(request).await;
    assert_eq!(status, StatusCode::CREATED, "{answer}");
    let warning = headers
        .get("warning")
        .map(|w| w.to_str().unwrap().to_owned());
    (warning, answer)
}

/// What a token says.
fn claims(answer: &Value) -> Value {
    let token = answer["status"]["token"].as_str().unwrap();
    let payload = token.split('.').nth(1).unwrap();
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).unwrap()).unwrap()
}

fn lifetime(claims: &Value) -> i64 {
    claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap()
}

#[tokio::test]
async fn nobody_gets_more_than_the_most() {
    let api = api(&["--service-account-max-token-expiration=2h"]).await;
    let (warning, answer) = token(&api, 10_000, false).await;
    let warning = warning.unwrap();
    assert!(
        warning.contains("requested expiration of 10000 seconds shortened to 7200 seconds"),
        "{warning}"
    );
    assert_eq!(answer["spec"]["expirationSeconds"], 7200);
    assert_eq!(lifetime(&claims(&answer)), 7200);
    let (warning, answer) = token(&api, 7200, false).await;
    assert_eq!((warning, lifetime(&claims(&answer))), (None, 7200));

    for text in ["59m", "1193047h"] {
        let flag = format!("--service-account-max-token-expiration={text}");
        let lifetimes = given::<TokenLifetimes>(&[&flag]);
        assert_eq!(
            lifetimes.check().unwrap_err().to_string(),
            "the service-account-max-token-expiration must be between 1 hour and 2^32 seconds"
        );
    }
    assert!(refused_or::<TokenLifetimes>(&["--service-account-max-token-expiration=x"]).is_err());
}

#[tokio::test]
async fn tokens_in_pods_live_on() {
    let extending = api(&[]).await;
    let (_, answer) = token(&extending, 3607, true).await;
    let claims_of_pod = claims(&answer);
    assert_eq!(lifetime(&claims_of_pod), YEAR);
    // It is renewed as if it did not.
    assert_eq!(answer["spec"]["expirationSeconds"], 3607);
    let issued = claims_of_pod["iat"].as_i64().unwrap();
    assert_eq!(claims_of_pod["kubernetes.io"]["warnafter"], issued + 3607);
    let expires = answer["status"]["expirationTimestamp"].as_str().unwrap();
    let expires: jiff::Timestamp = expires.parse().unwrap();
    assert_eq!(expires.as_second(), issued + 3607);
    let (status, who) = extending
        .whoami(answer["status"]["token"].as_str().unwrap())
        .await;
    assert_eq!(status, StatusCode::CREATED, "{who}");
    // Others do not.
    for (seconds, bound) in [(3608, true), (3607, false)] {
        let (_, answer) = token(&extending, seconds, bound).await;
        assert_eq!(lifetime(&claims(&answer)), seconds);
    }

    let strict = api(&["--service-account-extend-token-expiration=false"]).await;
    let (_, answer) = token(&strict, 3607, true).await;
    assert_eq!(lifetime(&claims(&answer)), 3607);
    assert_eq!(claims(&answer)["kubernetes.io"]["warnafter"], Value::Null);
}

#[tokio::test]
async fn tokens_of_secrets_are_looked_up() {
    for lookup in [true, false] {
        let keys = TokenKeys::create().unwrap();
        let pem = keys.private_pem().to_owned();
        let api = Api::configured(|config, _| {
            config.service_account_signing = Signing::Key(pem);
            config.authentication.secret_token_lookup = lookup;
        })
        .await;
        api.namespace().await;
        let account = api
            .get("/api/v1/namespaces/n/serviceaccounts/default")
            .await
            .1;
        let account = NamedReference {
            name: "default".into(),
            uid: account["metadata"]["uid"].as_str().unwrap().into(),
        };
        let token = keys.sign(&SecretClaims::new("n", "s", &account)).unwrap();
        let (status, made) = api
            .post(
                "/api/v1/namespaces/n/secrets",
                json!({"metadata": {"name": "s", "annotations": {"kubernetes.io/service-account.name": "default"}},
                    "type": "kubernetes.io/service-account-token", "data": {"token": STANDARD.encode(&token)}}),
            )
            .await;
        assert_eq!(status, StatusCode::CREATED, "{made}");
        assert_eq!(api.whoami(&token).await.0, StatusCode::CREATED);
        let gone = api.call(
            Method::DELETE,
            "/api/v1/namespaces/n/secrets/s",
            Value::Null,
        );
        assert_eq!(gone.await.0, StatusCode::OK);
        let expected = if lookup { 401 } else { 201 };
        assert_eq!(api.whoami(&token).await.0.as_u16(), expected);
    }
}

/// The record of a token's late use needs a token of the past.
#[tokio::test]
async fn late_use_is_counted() {
    let keys = TokenKeys::create().unwrap();
    let pem = keys.private_pem().to_owned();
    let api = Api::configured(|config, _| config.service_account_signing = Signing::Key(pem)).await;
    api.namespace().await;
    api.post("/api/v1/namespaces/n/pods", pod("p")).await;
    let (_, answer) = token(&api, 3607, true).await;
    let mut late = claims(&answer);
    let now = jiff::Timestamp::now().as_second();
    late["kubernetes.io"]["warnafter"] = (now - 10).into();
    for (token, kind) in [
        (
            answer["status"]["token"].as_str().unwrap().to_owned(),
            "valid",
        ),
        (keys.sign(&late).unwrap(), "stale"),
    ] {
        assert_eq!(api.whoami(&token).await.0, StatusCode::CREATED);
        let mut request = Request::get("/metrics").body(Full::default()).unwrap();
        request.extensions_mut().insert(api.user.clone());
        let metrics = api.send(request).await.2;
        let line = format!("\nserviceaccount_{kind}_tokens_total 1\n");
        assert!(metrics.as_str().unwrap().contains(&line), "{kind}");
    }
}
