//! `--service-account-signing-endpoint`: a program that keeps the keys of service-account tokens and signs with them, over
//! the protocol of `k8s.io/externaljwt` v1 (KEP-740).

mod messages;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use fluyt_pki::{Claims, PublicKey, VerifyingKeys};
use parking_lot::{Mutex, RwLock};
use serde::Deserialize;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::metrics::{Histogram, Text};
use crate::plugin;
use messages::{
    FetchKeysRequest, FetchKeysResponse, MetadataRequest, MetadataResponse, SignJwtRequest,
    SignJwtResponse,
};

const SIGN: &str = "/v1.ExternalJWTSigner/Sign";
const FETCH_KEYS: &str = "/v1.ExternalJWTSigner/FetchKeys";
const METADATA: &str = "/v1.ExternalJWTSigner/Metadata";

/// How long the keys may take to come.
const SYNC: Duration = Duration::from_secs(60);

/// How long the signer may take to say what it can.
const ASK: Duration = Duration::from_secs(10);

/// When keys are asked for again that did not come.
const AGAIN: Duration = Duration::from_secs(10);

/// The pause before a signer is tried again that is not there.
const RETRY: Duration = Duration::from_millis(100);

/// No name of a key is longer.
const LONGEST: usize = 1024;

/// Shortest life of a token that a signer must be able to give, in seconds.
const LEAST: i64 = 600;

/// Algorithms that a signature may be of.
const ALGORITHMS: [&str; 4] = ["RS256", "ES256", "ES384", "ES512"];

/// Upper bounds of the time that calls take, in seconds.
const CALLS: &[f64] = &[
    0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
];

/// What keeps the keys.
pub struct Signer {
    channel: Channel,
    known: RwLock<Known>,
    /// One question for keys at a time.
    syncing: tokio::sync::Mutex<()>,
    counts: Mutex<Counts>,
    /// The longest life that it gives to a token.
    max_expiration: Duration,
}

/// The keys as they were last told.
struct Known {
    keys: Arc<VerifyingKeys>,
    /// When they should be asked for again.
    next: Instant,
}

/// What has been asked, by how it was answered.
#[derive(Default)]
struct Counts {
    fetched: BTreeMap<&'static str, u64>,
    signed: BTreeMap<&'static str, u64>,
    took: BTreeMap<(&'static str, &'static str), Histogram>,
    /// When keys last came, and of when they said to be, in seconds since the epoch.
    last_fetch: Option<f64>,
    data_of: Option<f64>,
}

/// Why a call was of no use.
enum Failure {
    /// It was not answered.
    Call(Status),
    /// The answer is not what it should be.
    Answer(String),
}

/// The header of a token, which has nothing else in it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    #[serde(default)]
    alg: String,
    #[serde(default)]
    kid: String,
    #[serde(default)]
    typ: String,
}

// === impl Signer ===

impl Signer {
    /// Asks a signer for its keys and for what it can, and follows its keys until shutdown.
    ///
    /// # Errors
    /// When it does not say, or its tokens live too short.
    pub async fn connect(path: String, shutdown: CancellationToken) -> anyhow::Result<Arc<Self>> {
        let mut signer = Self {
            channel: plugin::channel(path),
            known: RwLock::new(Known {
                keys: Arc::default(),
                next: Instant::now(),
            }),
            syncing: tokio::sync::Mutex::default(),
            counts: Mutex::default(),
            max_expiration: Duration::ZERO,
        };
        let failed = |what: &str, failure: Failure| {
            anyhow!(
                "while setting up external-jwt-signer: {what}{}",
                failure.text()
            )
        };
        let filling = signer.sync().await;
        filling.map_err(|failure| {
            failed(
                "while initially filling key cache: while performing initial cache fill: ",
                failure,
            )
        })?;
        let asked = signer.call(METADATA, MetadataRequest {}, ASK).await;
        let metadata: MetadataResponse =
            asked.map_err(|status| failed("", Failure::Call(status)))?;
        let seconds = metadata.max_token_expiration_seconds;
        ensure!(
            seconds >= LEAST,
            "max token life supported by external-jwt-signer ({seconds}s) is less than acceptable (min {LEAST}s)"
        );
        signer.max_expiration =
            Duration::from_secs(u64::try_from(seconds).context("max token life")?);
        let signer = Arc::new(signer);
        tokio::spawn(signer.clone().follow(shutdown));
        Ok(signer)
    }

    /// The longest life that it gives to a token.
    #[must_use]
    pub fn max_expiration(&self) -> Duration {
        self.max_expiration
    }

    /// Has a token signed.
    ///
    /// # Errors
    /// When it is not, or with a key that nobody is told of.
    pub(super) async fn sign(&self, claims: &Claims) -> Result<String, String> {
        let signed = self.signed(claims).await;
        let code = match &signed {
            Ok(_) => "OK",
            Err(failure) => failure.code(),
        };
        *self.counts.lock().signed.entry(code).or_default() += 1;
        signed.map_err(|failure| format!("failed to generate token: {}", failure.text()))
    }

    async fn signed(&self, claims: &Claims) -> Result<String, Failure> {
        let payload =
            serde_json::to_vec(claims).map_err(Failure::answer("while merging claims"))?;
        let payload = URL_SAFE_NO_PAD.encode(payload);
        let request = SignJwtRequest {
            claims: payload.clone(),
        };
        let answer: Result<SignJwtResponse, Status> = self.call(SIGN, request, SYNC).await;
        let answer = answer.map_err(|status| {
            let message = format!("while signing jwt: {}", status.message());
            Failure::Call(Status::new(status.code(), message))
        })?;
        let checked = self.check(&answer.header).await;
        checked.map_err(Failure::answer("while validating header"))?;
        if answer.signature.is_empty() {
            return Err(Failure::Answer("empty signature returned".into()));
        }
        Ok(format!("{}.{payload}.{}", answer.header, answer.signature))
    }

    /// What the header of a signed token must be like.
    async fn check(&self, header: &str) -> Result<(), String> {
        let json = URL_SAFE_NO_PAD.decode(header);
        let json = json.map_err(|error| format!("while unwrapping header: {error}"))?;
        let header: Header = serde_json::from_slice(&json)
            .map_err(|error| format!("while parsing header JSON: {error}"))?;
        if header.typ != "JWT" {
            return Err("bad type".into());
        }
        if header.kid.is_empty() {
            return Err("key id missing".into());
        }
        if header.kid.len() > LONGEST {
            return Err("key id longer than 1 kb".into());
        }
        if !ALGORITHMS.contains(&header.alg.as_str()) {
            return Err(format!("bad signing algorithm {:?}", header.alg));
        }
        // Such keys are there for tokens that were signed before.
        if !self.knowing(&header.kid).await.shows(&header.kid) {
            return Err(format!(
                "key used for signing JWT (kid: {}) is excluded from OIDC discovery docs",
                header.kid
            ));
        }
        Ok(())
    }

    pub(super) fn keys(&self) -> Arc<VerifyingKeys> {
        self.known.read().keys.clone()
    }

    /// The keys for a token, asked for again if it names one that is not known.
    pub(super) async fn keys_for(&self, token: &str) -> Arc<VerifyingKeys> {
        match fluyt_pki::key_id(token) {
            Ok(Some(key_id)) => self.knowing(&key_id).await,
            _ => self.keys(),
        }
    }

    async fn knowing(&self, key_id: &str) -> Arc<VerifyingKeys> {
        let keys = self.keys();
        if keys.knows(key_id) {
            return keys;
        }
        if let Err(failure) = self.sync().await {
            tracing::warn!(error = failure.text(), "Error while syncing keys");
        }
        self.keys()
    }

    /// How many seconds the keys are good for.
    pub(super) fn max_age(&self) -> u64 {
        let next = self.known.read().next;
        next.saturating_duration_since(Instant::now()).as_secs()
    }

    /// Asks for the keys whenever the signer has said that they may have changed.
    async fn follow(self: Arc<Self>, shutdown: CancellationToken) {
        let mut next = self.known.read().next;
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(next.into()) => {}
                () = shutdown.cancelled() => return,
            }
            next = match self.sync().await {
                Ok(()) => self.known.read().next,
                Err(failure) => {
                    let error = failure.text();
                    tracing::error!(
                        error,
                        "when syncing supported public keys(Stale set of keys will be supported)"
                    );
                    Instant::now() + AGAIN
                }
            };
        }
    }

    /// Takes over the keys that there are now. Who comes while others wait for them gets the same answer.
    async fn sync(&self) -> Result<(), Failure> {
        let Ok(_asking) = self.syncing.try_lock() else {
            drop(self.syncing.lock().await);
            return Ok(());
        };
        let fetched = self.fetch().await;
        let code = match &fetched {
            Ok(_) => "OK",
            Err(failure) => failure.code(),
        };
        let mut counts = self.counts.lock();
        *counts.fetched.entry(code).or_default() += 1;
        let (known, data_of) = fetched?;
        counts.last_fetch = Some(now());
        counts.data_of = Some(data_of);
        *self.known.write() = known;
        Ok(())
    }

    async fn fetch(&self) -> Result<(Known, f64), Failure> {
        let asked = self.call(FETCH_KEYS, FetchKeysRequest {}, SYNC).await;
        let answer: FetchKeysResponse = asked.map_err(|status| {
            let message = format!(
                "while fetching token verification keys: while getting externally supported jwt signing keys: {}",
                status.message()
            );
            Failure::Call(Status::new(status.code(), message))
        })?;
        let taken = take_over(answer);
        taken.map_err(Failure::answer("while fetching token verification keys"))
    }

    /// Calls a method, and waits for a signer that is not there.
    async fn call<Q, A>(
        &self,
        method: &'static str,
        message: Q,
        patience: Duration,
    ) -> Result<A, Status>
    where
        Q: prost::Message + Clone + Send + Sync + 'static,
        A: prost::Message + Default + Send + Sync + 'static,
    {
        let began = Instant::now();
        let answered = async {
            loop {
                match plugin::call(&self.channel, method, message.clone()).await {
                    Err(status) if is_unconnected(&status) => tokio::time::sleep(RETRY).await,
                    answered => return answered,
                }
            }
        };
        let answered = tokio::time::timeout(patience, answered).await;
        let answered = answered
            .unwrap_or_else(|_| Err(Status::deadline_exceeded("context deadline exceeded")));
        let code = answered.as_ref().map_or_else(|s| word(s.code()), |_| "OK");
        let mut counts = self.counts.lock();
        let took = counts.took.entry((method, code));
        let took = took.or_insert_with(|| Histogram::new(CALLS));
        took.observe_time(began.elapsed());
        answered
    }

    /// The Prometheus text format.
    pub(super) fn render_metrics(&self) -> String {
        let counts = self.counts.lock();
        let mut text = Text::default();
        for (what, help, value) in [
            (
                "fetch_keys_success_timestamp",
                "Unix Timestamp in seconds of the last successful FetchKeys request",
                counts.last_fetch,
            ),
            (
                "fetch_keys_data_timestamp",
                "Unix Timestamp in seconds of the last successful FetchKeys data_timestamp value returned by the external signer",
                counts.data_of,
            ),
        ] {
            let name = format!("apiserver_externaljwt_{what}");
            text.metric(&name, "gauge", help);
            if let Some(value) = value {
                text.value(&name, &[], value);
            }
        }
        for (what, help, by_code) in [
            (
                "fetch_keys_request_total",
                "Total attempts at syncing supported JWKs",
                &counts.fetched,
            ),
            (
                "sign_request_total",
                "Total attempts at signing JWT",
                &counts.signed,
            ),
        ] {
            let name = format!("apiserver_externaljwt_{what}");
            text.metric(&name, "counter", help);
            for (code, count) in by_code {
                text.value(&name, &[("code", code)], count);
            }
        }
        let name = "apiserver_externaljwt_request_duration_seconds";
        text.metric(
            name,
            "histogram",
            "Request duration and time for calls to external-jwt-signer",
        );
        for ((method, code), took) in &counts.took {
            text.histogram(name, &[("code", code), ("method", method)], took);
        }
        text.finish()
    }
}

/// Whether the signer was not there, so that it has not been asked.
fn is_unconnected(status: &Status) -> bool {
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

/// The keys of an answer, and the moment they are of.
fn take_over(answer: FetchKeysResponse) -> Result<(Known, f64), String> {
    let hint = answer.refresh_hint_seconds;
    let seconds = u64::try_from(hint).ok().filter(|seconds| *seconds > 0);
    let seconds = seconds.ok_or_else(|| format!("found invalid refresh hint ({hint}s)"))?;
    if answer.keys.is_empty() {
        return Err("found no keys".into());
    }
    let data = answer.data_timestamp;
    let data = data.ok_or("invalid data timestamp: proto: invalid nil Timestamp")?;
    let mut keys = Vec::with_capacity(answer.keys.len());
    for told in answer.keys {
        if told.key_id.is_empty() || told.key_id.len() > LONGEST {
            return Err(format!("found invalid public key id {:?}", told.key_id));
        }
        if told.key.is_empty() {
            return Err("found empty public key".into());
        }
        let key = PublicKey::from_spki(&told.key)
            .map_err(|error| format!("while parsing external public keys: {error}"))?;
        keys.push(PublicKey {
            hidden: told.exclude_from_oidc_discovery,
            ..key.named(&told.key_id)
        });
    }
    let known = Known {
        keys: Arc::new(VerifyingKeys::new(keys)),
        next: Instant::now() + Duration::from_secs(seconds),
    };
    #[allow(clippy::cast_precision_loss)]
    let data_of = data.seconds as f64 + f64::from(data.nanos) / 1e9;
    Ok((known, data_of))
}

fn now() -> f64 {
    #[allow(clippy::cast_precision_loss)]
    let micros = jiff::Timestamp::now().as_microsecond() as f64;
    micros / 1e6
}

// === impl Failure ===

impl Failure {
    fn answer<E: std::fmt::Display>(during: &str) -> impl Fn(E) -> Self {
        move |error| Self::Answer(format!("{during}: {error}"))
    }

    fn text(&self) -> String {
        match self {
            Self::Call(status) => format!(
                "rpc error: code = {} desc = {}",
                word(status.code()),
                status.message()
            ),
            Self::Answer(why) => why.clone(),
        }
    }

    /// As metrics name it.
    fn code(&self) -> &'static str {
        match self {
            Self::Call(status) => word(status.code()),
            Self::Answer(_) => "unknown-non-grpc",
        }
    }
}

/// A code as Go's gRPC names it.
fn word(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "Canceled",
        Code::Unknown => "Unknown",
        Code::InvalidArgument => "InvalidArgument",
        Code::DeadlineExceeded => "DeadlineExceeded",
        Code::NotFound => "NotFound",
        Code::AlreadyExists => "AlreadyExists",
        Code::PermissionDenied => "PermissionDenied",
        Code::ResourceExhausted => "ResourceExhausted",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::Aborted => "Aborted",
        Code::OutOfRange => "OutOfRange",
        Code::Unimplemented => "Unimplemented",
        Code::Internal => "Internal",
        Code::Unavailable => "Unavailable",
        Code::DataLoss => "DataLoss",
        Code::Unauthenticated => "Unauthenticated",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use messages::{Key, Timestamp};

    fn answer(keys: Vec<Key>, hint: i64) -> FetchKeysResponse {
        FetchKeysResponse {
            keys,
            data_timestamp: Some(Timestamp {
                seconds: 7,
                nanos: 500_000_000,
            }),
            refresh_hint_seconds: hint,
        }
    }

    fn key(key_id: &str, der: &[u8]) -> Key {
        Key {
            key_id: key_id.into(),
            key: der.to_vec(),
            exclude_from_oidc_discovery: false,
        }
    }

    #[test]
    fn nonsense_is_not_taken_for_keys() {
        let why = |answer| take_over(answer).err().unwrap();
        let one = || vec![key("a", b"x")];
        assert_eq!(why(answer(one(), 0)), "found invalid refresh hint (0s)");
        assert_eq!(why(answer(vec![], 1)), "found no keys");
        assert_eq!(
            why(answer(vec![key("", b"x")], 1)),
            "found invalid public key id \"\""
        );
        assert_eq!(
            why(answer(vec![key("a", b"")], 1)),
            "found empty public key"
        );
        let parsing = "while parsing external public keys: ";
        assert!(why(answer(one(), 1)).starts_with(parsing));
        let undated = FetchKeysResponse {
            data_timestamp: None,
            ..answer(one(), 1)
        };
        assert!(why(undated).starts_with("invalid data timestamp: "));
    }
}
