//! The CLI's side of the control socket: HTTP/1.1 over a unix socket to the running gateway.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, bail};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::Value as Json;
use tokio::net::UnixStream;

use crate::paths;

/// A connection to the running gateway.
pub struct Control {
    sender: http1::SendRequest<Full<Bytes>>,
}

impl Control {
    /// Connects to the gateway that uses the state directory `chosen`, or to the one on this machine.
    ///
    /// # Errors
    /// None answers; the text says where was looked.
    pub async fn connect(chosen: Option<&Path>) -> Result<Self> {
        let candidates = paths::control_sockets(chosen);
        let mut denied = None;
        for path in &candidates {
            match UnixStream::connect(path).await {
                Ok(stream) => return Self::over(stream).await,
                Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
                    denied = Some(path.clone());
                }
                Err(_) => {}
            }
        }
        if let Some(path) = denied {
            bail!("no permission for {}: join the group that owns it, or use sudo", path.display());
        }
        let looked: Vec<String> =
            candidates.iter().map(|path: &PathBuf| path.display().to_string()).collect();
        Err(anyhow!("no running gateway: nobody answers on {}", looked.join(", ")))
    }

    async fn over(stream: UnixStream) -> Result<Self> {
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(async move {
            // Its end shows as the end of the answer.
            let _ = connection.await;
        });
        Ok(Self { sender })
    }

    /// Asks for JSON.
    pub async fn get(&mut self, path: &str) -> Result<Json> {
        let response = self.send(Method::GET, path, Bytes::new()).await?;
        let body = response.into_body().collect().await?.to_bytes();
        serde_json::from_slice(&body).context("the gateway's answer is not JSON")
    }

    /// Sends JSON, gets JSON; an answer that says no is an answer.
    pub async fn post(&mut self, path: &str, body: &Json) -> Result<(bool, Json)> {
        let response = self.request(Method::POST, path, Bytes::from(body.to_string())).await?;
        let is_ok = response.status().is_success();
        let body = response.into_body().collect().await?.to_bytes();
        Ok((is_ok, serde_json::from_slice(&body).context("the gateway's answer is not JSON")?))
    }

    /// Asks for something that comes in pieces; `take` gets each until it says no more.
    pub async fn stream(&mut self, path: &str, mut take: impl FnMut(&[u8]) -> Result<bool>) -> Result<()> {
        let mut body = self.send(Method::GET, path, Bytes::new()).await?.into_body();
        while let Some(frame) = body.frame().await {
            if let Some(piece) = frame?.data_ref()
                && !take(piece)?
            {
                break;
            }
        }
        Ok(())
    }

    async fn send(&mut self, method: Method, path: &str, body: Bytes) -> Result<Response<Incoming>> {
        let response = self.request(method, path, body).await?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        let why: Json = serde_json::from_slice(&body).unwrap_or_default();
        bail!("the gateway answered {status}: {}", why["error"].as_str().unwrap_or("no reason given"))
    }

    async fn request(&mut self, method: Method, path: &str, body: Bytes) -> Result<Response<Incoming>> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "localhost")
            .header("content-type", "application/json")
            .body(Full::new(body))?;
        Ok(self.sender.send_request(request).await?)
    }
}
