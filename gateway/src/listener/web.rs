//! HTTP: the page, its API, MQTT over WebSocket; and the same API for the CLI on a unix socket.
//!
//! Who comes over loopback or the control socket is let in; others need a user's password (RFC 7617 Basic). Against
//! pages of other origins, `Host` has to be a name of ours (DNS rebinding) and `Origin`, where a browser sends one,
//! has to match it.

mod api;
mod assets;
mod guard;
pub mod secure;
mod spool;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::{Request, State, WebSocketUpgrade};
use axum::http::StatusCode;
use axum::middleware;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use log::{debug, warn};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;

use crate::gateway::Gateway;
use crate::listener::websocket::{SUBPROTOCOL, WebSocketStream};

/// Where a request came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// A TCP listener; the peer's address.
    Tcp(SocketAddr),
    /// The control socket: whoever may open the file may do everything.
    Control,
}

/// A connection of a listener.
struct Guest {
    task: AbortHandle,
    /// A whole request has come on it.
    has_asked: Arc<AtomicBool>,
}

/// Serves a TCP listener until `stop`.
pub async fn serve_tcp(listener: TcpListener, gateway: Arc<Gateway>, stop: CancellationToken) {
    let router = router(gateway);
    let mut guests = Vec::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                let _ = stream.set_nodelay(true);
                serve(stream, Door::Tcp(peer), &router, &mut guests, &stop);
            }
            Err(error) => pause(&error).await,
        }
    }
}

/// Serves the control socket until `stop`, then removes it.
pub async fn serve_control(
    listener: UnixListener,
    path: PathBuf,
    gateway: Arc<Gateway>,
    stop: CancellationToken,
) {
    let router = router(gateway);
    let mut guests = Vec::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => serve(stream, Door::Control, &router, &mut guests, &stop),
            Err(error) => pause(&error).await,
        }
    }
    let _ = std::fs::remove_file(path);
}

fn router(gateway: Arc<Gateway>) -> Router {
    Router::new()
        .route("/mqtt", get(mqtt))
        .route("/healthz", get(api::healthz))
        .route("/api/v1/status", get(api::status))
        .route("/api/v1/channels", get(api::channels))
        .route("/api/v1/history", get(api::history))
        .route("/api/v1/export", get(api::export))
        .route("/api/v1/tail", get(api::tail))
        .route("/api/v1/command", post(api::command))
        .route("/api/v1/reload", post(api::reload))
        .merge(spool::routes())
        .fallback(assets::serve)
        .layer(axum::extract::DefaultBodyLimit::max(MAX_BODY))
        .layer(middleware::from_fn_with_state(gateway.clone(), guard::check))
        .with_state(gateway)
}

/// MQTT over WebSocket (MQTT 5.0 §6): the upgraded connection goes to the broker.
async fn mqtt(
    State(gateway): State<Arc<Gateway>>,
    axum::Extension(door): axum::Extension<Door>,
    login: Option<axum::Extension<guard::Login>>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Response {
    let address = match door {
        Door::Tcp(peer) => Some(peer),
        Door::Control => None,
    };
    let user = login.map(|login| login.0.0);
    let peer = mqtt::Peer { user, ..mqtt::Peer::new(address, mqtt::Transport::WebSocket) };
    upgrade_to_mqtt(upgrade, &gateway, peer, Instant::now())
}

fn upgrade_to_mqtt(
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
    gateway: &Gateway,
    peer: mqtt::Peer,
    accepted: Instant,
) -> Response {
    let Ok(upgrade) = upgrade else {
        return (StatusCode::UPGRADE_REQUIRED, "this is MQTT over WebSocket, subprotocol mqtt\n")
            .into_response();
    };
    let broker = gateway.broker.clone();
    let upgrade = upgrade.protocols([SUBPROTOCOL]).max_frame_size(MAX_FRAME).max_message_size(MAX_FRAME);
    upgrade.on_upgrade(async move |socket| {
        broker.attach(WebSocketStream::new(socket), peer, accepted).await;
    })
}

/// Serves one connection in a task of its own. No room: the connection is closed at once.
fn serve<S>(stream: S, door: Door, router: &Router, guests: &mut Vec<Guest>, stop: &CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    if !make_room(guests) {
        debug!("more than {MAX_CONNECTIONS} HTTP connections, one refused");
        return;
    }
    let router = router.clone();
    let stop = stop.clone();
    let has_asked = Arc::new(AtomicBool::new(false));
    let asked = has_asked.clone();
    let task = tokio::spawn(async move {
        let service = service_fn(move |mut request: hyper::Request<Incoming>| {
            asked.store(true, Ordering::Relaxed);
            request.extensions_mut().insert(door);
            let router = router.clone();
            async move { Ok::<_, Infallible>(call(router, request.map(axum::body::Body::new)).await) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .max_headers(64)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades();
        let mut connection = std::pin::pin!(connection);
        let result = tokio::select! {
            result = connection.as_mut() => result,
            () = stop.cancelled() => {
                connection.as_mut().graceful_shutdown();
                tokio::time::timeout(DRAIN, connection).await.unwrap_or(Ok(()))
            }
        };
        if let Err(error) = result {
            debug!("HTTP connection ended: {error}");
        }
    });
    guests.push(Guest { task: task.abort_handle(), has_asked });
}

/// Whether one more may come. Of those who have come and not asked for anything the oldest goes for it: a client that
/// means it has asked long before as many others have come.
fn make_room(guests: &mut Vec<Guest>) -> bool {
    guests.retain(|guest| !guest.task.is_finished());
    if guests.len() < MAX_CONNECTIONS {
        return true;
    }
    let Some(idle) = guests.iter().position(|guest| !guest.has_asked.load(Ordering::Relaxed)) else {
        return false;
    };
    guests.remove(idle).task.abort();
    true
}

async fn call(mut router: Router, request: Request) -> Response {
    match tower_service::Service::call(&mut router, request).await {
        Ok(response) => response,
        Err(never) => match never {},
    }
}

/// Out of descriptors, most likely: trying again at once would only spin.
async fn pause(error: &std::io::Error) {
    warn!("HTTP cannot accept: {error}");
    tokio::time::sleep(Duration::from_millis(100)).await;
}

/// For more, one that has not asked for anything is closed; else they are refused. A page needs a handful.
const MAX_CONNECTIONS: usize = 256;
/// From the first byte of a request, or the end of the last one, to its last header.
const HEADER_TIMEOUT: Duration = Duration::from_secs(15);
/// A request's body, in bytes.
const MAX_BODY: usize = 64 * 1024;
/// A WebSocket frame of a client, in bytes: it waits in memory until it is whole. Twice the largest MQTT packet.
const MAX_FRAME: usize = 4 << 20;
/// How long an open request may go on when the gateway stops.
const DRAIN: Duration = Duration::from_secs(1);
