//! Large things, streamed.

use bytes::Bytes;
use reqwest::header::CONTENT_RANGE;
use reqwest::{Response, StatusCode};
use tokio::sync::mpsc;

use super::Session;
use super::request::{Failure, Request, transport};
use crate::image::ImageError;
use crate::image::digest::Hasher;
use crate::image::manifest::LayerDescriptor;
use crate::image::progress::LayerProgress;

/// Bytes that must arrive between two failures for the second to count as a first one.
const PROGRESS: u64 = 1 << 20;

/// What comes out of a blob's download. A channel that closes before [`BlobEvent::End`] is a
/// download that failed or was given up.
#[derive(Debug)]
pub(crate) enum BlobEvent {
    /// The next bytes.
    Data(Bytes),
    /// That was all, and its digest was right.
    End,
}

/// Where a blob's bytes go. Bounded: who reads slowly slows the download down.
pub(crate) type BlobSender = mpsc::Sender<BlobEvent>;

/// How one answer's body ended.
enum Ended {
    /// All bytes of the blob have arrived.
    Complete,
    /// Nobody wants the rest.
    NobodyListens,
    /// Too early.
    Broken(Failure),
}

/// A blob on its way.
struct Download {
    hasher: Hasher,
    /// Bytes handed on so far.
    offset: u64,
}

impl Session {
    /// Downloads a layer's blob into `sender`. A connection that breaks is picked up where it broke,
    /// by range if the endpoint knows how, and from another endpoint if there is one.
    ///
    /// # Errors
    /// The digest or the size is wrong, or no endpoint serves the blob to its end. If the receiver
    /// goes away, that is `Ok`: it knows why.
    pub(crate) async fn blob(
        &self,
        layer: &LayerDescriptor,
        sender: BlobSender,
        progress: &LayerProgress,
    ) -> Result<(), ImageError> {
        let object = format!("layer {}", layer.digest);
        let mut download = Download {
            hasher: Hasher::default(),
            offset: 0,
        };
        let mut failures = 0;
        let mut back_off = self.patience.first_back_off;
        loop {
            let start = download.offset;
            let name = layer.digest.to_string();
            let request = Request {
                kind: "blobs",
                name: &name,
                accept: "*/*",
                offset: start,
            };
            let response = self.get(request).await?;
            match self
                .receive(&mut download, layer, (&sender, progress), response)
                .await?
            {
                Ended::Complete => break,
                Ended::NobodyListens => return Ok(()),
                Ended::Broken(failure) => {
                    if download.offset - start >= PROGRESS {
                        (failures, back_off) = (0, self.patience.first_back_off);
                    }
                    failures += 1;
                    if failures >= self.patience.attempts {
                        return Err(self.broken(failure));
                    }
                    tracing::debug!(%object, offset = download.offset, ?failure, "resuming");
                    self.prefer_next();
                    tokio::time::sleep(back_off).await;
                    back_off *= 2;
                }
            }
        }
        let actual = download.hasher.finish();
        if actual != layer.digest {
            return Err(self.corrupt(&object, format!("received {actual}")));
        }
        // The receiver may have gone away; it knows why.
        let _ = sender.send(BlobEvent::End).await;
        Ok(())
    }

    async fn receive(
        &self,
        download: &mut Download,
        layer: &LayerDescriptor,
        (sender, progress): (&BlobSender, &LayerProgress),
        mut response: Response,
    ) -> Result<Ended, ImageError> {
        // An endpoint that does not know ranges begins from the beginning.
        let mut skip = match response.status() {
            StatusCode::PARTIAL_CONTENT if starts_at(&response, download.offset) => 0,
            StatusCode::PARTIAL_CONTENT => {
                return Ok(Ended::Broken(Failure::passing(
                    "another range than asked for",
                )));
            }
            _ => download.offset,
        };
        loop {
            if download.offset == layer.size {
                return Ok(Ended::Complete);
            }
            let mut chunk = match response.chunk().await {
                Ok(Some(chunk)) => chunk,
                Ok(None) => {
                    let Download { offset, .. } = download;
                    let reason = format!("ended after {offset} of {} bytes", layer.size);
                    return Ok(Ended::Broken(Failure::passing(reason)));
                }
                Err(error) => return Ok(Ended::Broken(transport(&error))),
            };
            if skip > 0 {
                let skipped = usize::try_from(skip).unwrap_or(usize::MAX).min(chunk.len());
                skip -= skipped as u64;
                chunk = chunk.split_off(skipped);
            }
            if download.offset + chunk.len() as u64 > layer.size {
                let reason = format!("more than the {} bytes of its descriptor", layer.size);
                return Err(self.corrupt(&format!("layer {}", layer.digest), reason));
            }
            if chunk.is_empty() {
                continue;
            }
            download.hasher.update(&chunk);
            download.offset += chunk.len() as u64;
            progress.add(chunk.len());
            if sender.send(BlobEvent::Data(chunk)).await.is_err() {
                return Ok(Ended::NobodyListens);
            }
        }
    }
}

/// `Content-Range: bytes 42-...`.
fn starts_at(response: &Response, offset: u64) -> bool {
    response
        .headers()
        .get(CONTENT_RANGE)
        .and_then(|value| value.to_str().ok()?.strip_prefix("bytes "))
        .and_then(|range| range.split_once('-')?.0.parse::<u64>().ok())
        == Some(offset)
}
