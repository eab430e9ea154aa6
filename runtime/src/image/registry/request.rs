//! One request, with everything that it may take: authorisation, patience, another endpoint.

use std::sync::atomic::Ordering;
use std::time::Duration;

use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderValue, RANGE, RETRY_AFTER};
use reqwest::{Response, StatusCode};

use super::Session;
use crate::image::ImageError;
use crate::image::error::chain;

/// What is asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Request<'a> {
    /// `manifests` or `blobs`.
    pub(super) kind: &'a str,
    /// A tag or a digest.
    pub(super) name: &'a str,
    /// `Accept`.
    pub(super) accept: &'static str,
    /// The first byte that is wanted.
    pub(super) offset: u64,
}

/// Why one endpoint did not answer a request.
#[derive(Debug)]
pub(super) enum Failure {
    /// It may work the next time; not before that long, if it said so.
    Passing {
        reason: String,
        retry_after: Option<Duration>,
    },
    /// It will not.
    Lasting(String),
    /// The image or blob is not there.
    NotFound,
    /// Not with these credentials.
    Denied(String),
}

impl Failure {
    pub(super) fn passing(reason: impl Into<String>) -> Self {
        Self::Passing {
            reason: reason.into(),
            retry_after: None,
        }
    }
}

impl Session {
    /// Asks one endpoint after the other until one answers.
    pub(super) async fn get(&self, request: Request<'_>) -> Result<Response, ImageError> {
        let first = self.preferred.load(Ordering::Relaxed);
        let count = self.endpoints.len();
        let mut failures = Vec::new();
        for index in (0..count).map(|step| (first + step) % count) {
            match self.get_patiently(index, request).await {
                Ok(response) => {
                    self.preferred.store(index, Ordering::Relaxed);
                    return Ok(response);
                }
                Err(failure) => failures.push((index, failure)),
            }
        }
        Err(self.error(failures))
    }

    /// The endpoint that the next request begins with is another one.
    pub(super) fn prefer_next(&self) {
        let next = (self.preferred.load(Ordering::Relaxed) + 1) % self.endpoints.len();
        self.preferred.store(next, Ordering::Relaxed);
    }

    /// What a caller hears when the endpoint that answered last did not do so to the end.
    pub(super) fn broken(&self, failure: Failure) -> ImageError {
        self.error(vec![(self.preferred.load(Ordering::Relaxed), failure)])
    }

    async fn get_patiently(&self, index: usize, request: Request<'_>) -> Result<Response, Failure> {
        let mut back_off = self.patience.first_back_off;
        let mut attempt = 1;
        loop {
            match self.get_once(index, request).await {
                Err(Failure::Passing { retry_after, .. }) if attempt < self.patience.attempts => {
                    tokio::time::sleep(
                        retry_after
                            .unwrap_or(back_off)
                            .min(self.patience.max_back_off),
                    )
                    .await;
                    back_off *= 2;
                    attempt += 1;
                }
                other => return other,
            }
        }
    }

    async fn get_once(&self, index: usize, request: Request<'_>) -> Result<Response, Failure> {
        let response = self.send(index, request).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return classify(response);
        }
        // Once: whoever says 401 to what they asked for means it.
        self.authorise(index, &response).await?;
        let response = self.send(index, request).await?;
        if response.status() == StatusCode::UNAUTHORIZED {
            return Err(Failure::Denied(
                "the credentials are not accepted (401)".to_owned(),
            ));
        }
        classify(response)
    }

    async fn send(&self, index: usize, request: Request<'_>) -> Result<Response, Failure> {
        let endpoint = &self.endpoints[index];
        let url = endpoint
            .url(&self.reference.repository, request.kind, request.name)
            .ok_or_else(|| Failure::Lasting("the endpoint is not a host".to_owned()))?;
        let mut builder = self.client(index)?.get(url).header(ACCEPT, request.accept);
        if let Some(authorisation) = self.authorisations.get(index) {
            builder = builder.header(AUTHORIZATION, authorisation);
        }
        if request.offset > 0 {
            builder = builder.header(RANGE, format!("bytes={}-", request.offset));
        }
        builder.send().await.map_err(|error| transport(&error))
    }

    /// What a caller hears when no endpoint answered as it should. A registry that says no weighs
    /// more than one that cannot be reached: on many nodes only the mirrors can.
    fn error(&self, failures: Vec<(usize, Failure)>) -> ImageError {
        let (mut denied, mut missing) = (false, false);
        let reasons = failures.into_iter().map(|(index, failure)| {
            let reason = match failure {
                Failure::Passing { reason, .. } | Failure::Lasting(reason) => reason,
                Failure::NotFound => {
                    missing = true;
                    "not found".to_owned()
                }
                Failure::Denied(reason) => {
                    denied = true;
                    reason
                }
            };
            format!("{}: {reason}", self.endpoints[index].host)
        });
        let reason = reasons.collect::<Vec<_>>().join("; ");
        let image = self.reference.to_string();
        if denied {
            ImageError::Denied { image, reason }
        } else if missing {
            ImageError::NotInRegistry { image, reason }
        } else {
            ImageError::Unavailable { image, reason }
        }
    }
}

/// A connection that could not be made or broke.
pub(super) fn transport(error: &reqwest::Error) -> Failure {
    let reason = chain(error);
    if error.is_redirect() || error.is_builder() {
        Failure::Lasting(reason)
    } else {
        Failure::passing(reason)
    }
}

fn classify(response: Response) -> Result<Response, Failure> {
    let status = response.status();
    match status {
        StatusCode::OK | StatusCode::PARTIAL_CONTENT => Ok(response),
        StatusCode::NOT_FOUND => Err(Failure::NotFound),
        StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED => {
            Err(Failure::Denied(status.to_string()))
        }
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => Err(passing(&response)),
        _ if status.is_server_error() => Err(passing(&response)),
        _ => Err(Failure::Lasting(format!("unexpected answer {status}"))),
    }
}

fn passing(response: &Response) -> Failure {
    let seconds = |value: &HeaderValue| value.to_str().ok()?.parse().ok();
    let retry_after = response.headers().get(RETRY_AFTER).and_then(seconds);
    Failure::Passing {
        reason: response.status().to_string(),
        retry_after: retry_after.map(Duration::from_secs),
    }
}
