//! Who a request is from, through the whole server: certificates, front proxies, tokens of every kind, impersonation.

use std::sync::Arc;

use crate::common::Api;
use crate::common::service::{Service, eventually};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use fluyt_apiserver::authn::jwt::AuthenticationConfiguration;
use fluyt_apiserver::authn::{Anonymous, PeerCertificates, TokenFile, TokenWebhookSettings};
use fluyt_apiserver::{MASTERS, Signing, User};
use fluyt_pki::{Authority, Identity, NamedReference, SecretClaims, TokenKeys, Usage};
use http::{Method, Request, StatusCode};
use http_body_util::Full;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use parking_lot::Mutex;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde_json::{Value, json};

const REVIEW: &str = "/apis/authentication.k8s.io/v1/selfsubjectreviews";

fn review(headers: &[(&str, &str)], peer: Option<PeerCertificates>) -> Request<Full<bytes::Bytes>> {
    let body = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
    let mut request = Request::post(REVIEW).header("content-type", "application/json");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let mut request = request.body(Full::from(body.to_string())).unwrap();
    if let Some(peer) = peer {
        request.extensions_mut().insert(peer);
    }
    request
}

fn peer(authority: &Authority, name: &str, organizations: &[&str]) -> PeerCertificates {
    let identity = Identity {
        common_name: name.into(),
        organizations: organizations.iter().map(|o| (*o).to_owned()).collect(),
        ..Identity::default()
    };
    let issued = authority.issue(&identity, Usage::Client, 1).unwrap();
    let chain = CertificateDer::pem_slice_iter(issued.certificate_pem.as_bytes());
    PeerCertificates::new(chain.collect::<Result<Arc<[_]>, _>>().unwrap())
}

async fn user(api: &Api, headers: &[(&str, &str)], peer: Option<PeerCertificates>) -> (u16, Value) {
    let (status, _, body) = api.send(review(headers, peer)).await;
    (status.as_u16(), body["status"]["userInfo"].clone())
}

#[tokio::test]
async fn certificates_and_front_proxies() {
    let proxies = Authority::create("proxies").unwrap();
    let api = Api::configured(|config, _| {
        config.requestheader_ca_pem = Some(proxies.certificate_pem().to_owned());
    })
    .await;
    let (status, found) = user(&api, &[], Some(peer(&api.authority, "alice", &["dev"]))).await;
    assert_eq!(status, 201);
    assert_eq!(found["username"], "alice");
    assert_eq!(found["groups"], json!(["dev", "system:authenticated"]));
    let id = &found["extra"]["authentication.kubernetes.io/credential-id"][0];
    assert!(id.as_str().unwrap().starts_with("X509SHA256="));

    let foreign = Authority::create("other").unwrap();
    let (status, _) = user(&api, &[], Some(peer(&foreign, "alice", &[]))).await;
    assert_eq!(status, 401);

    let headers = [
        ("x-remote-user", "bob"),
        ("x-remote-group", "ops"),
        ("x-remote-extra-acme%2ftier", "gold"),
    ];
    let proxy = || Some(peer(&proxies, "front-proxy-client", &[]));
    let (status, found) = user(&api, &headers, proxy()).await;
    assert_eq!((status, &found["username"]), (201, &json!("bob")));
    assert_eq!(found["extra"], json!({"acme/tier": ["gold"]}));
    // Another name of the same authority is no front proxy, and nobody else may say who they are.
    let (status, _) = user(&api, &headers, Some(peer(&proxies, "mallory", &[]))).await;
    assert_eq!(status, 401);
    let (_, found) = user(&api, &headers, Some(peer(&api.authority, "alice", &[]))).await;
    assert_eq!(found["username"], "alice");
    let (status, _) = user(&api, &headers, None).await;
    assert_eq!(status, 403, "anonymous may not review itself");
}

/// An issuer on loopback with a key that can be exchanged.
struct Issuer {
    service: Service,
    keys: Arc<Mutex<TokenKeys>>,
    /// The token with which it says what it knows of somebody.
    said: Arc<Mutex<String>>,
}

impl Issuer {
    async fn start() -> Self {
        let authority = Arc::new(Authority::create("issuers").unwrap());
        let keys = Arc::new(Mutex::new(TokenKeys::create().unwrap()));
        Self::with(authority, keys, Arc::default()).await
    }

    /// Another one with the same keys and authority.
    async fn sibling(&self) -> Self {
        let (authority, keys) = (self.service.authority.clone(), self.keys.clone());
        Self::with(authority, keys, self.said.clone()).await
    }

    async fn with(
        authority: Arc<Authority>,
        keys: Arc<Mutex<TokenKeys>>,
        said: Arc<Mutex<String>>,
    ) -> Self {
        let address: Arc<Mutex<String>> = Arc::default();
        let (shown, at, saying) = (keys.clone(), address.clone(), said.clone());
        let service = Service::vouched_by(authority, move |path, _| {
            let url = at.lock().clone();
            match path {
                "/roles.jwt" => (200, saying.lock().as_str().into()),
                "/.well-known/openid-configuration" => (
                    200,
                    json!({"issuer": url, "jwks_uri": format!("{url}/keys")}),
                ),
                "/keys" => (200, shown.lock().jwks()),
                _ => (404, Value::Null),
            }
        })
        .await;
        *address.lock() = service.url();
        Self {
            service,
            keys,
            said,
        }
    }

    fn claims(&self) -> Value {
        let now = jiff::Timestamp::now().as_second();
        json!({"iss": self.service.url(), "aud": "cluster", "sub": "u1", "email": "u1@acme", "email_verified": true,
            "roles": ["dev"], "exp": now + 600, "iat": now, "jti": "t1"})
    }

    fn sign(&self, claims: &Value) -> String {
        let keys = self.keys.lock();
        let mut header = Header::new(Algorithm::ES256);
        header.kid = keys.jwks()["keys"][0]["kid"].as_str().map(str::to_owned);
        let key = EncodingKey::from_ec_pem(keys.private_pem().as_bytes()).unwrap();
        jsonwebtoken::encode(&header, claims, &key).unwrap()
    }

    fn configuration(&self, mappings: &str) -> String {
        let ca: Vec<String> = self
            .service
            .ca_pem
            .lines()
            .map(|l| format!("      {l}"))
            .collect();
        format!(
            "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\njwt:\n- issuer:\n    url: {}\n    audiences: [cluster]\n    certificateAuthority: |\n{}\n  claimMappings:\n{mappings}\n",
            self.service.url(),
            ca.join("\n")
        )
    }
}

const CLAIM: &str =
    "    username: {claim: sub, prefix: 'oidc:'}\n    groups: {claim: roles, prefix: ''}";

#[tokio::test]
async fn tokens_of_an_openid_issuer() {
    let issuer = Issuer::start().await;
    let config = AuthenticationConfiguration::parse(&issuer.configuration(CLAIM), &[]).unwrap();
    let api = Api::configured(|c, _| c.authentication.jwt = config.jwt).await;
    let token = issuer.sign(&issuer.claims());
    // Its keys are fetched in the background.
    let known = eventually(async || api.whoami(&token).await.0 == StatusCode::CREATED).await;
    assert!(known);
    let (_, found) = api.whoami(&token).await;
    assert_eq!(found["username"], "oidc:u1");
    assert_eq!(found["groups"], json!(["dev", "system:authenticated"]));

    let changed = |field: &str, value: Value| {
        let mut claims = issuer.claims();
        claims[field] = value;
        issuer.sign(&claims)
    };
    let parts: Vec<&str> = token.split('.').collect();
    let none = URL_SAFE_NO_PAD.encode("{\"alg\":\"none\"}");
    let hmac = jsonwebtoken::encode(
        &Header::new(Algorithm::HS256),
        &issuer.claims(),
        &EncodingKey::from_secret(issuer.keys.lock().jwks().to_string().as_bytes()),
    )
    .unwrap();
    let forged = format!(
        "{}.{}.{}",
        parts[0],
        URL_SAFE_NO_PAD.encode("{\"sub\":\"admin\"}"),
        parts[2]
    );
    for (what, bad) in [
        ("expired", changed("exp", json!(1))),
        ("without an end", changed("exp", Value::Null)),
        ("not yet valid", changed("nbf", json!(4_000_000_000_i64))),
        ("for others", changed("aud", json!("other"))),
        ("of others", changed("iss", json!("https://127.0.0.1:1"))),
        ("without its claim", changed("sub", Value::Null)),
        ("unsigned", format!("{none}.{}.", parts[1])),
        ("signed with the public key", hmac),
        ("forged", forged),
        ("cut", token[..token.len() - 10].to_owned()),
        ("nonsense", "a.b.c".to_owned()),
        ("long", "x".repeat(200_000)),
    ] {
        let (status, _) = api.whoami(&bad).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED, "{what}");
    }

    // The issuer begins to sign with another key.
    *issuer.keys.lock() = TokenKeys::create().unwrap();
    let fresh = issuer.sign(&issuer.claims());
    let rotated = eventually(async || api.whoami(&fresh).await.0 == StatusCode::CREATED).await;
    assert!(rotated);
    assert_eq!(api.whoami(&token).await.0, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn groups_that_another_issuer_knows() {
    let issuer = Issuer::start().await;
    // Whom the token names answers with a token of its own, which the same authority vouches for.
    let (said, other) = (issuer.said.clone(), issuer.sibling().await);
    let config = AuthenticationConfiguration::parse(&issuer.configuration(CLAIM), &[]).unwrap();
    let api = Api::configured(|c, _| c.authentication.jwt = config.jwt).await;
    let mut claims = issuer.claims();
    claims.as_object_mut().unwrap().remove("roles");
    let plain = issuer.sign(&claims);
    assert!(eventually(async || api.whoami(&plain).await.0 == StatusCode::CREATED).await);
    let (_, found) = api.whoami(&plain).await;
    assert_eq!(found["groups"], json!(["system:authenticated"]));

    claims["_claim_names"] = json!({"roles": "directory"});
    let endpoint = format!("{}/roles.jwt", issuer.service.url());
    claims["_claim_sources"] =
        json!({"directory": {"endpoint": endpoint, "access_token": "magic"}});
    let token = issuer.sign(&claims);
    // The issuer itself may be the one who knows.
    let mut roles = issuer.claims();
    roles["roles"] = json!(["a", "b"]);
    *said.lock() = issuer.sign(&roles);
    let (status, found) = api.whoami(&token).await;
    assert_eq!(status, StatusCode::CREATED, "{found}");
    assert_eq!(found["groups"], json!(["a", "b", "system:authenticated"]));
    let shown = {
        let asked = issuer.service.headers.lock();
        let mut shown = asked.iter().rev().filter_map(|h| h.get("authorization"));
        shown.next().cloned().unwrap()
    };
    assert_eq!(shown, "Bearer magic");
    // So may another one, whose keys are looked for.
    roles["iss"] = other.service.url().into();
    roles["roles"] = json!("c");
    *said.lock() = issuer.sign(&roles);
    let (status, found) = api.whoami(&token).await;
    assert_eq!(status, StatusCode::CREATED, "{found}");
    assert_eq!(found["groups"], json!(["c", "system:authenticated"]));
    // What it says has to be true, of this audience and about the claim.
    let changed = |field: &str, value: Value| {
        let mut claims = roles.clone();
        claims[field] = value;
        issuer.sign(&claims)
    };
    let stranger = TokenKeys::create().unwrap();
    let key = EncodingKey::from_ec_pem(stranger.private_pem().as_bytes()).unwrap();
    let forged = jsonwebtoken::encode(&Header::new(Algorithm::ES256), &roles, &key).unwrap();
    let mut silent = roles.clone();
    silent.as_object_mut().unwrap().remove("roles");
    for bad in [
        changed("aud", json!("others")),
        changed("exp", json!(1)),
        changed("iss", json!("https://127.0.0.1:1")),
        issuer.sign(&silent),
        forged,
        "nonsense".to_owned(),
    ] {
        *said.lock() = bad;
        assert_eq!(api.whoami(&token).await.0, StatusCode::UNAUTHORIZED);
    }
    // Groups that the token says itself are not asked for.
    claims["roles"] = json!(["own"]);
    let (_, found) = api.whoami(&issuer.sign(&claims)).await;
    assert_eq!(found["groups"], json!(["own", "system:authenticated"]));
}

#[tokio::test]
async fn the_configuration_is_read_again_when_it_changes() {
    let issuer = Issuer::start().await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("authentication.yaml");
    std::fs::write(&path, issuer.configuration(CLAIM)).unwrap();
    let config = AuthenticationConfiguration::parse(&issuer.configuration(CLAIM), &[]).unwrap();
    let api = Api::configured(|c, _| {
        c.authentication.jwt = config.jwt;
        c.authentication.config_file = Some(path.clone());
    })
    .await;
    let token = issuer.sign(&issuer.claims());
    let is_called = async |name: &str| {
        eventually(async || api.whoami(&token).await.1["username"] == name).await
    };
    assert!(is_called("oidc:u1").await);
    // What is wrong changes nothing; what is right takes effect.
    std::fs::write(&path, "kind: Nothing").unwrap();
    let expression = "    username: {expression: '\"e:\" + (claims.email_verified ? claims.email : claims.sub)'}";
    std::fs::write(&path, issuer.configuration(expression)).unwrap();
    assert!(is_called("e:u1@acme").await);
}

#[tokio::test]
async fn tokens_of_files_webhooks_and_rotated_keys() {
    let hook = Service::start(|_, review| {
        let status = match review["spec"]["token"].as_str() {
            Some("magic") => {
                json!({"authenticated": true, "user": {"username": "wizard", "groups": ["hat"]}})
            }
            _ => json!({"authenticated": false}),
        };
        (
            200,
            json!({"apiVersion": review["apiVersion"], "kind": "TokenReview", "status": status}),
        )
    })
    .await;
    let directory = tempfile::tempdir().unwrap();
    let old = TokenKeys::create().unwrap();
    let keys = TokenKeys::create().unwrap();
    let pems = vec![old.private_pem().to_owned(), keys.private_pem().to_owned()];
    let signing = keys.private_pem().to_owned();
    let api = Api::configured(|config, _| {
        config.service_account_signing = Signing::Key(signing);
        config.authentication.service_account_keys = pems;
        config.authentication.token_file =
            Some(TokenFile::parse("s3cret,carol,7,\"a,b\"").unwrap());
        config.authentication.webhook = Some(TokenWebhookSettings {
            kubeconfig: hook.kubeconfig(&directory),
            version: "v1",
            cache_ttl: std::time::Duration::from_secs(60),
        });
    })
    .await;
    let (_, found) = api.whoami("s3cret").await;
    assert_eq!(
        (&found["username"], &found["uid"]),
        (&json!("carol"), &json!("7"))
    );
    for _ in 0..3 {
        let (_, found) = api.whoami("magic").await;
        assert_eq!(found["groups"], json!(["hat", "system:authenticated"]));
    }
    assert_eq!(hook.count(), 1, "answers are remembered");
    assert_eq!(api.whoami("wrong").await.0, StatusCode::UNAUTHORIZED);

    api.namespace().await;
    let request =
        json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}});
    let (_, made) = api
        .post(
            "/api/v1/namespaces/n/serviceaccounts/default/token",
            request,
        )
        .await;
    let token = made["status"]["token"].as_str().unwrap();
    let (status, found) = api.whoami(token).await;
    assert_eq!(
        (status, &found["username"]),
        (
            StatusCode::CREATED,
            &json!("system:serviceaccount:n:default")
        )
    );
    // The same claims under the key of the past are good, under a stranger's not.
    let claims = keys.verify(token).unwrap();
    assert_eq!(
        api.whoami(&old.sign(&claims).unwrap()).await.0,
        StatusCode::CREATED
    );
    let stranger = TokenKeys::create().unwrap();
    assert_eq!(
        api.whoami(&stranger.sign(&claims).unwrap()).await.0,
        StatusCode::UNAUTHORIZED
    );
    let (_, _, set) = api.send(as_admin(Request::get("/openid/v1/jwks"))).await;
    assert_eq!(set["keys"].as_array().unwrap().len(), 2);
    // Whoever the token is bound to has to exist.
    api.call(
        Method::DELETE,
        "/api/v1/namespaces/n/serviceaccounts/default",
        Value::Null,
    )
    .await;
    assert_eq!(api.whoami(token).await.0, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn a_program_has_the_credentials_for_a_webhook() {
    let asked = std::sync::atomic::AtomicUsize::new(0);
    let hook = Service::start(move |_, review| {
        if asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == 0 {
            return (401, json!({}));
        }
        let status = json!({"authenticated": true, "user": {"username": "wizard"}});
        (
            200,
            json!({"apiVersion": review["apiVersion"], "kind": "TokenReview", "status": status}),
        )
    })
    .await;
    // The first time it has a token only, the second time a certificate as well.
    let directory = tempfile::tempdir().unwrap();
    let identity = Identity {
        common_name: "apiserver".into(),
        ..Identity::default()
    };
    let issued = hook.authority.issue(&identity, Usage::Client, 1).unwrap();
    let version = "client.authentication.k8s.io/v1";
    for (file, status) in [
        ("1", json!({"token": "old"})),
        (
            "2",
            json!({"token": "new", "clientCertificateData": issued.certificate_pem, "clientKeyData": issued.key_pem}),
        ),
    ] {
        let credential = json!({"kind": "ExecCredential", "apiVersion": version, "status": status});
        std::fs::write(directory.path().join(file), credential.to_string()).unwrap();
    }
    let script = format!(
        r#"cd {}; printf %s "$KUBERNETES_EXEC_INFO" >> info; cat $(wc -l < info)"#,
        directory.path().display()
    );
    let path = hook.kubeconfig(&directory);
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    config["contexts"][0]["context"]["user"] = "me".into();
    config["users"] = json!([{"name": "me", "user": {"exec": {"apiVersion": version, "command": "sh",
        "args": ["-c", script], "interactiveMode": "Never", "provideClusterInfo": true}}}]);
    std::fs::write(&path, config.to_string()).unwrap();
    let api = Api::configured(|config, _| {
        config.authentication.webhook = Some(TokenWebhookSettings {
            kubeconfig: path,
            version: "v1",
            cache_ttl: std::time::Duration::ZERO,
        });
    })
    .await;
    assert_eq!(api.whoami("a").await.0, StatusCode::UNAUTHORIZED);
    for token in ["b", "c"] {
        assert_eq!(api.whoami(token).await.1["username"], "wizard");
    }
    let tokens: Vec<_> = hook
        .headers
        .lock()
        .iter()
        .map(|h| h["authorization"].clone())
        .collect();
    assert_eq!(tokens, ["Bearer old", "Bearer new", "Bearer new"]);
    let own = CertificateDer::from_pem_slice(issued.certificate_pem.as_bytes()).unwrap();
    assert_eq!(
        *hook.certificates.lock(),
        [None, Some(own.clone()), Some(own)]
    );
    // It has run twice: at first, and when it was refused.
    let told = std::fs::read_to_string(directory.path().join("info")).unwrap();
    let told: Vec<Value> = told
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(told.len(), 2);
    assert_eq!(
        told[0]["spec"]["cluster"]["server"],
        format!("{}/hook", hook.url())
    );
    assert!(told[0]["spec"]["cluster"]["certificate-authority-data"].is_string());
}

fn as_admin(request: http::request::Builder) -> Request<Full<bytes::Bytes>> {
    let mut request = request.body(Full::default()).unwrap();
    request
        .extensions_mut()
        .insert(User::new("admin", &[MASTERS]));
    request
}

#[tokio::test]
async fn anonymous_requests_only_where_they_are_allowed() {
    let api =
        Api::configured(|c, _| c.authentication.anonymous = Anonymous::only(&["/livez"])).await;
    let get = |path: &str| Request::get(path).body(Full::default()).unwrap();
    assert_eq!(api.send(get("/livez")).await.0, StatusCode::OK);
    assert_eq!(api.send(get("/version")).await.0, StatusCode::UNAUTHORIZED);
    let (status, headers, body) = api.send(get("/api/v1/pods")).await;
    assert_eq!(
        (status, &body["reason"]),
        (StatusCode::UNAUTHORIZED, &json!("Unauthorized"))
    );
    assert!(headers.contains_key("audit-id"));
    // Bad credentials do not fall back to none.
    let bad = Request::get("/livez").header("authorization", "Bearer x");
    assert_eq!(
        api.send(bad.body(Full::default()).unwrap()).await.0,
        StatusCode::UNAUTHORIZED
    );
}

#[tokio::test]
async fn websockets_bring_their_token_as_a_protocol() {
    let api = Api::configured(|c, _| {
        c.authentication.token_file = Some(TokenFile::parse("s3cret,carol,7").unwrap());
    })
    .await;
    let token = URL_SAFE_NO_PAD.encode("s3cret");
    let protocols = format!("base64url.bearer.authorization.k8s.io.{token}, base64.binary.k8s.io");
    let headers = |protocols: &str| {
        let all = [
            ("upgrade", "websocket"),
            ("connection", "upgrade"),
            ("sec-websocket-protocol", protocols),
        ];
        review(&all, None)
    };
    let (status, _, body) = api.send(headers(&protocols)).await;
    assert_eq!(status, StatusCode::CREATED);
    assert_eq!(body["status"]["userInfo"]["username"], "carol");
    let (status, _, _) = api
        .send(headers("base64url.bearer.authorization.k8s.io.AAAA, x"))
        .await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn impersonation_takes_rights_to_every_part() {
    let api = Api::start().await;
    let role = |name: &str, rules: Value| json!({"metadata": {"name": name}, "rules": rules});
    let rules = json!([
        {"verbs": ["impersonate"], "apiGroups": [""], "resources": ["users"], "resourceNames": ["bob"]},
        {"verbs": ["impersonate"], "apiGroups": [""], "resources": ["groups"], "resourceNames": ["ops"]},
        {"verbs": ["impersonate"], "apiGroups": ["authentication.k8s.io"], "resources": ["userextras/scopes"], "resourceNames": ["dev"]},
    ]);
    api.post(
        "/apis/rbac.authorization.k8s.io/v1/clusterroles",
        role("actor", rules),
    )
    .await;
    let narrow = json!([
        {"verbs": ["impersonate:user-info"], "apiGroups": ["authentication.k8s.io"], "resources": ["users"], "resourceNames": ["eve"]},
        {"verbs": ["impersonate-on:user-info:create"], "apiGroups": ["authentication.k8s.io"], "resources": ["selfsubjectreviews"]},
    ]);
    api.post(
        "/apis/rbac.authorization.k8s.io/v1/clusterroles",
        role("narrow", narrow),
    )
    .await;
    for name in ["actor", "narrow"] {
        let binding = json!({"metadata": {"name": name}, "subjects": [{"kind": "User", "name": "alice"}],
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name}});
        api.post(
            "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
            binding,
        )
        .await;
    }
    let alice = peer(&api.authority, "alice", &[]);
    let act = async |headers: &[(&str, &str)]| {
        let (status, _, body) = api.send(review(headers, Some(alice.clone()))).await;
        (status.as_u16(), body)
    };
    let (status, body) = act(&[
        ("impersonate-user", "bob"),
        ("impersonate-group", "ops"),
        ("impersonate-extra-scopes", "dev"),
    ])
    .await;
    assert_eq!(status, 201);
    let found = &body["status"]["userInfo"];
    assert_eq!(found["username"], "bob");
    assert_eq!(found["groups"], json!(["ops", "system:authenticated"]));
    assert_eq!(found["extra"], json!({"scopes": ["dev"]}));
    let (status, body) = act(&[("impersonate-user", "eve")]).await;
    assert_eq!(
        (status, &body["status"]["userInfo"]["username"]),
        (201, &json!("eve"))
    );
    let (status, _) = act(&[
        ("impersonate-user", "bob"),
        ("impersonate-group", "system:masters"),
    ])
    .await;
    assert_eq!(status, 403);
    let (status, body) = act(&[("impersonate-user", "dan")]).await;
    assert_eq!(status, 403);
    assert_eq!(
        body["message"],
        "users.authentication.k8s.io \"dan\" is forbidden: User \"alice\" cannot impersonate:user-info resource \"users\" in API group \"authentication.k8s.io\" at the cluster scope"
    );
    let (status, _) = act(&[("impersonate-user", "bob"), ("impersonate-uid", "7")]).await;
    assert_eq!(status, 403);
    let (status, body) = act(&[("impersonate-group", "ops")]).await;
    assert_eq!(status, 400);
    assert!(
        body["message"]
            .as_str()
            .unwrap()
            .ends_with("without impersonating a user name")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_of_secrets_are_good_while_the_secret_has_them() {
    let keys = TokenKeys::create().unwrap();
    let pem = keys.private_pem().to_owned();
    let api = Api::configured(|config, _| config.service_account_signing = Signing::Key(pem)).await;
    api.namespace().await;
    let accounts = "/api/v1/namespaces/n/serviceaccounts";
    let (_, account) = api
        .post(accounts, json!({"metadata": {"name": "robot"}}))
        .await;
    let account = NamedReference {
        name: "robot".into(),
        uid: account["metadata"]["uid"].as_str().unwrap().into(),
    };
    let token = keys
        .sign(&SecretClaims::new("n", "token", &account))
        .unwrap();
    let secrets = "/api/v1/namespaces/n/secrets";
    let secret = json!({
        "metadata": {"name": "token", "annotations": {"kubernetes.io/service-account.name": "robot"}},
        "type": "kubernetes.io/service-account-token", "stringData": {"token": token},
    });
    // There is none yet.
    assert_eq!(api.whoami(&token).await.0, StatusCode::UNAUTHORIZED);
    assert_eq!(api.post(secrets, secret).await.0, StatusCode::CREATED);
    let (status, found) = api.whoami(&token).await;
    assert_eq!(status, StatusCode::CREATED);
    assert_eq!(found["username"], "system:serviceaccount:n:robot");
    assert_eq!(found["uid"], account.uid.as_str());
    let path = format!("{secrets}/token");
    const USED: &str = "kubernetes.io/legacy-token-last-used";
    let noted = eventually(async || api.get(&path).await.1["metadata"]["labels"][USED].is_string());
    assert!(noted.await);
    let tracking = "/api/v1/namespaces/kube-system/configmaps/kube-apiserver-legacy-service-account-token-tracking";
    assert!(api.get(tracking).await.1["data"]["since"].is_string());

    let other = TokenKeys::create().unwrap();
    let claims = SecretClaims::new("n", "token", &account);
    let stranger = NamedReference {
        uid: "other".into(),
        ..account.clone()
    };
    for (what, bad) in [
        ("signed by others", other.sign(&claims).unwrap()),
        (
            "of another secret",
            keys.sign(&SecretClaims::new("n", "none", &account))
                .unwrap(),
        ),
        (
            "not the secret's",
            keys.sign(&SecretClaims::new("n", "token", &stranger))
                .unwrap(),
        ),
    ] {
        assert_eq!(api.whoami(&bad).await.0, StatusCode::UNAUTHORIZED, "{what}");
    }
    let invalid =
        json!({"metadata": {"labels": {"kubernetes.io/legacy-token-invalid-since": "2026-01-01"}}});
    api.patch(&path, "merge-patch", invalid).await;
    assert_eq!(api.whoami(&token).await.0, StatusCode::UNAUTHORIZED);
    let valid = json!({"metadata": {"labels": {"kubernetes.io/legacy-token-invalid-since": null}}});
    api.patch(&path, "merge-patch", valid).await;
    assert_eq!(api.whoami(&token).await.0, StatusCode::CREATED);
    // The account that it was made for is gone, whoever has its name now.
    api.call(Method::DELETE, &format!("{accounts}/robot"), Value::Null)
        .await;
    api.post(accounts, json!({"metadata": {"name": "robot"}}))
        .await;
    assert_eq!(api.whoami(&token).await.0, StatusCode::UNAUTHORIZED);
}
