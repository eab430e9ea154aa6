//! What the kubelet says over HTTP: its health, and on the read-only port pods, statistics and metrics.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use prometheus_parse::Scrape;
use serde_json::Value;

use super::Kubelet;

/// The read-only port.
pub(super) const PORT: u16 = 10255;

/// `healthzPort`, which is the default.
const HEALTH_PORT: u16 = 10248;

/// How long an answer may take: statistics of many pods come from many guests.
const LIMIT: Duration = Duration::from_secs(120);

/// Whether it says that it is healthy.
pub(super) fn is_healthy() -> bool {
    get(HEALTH_PORT, "/healthz").is_ok_and(|body| body == "ok")
}

impl Kubelet<'_> {
    /// The JSON at a path of the read-only port.
    ///
    /// # Errors
    /// The kubelet does not answer, or not with JSON.
    pub fn json(&self, path: &str) -> Result<Value> {
        let body = get(PORT, path)?;
        serde_json::from_str(&body).with_context(|| format!("{path}: {body:?}"))
    }

    /// Prometheus' metrics at a path of the read-only port.
    ///
    /// # Errors
    /// The kubelet does not answer, or not with metrics.
    pub fn metrics(&self, path: &str) -> Result<Scrape> {
        let body = get(PORT, path)?;
        Ok(Scrape::parse(body.lines().map(|line| Ok(line.to_owned())))?)
    }
}

/// The body of the answer. HTTP/1.0, so that it ends with the connection.
fn get(port: u16, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(LIMIT))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no header")?;
    let status = head.split(' ').nth(1);
    ensure!(status == Some("200"), "GET {path}: {answer}");
    Ok(body.to_owned())
}
