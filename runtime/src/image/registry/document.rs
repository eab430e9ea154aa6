//! Small things, fetched whole.

use bytes::Bytes;
use reqwest::Response;

use super::Session;
use super::request::{Failure, Request, transport};
use crate::image::ImageError;
use crate::image::digest::Digest;
use crate::image::limits::MAX_DOCUMENT_BYTES;

impl Session {
    /// Fetches a manifest or a configuration; what it is asked for by digest has that digest.
    pub(super) async fn document(
        &self,
        object: &str,
        request: Request<'_>,
        digest: Option<Digest>,
    ) -> Result<Bytes, ImageError> {
        let response = self.get(request).await?;
        let body = match read_bounded(response, MAX_DOCUMENT_BYTES).await {
            Ok(body) => body,
            Err(Failure::Lasting(reason)) => {
                let (image, object) = (self.reference.to_string(), object.to_owned());
                return Err(ImageError::TooLarge {
                    image,
                    object,
                    reason,
                });
            }
            // It broke in the middle. Once more, from the beginning.
            Err(_passing) => {
                let response = self.get(request).await?;
                let body = read_bounded(response, MAX_DOCUMENT_BYTES).await;
                body.map_err(|failure| self.broken(failure))?
            }
        };
        if let Some(expected) = digest {
            let actual = Digest::of(&body);
            if actual != expected {
                return Err(self.corrupt(object, format!("expected {expected}, received {actual}")));
            }
        }
        Ok(body)
    }
}

/// The whole body, if it is not longer than `limit`: [`Failure::Lasting`] if it is.
pub(super) async fn read_bounded(mut response: Response, limit: u64) -> Result<Bytes, Failure> {
    let too_large = || Failure::Lasting(format!("more than {limit} bytes"));
    if response
        .content_length()
        .is_some_and(|length| length > limit)
    {
        return Err(too_large());
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| transport(&error))? {
        if (body.len() + chunk.len()) as u64 > limit {
            return Err(too_large());
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.into())
}
