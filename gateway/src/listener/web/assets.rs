//! The page's files, carried in the binary.

use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse as _, Response};

/// One file of the page.
pub struct Asset {
    path: &'static str,
    mime: &'static str,
    etag: &'static str,
    content: &'static [u8],
}

/// Answers with a file, `/` with the page itself.
pub async fn serve(method: Method, uri: Uri, headers: HeaderMap) -> Response {
    if method != Method::GET && method != Method::HEAD {
        return (StatusCode::METHOD_NOT_ALLOWED, "GET only\n").into_response();
    }
    let path = match uri.path().trim_start_matches('/') {
        "" => "index.html",
        path => path,
    };
    let Some(asset) = ASSETS.iter().find(|asset| asset.path == path) else {
        return (StatusCode::NOT_FOUND, "no such page; the dashboard is at /\n").into_response();
    };
    // Vendored files carry their version in the path; ours are asked for again with their tag.
    let caching =
        if path.starts_with("vendor/") { "public, max-age=31536000, immutable" } else { "no-cache" };
    let headers_out =
        [(header::ETAG, asset.etag), (header::CACHE_CONTROL, caching), (header::CONTENT_TYPE, asset.mime)];
    let is_known =
        headers.get(header::IF_NONE_MATCH).is_some_and(|tag| tag.as_bytes() == asset.etag.as_bytes());
    if is_known {
        return (StatusCode::NOT_MODIFIED, headers_out).into_response();
    }
    (headers_out, asset.content).into_response()
}

static ASSETS: &[Asset] = &include!(concat!(env!("OUT_DIR"), "/assets.rs"));
