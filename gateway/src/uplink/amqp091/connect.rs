//! lapin over a transport of ours: TCP or TLS made by [`dial`], so that authorities, client certificate and the idea of
//! the time are the same for every uplink, and so that a peer that hangs holds nothing of ours for ever.
//!
//! lapin runs each connection on a thread of its own, which ends when the transport does. Dropping lapin's connection
//! while its peer is silent would leave that thread waiting; dropping a [`Line`] ends the transport as well.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use async_rs::traits::Reactor;
use async_rs::util::RuntimeParts;
use async_rs::{Runtime, Tokio};
use futures_util::Stream as Items;
use lapin::uri::AMQPUri;
use lapin::{AsyncTcpStream, Connection, ConnectionProperties};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::compat::{Compat, TokioAsyncReadCompatExt as _};
use tokio_util::sync::{CancellationToken, DropGuard, WaitForCancellationFutureOwned};

use crate::uplink::dial::Stream;

/// A connection and the hold on its transport.
pub struct Line {
    /// lapin's.
    pub connection: Connection,
    _hold: DropGuard,
}

/// Logs in over `stream`. Cancelled, it leaves nothing behind.
pub async fn open(
    stream: Box<dyn Stream>,
    uri: AMQPUri,
    properties: ConnectionProperties,
) -> lapin::Result<Line> {
    let gone = CancellationToken::new();
    let hold = gone.clone().drop_guard();
    let transport = Transport { stream, gone: Box::pin(gone.cancelled_owned()) };
    // lapin asks for it once, from its own thread.
    let ready = Mutex::new(Some(transport.compat()));
    let connect = async move |_: AMQPUri, _: Runtime<Kit>| {
        let stream = ready.lock().unwrap_or_else(PoisonError::into_inner).take();
        let stream = stream.ok_or_else(|| io::Error::other("one connection, one transport"))?;
        Ok(AsyncTcpStream::Plain(stream))
    };
    let runtime = Runtime::new(RuntimeParts::new(Tokio::current(), Timers(Tokio::current())));
    let connection = Connection::connector(uri, runtime, connect, properties).await?;
    Ok(Line { connection, _hold: hold })
}

type Kit = RuntimeParts<Tokio, Timers>;

/// What lapin's thread reads and writes. Ends like a closed connection when it is let go.
pub struct Transport {
    stream: Box<dyn Stream>,
    gone: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl AsyncRead for Transport {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.gone.as_mut().poll(context).is_ready() {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Transport {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// The half of a runtime that has to do with time and wires, for lapin: timers of tokio's, and no way to a wire but
/// the one that is given to it.
#[derive(Clone)]
struct Timers(Tokio);

impl fmt::Debug for Timers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Timers")
    }
}

#[expect(refining_impl_trait, reason = "what is never made has no better type")]
impl Reactor for Timers {
    type TcpStream = Compat<Transport>;
    type Sleep = <Tokio as Reactor>::Sleep;

    fn register<H>(&self, _: H) -> io::Result<Compat<Transport>> {
        Err(unsupported())
    }

    fn sleep(&self, duration: Duration) -> Self::Sleep {
        self.0.sleep(duration)
    }

    fn interval(&self, duration: Duration) -> impl Items<Item = Instant> + Send + 'static {
        self.0.interval(duration)
    }

    fn tcp_connect_addr(
        &self,
        _: SocketAddr,
    ) -> impl Future<Output = io::Result<Self::TcpStream>> + Send + 'static {
        std::future::ready(Err(unsupported()))
    }
}

fn unsupported() -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, "lapin connects to nobody by itself")
}
