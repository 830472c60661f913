//! Cross-origin requests, and the promise of TLS.

use fluyt_apiserver::Browsers;
use http::Method;

use crate::flags::client::{Listening, request};
use crate::flags::{given, refused_or};

#[tokio::test]
async fn pages_of_allowed_origins_may_use_the_api() {
    let flags = [r"--cors-allowed-origins=//good\.example(:|$),^http://x$"];
    let listening = Listening::start(|config, _| config.browsers = given(&flags)).await;
    let send = async |method: Method, origin: &str| {
        let request = request(method, "/version", &[("origin", origin)]);
        let answer = listening.client.send(listening.address, request).await;
        answer.unwrap()
    };
    let (status, headers, _) = send(Method::GET, "https://good.example:8443").await;
    assert_eq!(status, 200);
    for (name, value) in [
        ("access-control-allow-origin", "https://good.example:8443"),
        (
            "access-control-allow-methods",
            "POST, GET, OPTIONS, PUT, DELETE, PATCH",
        ),
        ("access-control-expose-headers", "Date"),
        ("access-control-allow-credentials", "true"),
    ] {
        assert_eq!(headers[name], value);
    }
    assert!(
        headers["access-control-allow-headers"]
            .to_str()
            .unwrap()
            .contains("X-CSRF-Token")
    );
    // Browsers ask without credentials.
    let (status, headers, _) = send(Method::OPTIONS, "http://x").await;
    assert_eq!(status, 204);
    assert_eq!(headers["access-control-allow-origin"], "http://x");
    let (status, headers, _) = send(Method::GET, "https://good.example.evil").await;
    assert_eq!(status, 200);
    assert!(!headers.contains_key("access-control-allow-origin"));
    let (status, _, _) = send(Method::OPTIONS, "https://evil").await;
    assert_ne!(status, 204);

    let error = refused_or::<Browsers>(&["--cors-allowed-origins=evil"]).unwrap_err();
    assert!(
        error.contains("regular expression does not pin to start/end of host in the origin header"),
        "{error}"
    );
}

#[tokio::test]
async fn browsers_are_told_to_come_by_tls() {
    let flags = ["--strict-transport-security-directives=max-age=31536000,includeSubDomains"];
    let listening = Listening::start(|config, _| config.browsers = given(&flags)).await;
    for path in ["/version", "/nowhere"] {
        let (_, headers, _) = listening.get(path).await;
        let told = &headers["strict-transport-security"];
        assert_eq!(told, "max-age=31536000; includeSubDomains");
    }
    let flags = ["--strict-transport-security-directives=preload,now"];
    let error = refused_or::<Browsers>(&flags).unwrap_err();
    assert!(
        error.contains("--strict-transport-security-directives invalid, allowed values: max-age=expireTime, includeSubDomains, preload."),
        "{error}"
    );
}
