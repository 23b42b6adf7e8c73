//! What every request has to pass, whatever its route, and the headers that every answer carries.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::Door;
use crate::gateway::Gateway;

/// Who has asked, where a name and a password came with the request.
#[derive(Debug, Clone)]
pub struct Login(pub Arc<str>);

/// Lets a request through or answers it.
pub async fn check(State(gateway): State<Arc<Gateway>>, mut request: Request, next: Next) -> Response {
    let door = request.extensions().get::<Door>().copied();
    let refusal = match door {
        Some(Door::Control) => None,
        Some(Door::Tcp(peer)) => {
            let config = gateway.config();
            let headers = request.headers();
            if !is_host_ours(headers, &config.http.names, &config.gateway.name) {
                let text = "this name is not one of this gateway's: add it to http.names\n";
                Some((StatusCode::MISDIRECTED_REQUEST, text).into_response())
            } else if !is_origin_ours(headers, request.method()) {
                Some((StatusCode::FORBIDDEN, "asked for by a page of another origin\n").into_response())
            } else if let Some(name) = login(&gateway, basic(headers)).await {
                request.extensions_mut().insert(Login(name));
                None
            } else if !peer.ip().to_canonical().is_loopback() {
                let challenge = [(header::WWW_AUTHENTICATE, "Basic realm=\"tidegate\", charset=\"UTF-8\"")];
                Some(
                    (StatusCode::UNAUTHORIZED, challenge, "a user and password of this gateway, please\n")
                        .into_response(),
                )
            } else {
                None
            }
        }
        None => Some(StatusCode::FORBIDDEN.into_response()),
    };
    let mut response = match refusal {
        Some(refusal) => refusal,
        // A body that never comes must not hold a place for ever; answers that go on for long are to GET.
        None if request.method() == Method::POST => tokio::time::timeout(POST_TIMEOUT, next.run(request))
            .await
            .unwrap_or_else(|_| (StatusCode::REQUEST_TIMEOUT, "the request took too long\n").into_response()),
        None => next.run(request).await,
    };
    for (name, value) in HEADERS {
        response.headers_mut().insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    response
}

/// The name and password that came, if they belong together. Aside: one that is kept as a hash takes a while.
async fn login(gateway: &Arc<Gateway>, credentials: Option<(String, Vec<u8>)>) -> Option<Arc<str>> {
    let (name, password) = credentials?;
    let users = gateway.users.clone();
    let is_right =
        tokio::task::spawn_blocking(move || users.is_password(&name, &password).then(|| name.into()));
    is_right.await.ok().flatten()
}

/// Lets a request over TLS through, unless a page of another origin asks. Its host need not be looked at: a name that was
/// made to point here is not in our certificate, and the client shows who it is later.
pub async fn check_origin(request: Request, next: Next) -> Response {
    if is_origin_ours(request.headers(), request.method()) {
        next.run(request).await
    } else {
        (StatusCode::FORBIDDEN, "asked for by a page of another origin\n").into_response()
    }
}

/// Addresses, `localhost`, the gateway's and the configured names: a foreign name that was made to point here is not.
fn is_host_ours(headers: &HeaderMap, names: &[String], gateway: &str) -> bool {
    let Some(host) = headers.get(header::HOST).and_then(|host| host.to_str().ok()) else { return false };
    let Ok(authority) = host.parse::<Authority>() else { return false };
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    host.parse::<std::net::IpAddr>().is_ok()
        || host.eq_ignore_ascii_case("localhost")
        || host.eq_ignore_ascii_case(gateway)
        || host.to_ascii_lowercase().strip_suffix(".local") == Some(gateway)
        || names.iter().any(|name| name.eq_ignore_ascii_case(host))
}

/// A browser says which page asks: on a WebSocket upgrade and on everything that changes something it has to be ours.
fn is_origin_ours(headers: &HeaderMap, method: &Method) -> bool {
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    if method == Method::GET && !headers.contains_key(header::UPGRADE) {
        return true;
    }
    match (text(header::ORIGIN), text(header::HOST)) {
        (None, _) => !headers.contains_key(header::ORIGIN),
        (Some(origin), Some(host)) => {
            origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://")) == Some(host)
        }
        (Some(_), None) => false,
    }
}

/// Name and password of RFC 7617.
fn basic(headers: &HeaderMap) -> Option<(String, Vec<u8>)> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, encoded) = value.split_once(' ')?;
    let decoded = scheme.eq_ignore_ascii_case("basic").then(|| STANDARD.decode(encoded.trim()).ok())??;
    let colon = decoded.iter().position(|byte| *byte == b':')?;
    Some((String::from_utf8(decoded[..colon].to_vec()).ok()?, decoded[colon + 1..].to_vec()))
}

const POST_TIMEOUT: Duration = Duration::from_secs(30);
/// Nothing from elsewhere, nothing in frames, nothing guessed.
const HEADERS: [(&str, &str); 5] = [
    (
        "content-security-policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; \
         base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    ),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-resource-policy", "same-origin"),
    ("x-frame-options", "DENY"),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(k, v)| (HeaderName::from_static(k), HeaderValue::from_static(v))).collect()
    }

    #[test]
    fn only_names_of_ours_are_answered() {
        let ours = |host| is_host_ours(&headers(&[("host", host)]), &["pi.lan".into()], "barn");
        assert!(
            ["127.0.0.1:8080", "localhost", "[::1]:8080", "barn.local:8080", "barn", "PI.lan"]
                .iter()
                .all(|h| ours(h))
        );
        assert!(!["evil.example", "barn.local.evil.example", ""].iter().any(|h| ours(h)));
        assert!(!is_host_ours(&headers(&[]), &[], "barn"));
    }

    #[test]
    fn a_page_of_another_origin_may_neither_command_nor_open_a_websocket() {
        let own =
            [("host", "barn.local:8080"), ("origin", "http://barn.local:8080"), ("upgrade", "websocket")];
        assert!(is_origin_ours(&headers(&own), &Method::GET));
        let foreign =
            [("host", "barn.local:8080"), ("origin", "http://evil.example"), ("upgrade", "websocket")];
        assert!(!is_origin_ours(&headers(&foreign), &Method::GET));
        assert!(!is_origin_ours(&headers(&foreign[..2]), &Method::POST));
        assert!(
            is_origin_ours(&headers(&foreign[..2]), &Method::GET),
            "reading is what the same-origin policy guards"
        );
        assert!(is_origin_ours(&headers(&[("host", "barn")]), &Method::POST), "no browser, no origin");
    }

    #[test]
    fn basic_credentials_are_read_up_to_the_first_colon() {
        let read = basic(&headers(&[("authorization", "Basic cGFuZWw6YTpi")]));
        assert_eq!(read, Some(("panel".into(), b"a:b".to_vec())));
        for bad in ["Basic", "Basic !!!", "Bearer cGFuZWw6YTpi", "Basic cGFuZWw="] {
            assert_eq!(basic(&headers(&[("authorization", bad)])), None);
        }
    }
}
