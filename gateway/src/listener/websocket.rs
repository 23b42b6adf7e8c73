//! MQTT on WebSocket (MQTT 5.0 §6): binary frames as a stream of bytes.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::extract::ws::{Message, WebSocket};
use bytes::{Buf, Bytes};
use futures_util::{Sink, Stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The subprotocol that clients name and servers confirm [MQTT-6.0.0-3].
pub const SUBPROTOCOL: &str = "mqtt";

/// An upgraded WebSocket as a stream of bytes. Frames need not be aligned with packets [MQTT-6.0.0-2].
pub struct WebSocketStream {
    socket: WebSocket,
    /// What is left of the frame being read.
    rest: Bytes,
}

impl WebSocketStream {
    /// Takes over an upgraded connection.
    pub fn new(socket: WebSocket) -> Self {
        Self { socket, rest: Bytes::new() }
    }
}

impl AsyncRead for WebSocketStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.rest.is_empty() {
            match ready!(Pin::new(&mut self.socket).poll_next(context)) {
                Some(Ok(Message::Binary(bytes))) => self.rest = bytes,
                // Answered by the library.
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                // Anything but binary ends the connection [MQTT-6.0.0-1].
                Some(Ok(Message::Text(_))) => {
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, "text frame")));
                }
                Some(Ok(Message::Close(_))) | None => return Poll::Ready(Ok(())),
                Some(Err(error)) => return Poll::Ready(Err(io::Error::other(error))),
            }
        }
        let count = self.rest.len().min(buffer.remaining());
        buffer.put_slice(&self.rest[..count]);
        self.rest.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for WebSocketStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(Pin::new(&mut self.socket).poll_ready(context)).map_err(io::Error::other)?;
        let count = bytes.len().min(FRAME_BYTES);
        let frame = Message::Binary(Bytes::copy_from_slice(&bytes[..count]));
        Pin::new(&mut self.socket).start_send(frame).map_err(io::Error::other)?;
        Poll::Ready(Ok(count))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(context).map_err(io::Error::other)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_close(context).map_err(io::Error::other)
    }
}

/// The largest frame written.
const FRAME_BYTES: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::extract::ws::WebSocketUpgrade;
    use axum::routing::any;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    /// A server that sends every byte back, and a client that has been upgraded.
    async fn echo() -> TcpStream {
        let app = Router::new().route(
            "/mqtt",
            any(|upgrade: WebSocketUpgrade| async {
                upgrade.protocols([SUBPROTOCOL]).on_upgrade(|socket| async {
                    let (mut reader, mut writer) = tokio::io::split(WebSocketStream::new(socket));
                    let _ = tokio::io::copy(&mut reader, &mut writer).await;
                })
            }),
        );
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = "GET /mqtt HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                       Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\
                       Sec-WebSocket-Protocol: mqtt\r\n\r\n";
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        let head = String::from_utf8(head).unwrap().to_lowercase();
        assert!(head.starts_with("http/1.1 101") && head.contains("sec-websocket-protocol: mqtt"), "{head}");
        stream
    }

    /// A masked frame, as clients send them; the mask is zero.
    fn frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0x80 | opcode, 0x80 | payload.len() as u8, 0, 0, 0, 0];
        frame.extend(payload);
        frame
    }

    #[tokio::test]
    async fn binary_frames_are_a_stream_of_bytes_whatever_their_boundaries() {
        let mut stream = echo().await;
        for payload in [&b"\x10\x0d"[..], b"", b"\x00\x04MQTT"] {
            stream.write_all(&frame(2, payload)).await.unwrap();
        }
        let mut seen = Vec::new();
        while seen.len() < 8 {
            let opcode = stream.read_u8().await.unwrap();
            let length = usize::from(stream.read_u8().await.unwrap());
            let mut payload = vec![0; length];
            stream.read_exact(&mut payload).await.unwrap();
            assert_eq!(opcode, 0x82);
            seen.extend(payload);
        }
        assert_eq!(seen, b"\x10\x0d\x00\x04MQTT");
    }

    #[tokio::test]
    async fn a_text_frame_ends_the_connection() {
        let mut stream = echo().await;
        stream.write_all(&frame(1, b"hello")).await.unwrap();
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.unwrap();
        assert!(!rest.windows(5).any(|part| part == b"hello"));
    }
}
