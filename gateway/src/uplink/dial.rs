//! The way to a peer: TCP, or TLS over it.

use std::fmt::Debug;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::host_and_port;
use super::tls::Tls;

/// A transport.
pub trait Stream: AsyncRead + AsyncWrite + Debug + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Debug + Send + Unpin> Stream for T {}

/// Connects to `host:port` within 15 s.
///
/// # Errors
/// Nobody answers, or its certificate is not to be trusted.
pub async fn dial(address: &str, tls: Option<&Tls>) -> anyhow::Result<Box<dyn Stream>> {
    let (host, port) = host_and_port(address).ok_or_else(|| anyhow!("`{address}` is not host:port"))?;
    let connecting = TcpStream::connect((host, port));
    let tcp = tokio::time::timeout(CONNECT, connecting).await.context("no answer")??;
    tcp.set_nodelay(true)?;
    let Some(tls) = tls else { return Ok(Box::new(tcp)) };
    let name = ServerName::try_from(tls.server_name.clone().unwrap_or_else(|| host.to_owned()))?;
    let handshake = tls.connector()?.connect(name, tcp);
    Ok(Box::new(tokio::time::timeout(CONNECT, handshake).await.context("no TLS answer")??))
}

const CONNECT: Duration = Duration::from_secs(15);
