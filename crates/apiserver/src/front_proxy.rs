//! Requests that another API server answers in the name of the user who sent them: that of a group, or a peer. It believes
//! who the user is since this server presents its client certificate.

use ::http::header::UPGRADE;
use ::http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use fluyt_api::Error;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::audit::AuditId;
use crate::handlers::forward;
use crate::http::Body;
use crate::listen::PeerAddress;
use crate::spans::{self, Held};
use crate::user::User;

/// Passes a request on to a host over a connection.
///
/// # Errors
/// When a name cannot be part of a header, or the connection breaks before there is an answer.
pub async fn pass<S>(
    mut request: Request<Body>,
    user: &User,
    host: &str,
    stream: S,
) -> Result<Response<Body>, Error>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    describe(&mut request, user)?;
    let method = request.method().clone();
    let path = request
        .uri()
        .path_and_query()
        .map_or_else(|| "/".to_owned(), ToString::to_string);
    let added = HeaderMap::new();
    // Whoever switches protocols talks to the server itself.
    if request.headers().contains_key(UPGRADE) {
        return forward(request, method, &path, host, added, stream, 0).await;
    }
    let url = format!("https://{host}{path}");
    let passing = spans::call(&method, &url, request.headers_mut());
    let mut response = forward(request, method, &path, host, added, stream, 0)
        .await
        .inspect_err(|error| passing.failed(&error.message))?;
    passing.answered(response.status());
    if let Some(span) = passing.into_span() {
        let is_object = false;
        response.extensions_mut().insert(Held { span, is_object });
    }
    Ok(response)
}

/// Says whose the request is, where it came from, and which one it is.
fn describe(request: &mut Request<Body>, user: &User) -> Result<(), Error> {
    let address = request.extensions().get::<PeerAddress>().map(|peer| peer.0);
    let id = request.extensions().get::<AuditId>();
    let id = id.and_then(|id| HeaderValue::from_str(&id.0).ok());
    let headers = request.headers_mut();
    let said = headers.keys();
    let spoofed = said.filter(|name| name.as_str().starts_with("x-remote-"));
    for name in spoofed.cloned().collect::<Vec<HeaderName>>() {
        headers.remove(name);
    }
    headers.insert("x-remote-user", value(&user.name)?);
    if !user.uid.is_empty() {
        headers.insert("x-remote-uid", value(&user.uid)?);
    }
    for group in &user.groups {
        headers.append("x-remote-group", value(group)?);
    }
    for (key, values) in &user.extra {
        let name = format!("x-remote-extra-{}", escape_key(key));
        let name = HeaderName::try_from(name).map_err(|e| Error::bad_request(e.to_string()))?;
        for text in values {
            headers.append(name.clone(), value(text)?);
        }
    }
    if let Some(address) = address {
        let before = headers.get_all("x-forwarded-for").iter();
        let before = before.filter_map(|v| v.to_str().ok()).map(str::to_owned);
        let way: Vec<String> = before.chain([address.ip().to_string()]).collect();
        headers.insert("x-forwarded-for", value(&way.join(", "))?);
    }
    if let Some(id) = id {
        headers.insert("audit-id", id);
    }
    Ok(())
}

fn value(text: &str) -> Result<HeaderValue, Error> {
    HeaderValue::from_str(text).map_err(|e| Error::bad_request(e.to_string()))
}

/// A key of extra attributes as part of a header's name.
fn escape_key(key: &str) -> String {
    use std::fmt::Write as _;
    key.bytes().fold(String::new(), |mut out, byte| {
        if byte.is_ascii_alphanumeric() || b"!#$&'*+-.^_`|~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(out, "%{byte:02X}");
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::http::full;

    #[test]
    fn the_next_server_hears_of_the_user_and_nobody_else() {
        let mut request = Request::get("/")
            .header("x-remote-user", "admin")
            .header("x-remote-extra-a", "spoofed")
            .header("x-forwarded-for", "192.0.2.1")
            .extension(PeerAddress("192.0.2.2:1".parse().unwrap()))
            .body(full(""))
            .unwrap();
        let user = User {
            extra: BTreeMap::from([("example.com/k".to_owned(), vec!["v".to_owned()])]),
            ..User::new("jane", &["devs"])
        };
        describe(&mut request, &user).unwrap();
        let all = |name: &str| -> Vec<&str> {
            let values = request.headers().get_all(name).iter();
            values.map(|v| v.to_str().unwrap()).collect()
        };
        assert_eq!(all("x-remote-user"), ["jane"]);
        assert_eq!(all("x-remote-group"), ["devs", "system:authenticated"]);
        assert_eq!(all("x-remote-extra-example.com%2Fk"), ["v"]);
        assert!(all("x-remote-extra-a").is_empty() && all("x-remote-uid").is_empty());
        assert_eq!(all("x-forwarded-for"), ["192.0.2.1, 192.0.2.2"]);
    }
}
