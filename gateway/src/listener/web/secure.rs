//! MQTT over WebSocket on a TLS listener: `/mqtt` and nothing else.
//!
//! Nobody is asked for a password here: the client shows who it is in CONNECT, or has done so by its certificate.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Instant;

use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::{State, WebSocketUpgrade};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use axum::routing::get;
use axum::{Extension, Router, middleware};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{call, guard, upgrade_to_mqtt};
use crate::gateway::Gateway;

/// Who came over TLS, and when.
#[derive(Clone)]
pub struct Arrival {
    /// The client.
    pub peer: mqtt::Peer,
    /// From when on its time to CONNECT counts.
    pub accepted: Instant,
}

/// Answers one request; one that upgrades to a WebSocket goes to the broker.
///
/// # Errors
/// It is no HTTP, or ended before it was one.
pub async fn upgrade<S>(stream: S, arrival: Arrival, gateway: Arc<Gateway>) -> hyper::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let router = Router::new()
        .route("/mqtt", get(mqtt))
        .layer(middleware::from_fn(guard::check_origin))
        .layer(Extension(arrival))
        .with_state(gateway);
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let router = router.clone();
        async move {
            let mut response = call(router, request.map(axum::body::Body::new)).await;
            // One request is all there is. Said here, because hyper would say it in an upgrade as well, and a client that
            // looks for `Connection: upgrade` alone, as all that are built on tungstenite do, goes away.
            if response.status() != StatusCode::SWITCHING_PROTOCOLS {
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(response)
        }
    });
    http1::Builder::new()
        .max_headers(64)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await
}

async fn mqtt(
    State(gateway): State<Arc<Gateway>>,
    Extension(Arrival { peer, accepted }): Extension<Arrival>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Response {
    upgrade_to_mqtt(upgrade, &gateway, peer, accepted)
}

/// A request's line and headers, in bytes.
const MAX_HEAD: usize = 16 << 10;
