//! TLS: certificates for names, protocols, key exchanges.

use std::path::Path;

use fluyt_apiserver::listen::TlsSettings;
use fluyt_pki::{Authority, Identity, Usage};

use crate::common::service::eventually;
use crate::flags::client::Listening;
use crate::flags::{given, refused_or};

/// Writes a certificate and its key.
fn issue(authority: &Authority, directory: &Path, file: &str, common_name: &str, names: &[&str]) {
    let (addresses, dns_names): (Vec<&str>, Vec<&str>) = names
        .iter()
        .copied()
        .partition(|name| name.parse::<std::net::IpAddr>().is_ok());
    let identity = Identity {
        common_name: common_name.into(),
        dns_names: dns_names.iter().map(|n| (*n).to_owned()).collect(),
        addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
        ..Identity::default()
    };
    let issued = authority.issue(&identity, Usage::Server, 1).unwrap();
    std::fs::write(directory.join(format!("{file}.key")), issued.key_pem).unwrap();
    std::fs::write(
        directory.join(format!("{file}.crt")),
        issued.certificate_pem,
    )
    .unwrap();
}

/// The common name of the certificate that a client of a name is shown.
async fn shown(listening: &Listening, name: &str) -> Option<String> {
    let connection = listening.client.connect(listening.address, name).await;
    let connection = connection.ok()?;
    let chain = connection.get_ref().1.peer_certificates().unwrap();
    let (_, certificate) = x509_parser::parse_x509_certificate(&chain[0]).unwrap();
    let name = certificate.subject().iter_common_name().next().unwrap();
    Some(name.as_str().unwrap().to_owned())
}

#[tokio::test]
async fn names_have_their_certificates() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let mut authority = None;
    let listening = Listening::start(|config, ca| {
        issue(
            ca,
            path,
            "own",
            "own.example",
            &["own.example", "*.own.example"],
        );
        issue(ca, path, "given", "given", &["api.example"]);
        issue(ca, path, "address", "address", &["127.0.0.1"]);
        let pair = |name: &str| format!("{0}/{name}.crt,{0}/{name}.key", path.display());
        config.tls = given(&[
            "--tls-sni-cert-key",
            &pair("own"),
            "--tls-sni-cert-key",
            &format!("{}:api.example", pair("given")),
            "--tls-sni-cert-key",
            &format!("{}:127.0.0.1", pair("address")),
        ]);
        authority = Some(Authority::load(ca.certificate_pem(), ca.key_pem()).unwrap());
    })
    .await;
    for (asked, expected) in [
        ("own.example", Some("own.example")),
        ("a.own.example", Some("own.example")),
        ("api.example", Some("given")),
        ("127.0.0.1", Some("address")),
        // The usual one is not for such a name, and nobody believes it.
        ("other.example", None),
    ] {
        assert_eq!(
            shown(&listening, asked).await.as_deref(),
            expected,
            "{asked}"
        );
    }
    // A new certificate is shown once its key is there as well.
    issue(
        &authority.unwrap(),
        path,
        "given",
        "renewed",
        &["api.example"],
    );
    let renewed =
        eventually(async || shown(&listening, "api.example").await.as_deref() == Some("renewed"));
    assert!(renewed.await);
}

#[tokio::test]
async fn http2_is_spoken_unless_it_is_disabled() {
    for (flags, expected) in [(&[][..], "h2"), (&["--disable-http2-serving"], "http/1.1")] {
        let mut listening = Listening::start(|config, _| config.tls = given(flags)).await;
        listening.client.alpn = vec!["h2", "http/1.1"];
        let connection = listening.client.connect(listening.address, "127.0.0.1");
        let connection = connection.await.unwrap();
        let protocol = connection.get_ref().1.alpn_protocol();
        assert_eq!(protocol, Some(expected.as_bytes()), "{flags:?}");
        listening.client.alpn.clear();
        assert_eq!(listening.get("/version").await.0, 200);
    }
}

#[tokio::test]
async fn only_preferred_curves_are_used() {
    const P384: u16 = 24;
    const X25519: u16 = 29;
    let flags = ["--tls-curve-preferences=24"];
    let mut listening = Listening::start(|config, _| config.tls = given(&flags)).await;
    listening.client.groups = vec![X25519];
    let refused = listening.client.connect(listening.address, "127.0.0.1");
    assert!(refused.await.is_err());
    listening.client.groups = vec![X25519, P384];
    assert_eq!(listening.get("/version").await.0, 200);
    let error = refused_or::<TlsSettings>(&["--tls-curve-preferences=0"]).unwrap_err();
    assert!(error.contains("curve preference 0 is out of range (must be 1-65535)"));
}

#[tokio::test]
async fn discovery_names_the_external_host() {
    for (hostname, expected) in [
        ("api.example", "api.example:6443"),
        ("api.example:443", "api.example:443"),
        ("2001:db8::1", "[2001:db8::1]:6443"),
        ("", "192.0.2.1:6443"),
    ] {
        let listening = Listening::start(|config, _| {
            config.external_hostname = Some(hostname.to_owned());
        })
        .await;
        let (_, _, body) = listening.get("/.well-known/openid-configuration").await;
        let uri = format!("\"jwks_uri\":\"https://{expected}/openid/v1/jwks\"");
        assert!(body.contains(&uri), "{body}");
        let (_, _, body) = listening.get("/api").await;
        let address = format!("\"serverAddress\":\"{expected}\"");
        assert!(body.contains(&address), "{body}");
    }
}
