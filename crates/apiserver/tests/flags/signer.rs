//! Tokens that an external program signs.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use fluyt_pki::TokenKeys;
use http::Method;
use jsonwebtoken::{Algorithm, EncodingKey};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tonic::Status;

use crate::common::grpc::{Calls, answer, serve_on_socket};
use crate::common::service::eventually;
use crate::flags::cluster::Cluster;

#[path = "../../src/tokens/signer/messages.rs"]
#[allow(dead_code)]
mod messages;

use messages::{
    FetchKeysRequest, FetchKeysResponse, Key, MetadataRequest, MetadataResponse, SignJwtRequest,
    SignJwtResponse, Timestamp,
};

/// A program with keys.
#[derive(Clone)]
struct Program(Arc<Mutex<State>>);

struct State {
    /// By their names; whether others are told of them.
    keys: BTreeMap<&'static str, (TokenKeys, bool)>,
    signs_with: &'static str,
    max_seconds: i64,
    fetched: usize,
}

impl Program {
    fn new() -> Self {
        let keys = BTreeMap::from([("first", (TokenKeys::create().unwrap(), true))]);
        Self(Arc::new(Mutex::new(State {
            keys,
            signs_with: "first",
            max_seconds: 7200,
            fetched: 0,
        })))
    }
}

/// The DER of a key's public half.
fn spki(keys: &TokenKeys) -> Vec<u8> {
    let jwk = &keys.jwks()["keys"][0];
    let part = |name: &str| URL_SAFE_NO_PAD.decode(jwk[name].as_str().unwrap()).unwrap();
    let prefix = [
        0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08,
        0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00, 0x04,
    ];
    [&prefix[..], &part("x"), &part("y")].concat()
}

impl Calls for Program {
    const NAME: &'static str = "v1.ExternalJWTSigner";

    fn call(&self, method: &str, message: &[u8]) -> Result<Vec<u8>, Status> {
        let mut state = self.0.lock();
        match method {
            "Sign" => answer(message, |request| state.sign(&request)),
            "FetchKeys" => answer(message, |FetchKeysRequest {}| Ok(state.fetch_keys())),
            _ => answer(message, |MetadataRequest {}| {
                Ok(MetadataResponse {
                    max_token_expiration_seconds: state.max_seconds,
                })
            }),
        }
    }
}

impl State {
    fn sign(&self, request: &SignJwtRequest) -> Result<SignJwtResponse, Status> {
        let name = self.signs_with;
        let Some((keys, _)) = self.keys.get(name) else {
            return Err(Status::failed_precondition("no key"));
        };
        let header = json!({"alg": "ES256", "typ": "JWT", "kid": name}).to_string();
        let header = URL_SAFE_NO_PAD.encode(header);
        let message = format!("{header}.{}", request.claims);
        let key = EncodingKey::from_ec_pem(keys.private_pem().as_bytes()).unwrap();
        let signature =
            jsonwebtoken::crypto::sign(message.as_bytes(), &key, Algorithm::ES256).unwrap();
        Ok(SignJwtResponse { header, signature })
    }

    fn fetch_keys(&mut self) -> FetchKeysResponse {
        self.fetched += 1;
        let keys = self.keys.iter().map(|(name, (key, shown))| Key {
            key_id: (*name).to_owned(),
            key: spki(key),
            exclude_from_oidc_discovery: !shown,
        });
        FetchKeysResponse {
            keys: keys.collect(),
            data_timestamp: Some(Timestamp {
                seconds: 1_700_000_000,
                nanos: 0,
            }),
            refresh_hint_seconds: 600,
        }
    }
}

const ACCOUNTS: &str = "/api/v1/namespaces/default/serviceaccounts";

/// Requests a token of an account.
async fn token(cluster: &Cluster, seconds: i64) -> (u16, Value) {
    let spec = json!({"expirationSeconds": seconds});
    let request =
        json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec});
    let path = format!("{ACCOUNTS}/a/token");
    cluster.json(Method::POST, &path, &request).await
}

/// Whether a token makes its sender somebody.
async fn is_good(cluster: &Cluster, token: &str) -> bool {
    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}});
    let path = "/apis/authentication.k8s.io/v1/tokenreviews";
    let (status, answer) = cluster.json(Method::POST, path, &review).await;
    assert_eq!(status, 201, "{answer}");
    answer["status"]["authenticated"] == true
}

fn start(directory: &Path, socket: &Path, flags: &[&str]) -> Cluster {
    let endpoint = format!("--service-account-signing-endpoint={}", socket.display());
    Cluster::start_bare(directory, &[&[endpoint.as_str()], flags].concat())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_signs_tokens() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("signer.sock");
    let cluster = start(directory.path(), &socket, &[]);
    // It may come later than the server.
    let program = Program::new();
    serve_on_socket(program.clone(), &socket);
    cluster.ready().await;
    let account = json!({"metadata": {"name": "a"}});
    assert_eq!(cluster.json(Method::POST, ACCOUNTS, &account).await.0, 201);
    let (status, made) = token(&cluster, 3600).await;
    assert_eq!(status, 201, "{made}");
    let first = made["status"]["token"].as_str().unwrap().to_owned();
    assert!(is_good(&cluster, &first).await);
    let (head, signature) = first.rsplit_once('.').unwrap();
    let forged = format!("{head}.{}", signature.chars().rev().collect::<String>());
    assert!(!is_good(&cluster, &forged).await);
    // No token lives longer than the program lets it.
    let (_, made) = token(&cluster, 10_000).await;
    assert_eq!(made["spec"]["expirationSeconds"], 7200);

    // It begins to sign with a key that the server has not heard of.
    program
        .0
        .lock()
        .keys
        .insert("second", (TokenKeys::create().unwrap(), true));
    program.0.lock().signs_with = "second";
    let (_, made) = token(&cluster, 3600).await;
    let second = made["status"]["token"].as_str().unwrap().to_owned();
    assert!(is_good(&cluster, &second).await && is_good(&cluster, &first).await);
    let (_, headers, keys) = (cluster
        .send(Method::GET, "/openid/v1/jwks", &Value::Null)
        .await)
        .unwrap();
    let keys: Value = serde_json::from_str(&keys).unwrap();
    let names: Vec<&str> = (keys["keys"].as_array().unwrap().iter())
        .map(|key| key["kid"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["first", "second"]);
    let age = headers["cache-control"].to_str().unwrap();
    let age = age.strip_prefix("public, max-age=").unwrap();
    assert!((1..=600).contains(&age.parse::<u32>().unwrap()), "{age}");

    // Keys that nobody is told of are for tokens of before.
    let hidden = (TokenKeys::create().unwrap(), false);
    program.0.lock().keys.insert("third", hidden);
    program.0.lock().signs_with = "third";
    let (status, refused) = token(&cluster, 3600).await;
    assert_eq!(status, 500);
    let message = refused["message"].as_str().unwrap();
    let why = "key used for signing JWT (kid: third) is excluded from OIDC discovery docs";
    assert!(message.ends_with(why), "{message}");
    let (_, keys) = cluster.get("/openid/v1/jwks").await;
    assert!(!keys.contains("third"));
    program.0.lock().signs_with = "none";
    let (_, refused) = token(&cluster, 3600).await;
    let message = refused["message"].as_str().unwrap();
    assert!(message.contains("no key"), "{message}");
    let counted = async || {
        let (_, metrics) = cluster.get("/metrics").await;
        [
            "apiserver_externaljwt_sign_request_total{code=\"OK\"} 3\n",
            "apiserver_externaljwt_sign_request_total{code=\"unknown-non-grpc\"} 1\n",
            "apiserver_externaljwt_sign_request_total{code=\"FailedPrecondition\"} 1\n",
            "apiserver_externaljwt_fetch_keys_request_total{code=\"OK\"} 3\n",
            "apiserver_externaljwt_fetch_keys_data_timestamp 1700000000\n",
            "apiserver_externaljwt_request_duration_seconds_count{code=\"OK\",method=\"/v1.ExternalJWTSigner/Metadata\"} 1\n",
        ]
        .iter()
        .all(|line| metrics.contains(line))
    };
    assert!(
        eventually(counted).await,
        "{}",
        cluster.get("/metrics").await.1
    );
    assert_eq!(program.0.lock().fetched, 3);
    cluster.process.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_says_how_long_tokens_may_live() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("signer.sock");
    let program = Program::new();
    serve_on_socket(program.clone(), &socket);
    let longer = ["--service-account-max-token-expiration=3h"];
    let cluster = start(directory.path(), &socket, &longer);
    let error = cluster.process.ended.await.unwrap().unwrap_err();
    assert_eq!(
        error.to_string(),
        "service-account-max-token-expiration cannot be set longer than the token expiration supported by service-account-signing-endpoint: 3h0m0s > 2h0m0s"
    );
    program.0.lock().max_seconds = 599;
    let cluster = start(directory.path(), &socket, &[]);
    let error = cluster.process.ended.await.unwrap().unwrap_err();
    assert_eq!(
        error.to_string(),
        "max token life supported by external-jwt-signer (599s) is less than acceptable (min 600s)"
    );
    let cluster = start(directory.path(), Path::new("@a..b"), &[]);
    let error = cluster.process.ended.await.unwrap().unwrap_err();
    assert_eq!(
        error.to_string(),
        "invalid value \"@a..b\" passed for `--service-account-signing-endpoint`, when prefixed with @ must be a valid abstract socket name"
    );
}
