//! What a client reads at the end of a stream: a Kubernetes `meta/v1` Status, as JSON.

use std::error::Error;

use serde_json::{Value, json};

use crate::chain::chain;

/// How a stream ended.
#[derive(Debug)]
pub(super) enum End {
    /// Every byte was delivered; an exec exited with 0.
    Success,
    /// Every byte was delivered and the exec exited with another code.
    Exit(i32),
    /// Something failed; a sentence with its causes.
    Failure(String),
}

impl End {
    /// A failure, told with its causes.
    pub(super) fn failure(error: &dyn Error) -> Self {
        Self::Failure(chain(error))
    }

    /// What went wrong, if anything did, in a sentence.
    pub(super) fn text(&self) -> Option<String> {
        match self {
            Self::Success | Self::Exit(0) => None,
            Self::Exit(code) => Some(format!(
                "command terminated with non-zero exit code: exit status {code}"
            )),
            Self::Failure(text) => Some(format!("Internal error occurred: {text}")),
        }
    }

    /// The Status that clients of `v4.channel.k8s.io` and later expect on the error channel
    /// (k8s.io/apimachinery, pkg/apis/meta/v1, and pkg/util/remotecommand for the exit code).
    pub(super) fn status(&self) -> Value {
        match self {
            Self::Success | Self::Exit(0) => json!({ "metadata": {}, "status": "Success" }),
            Self::Exit(code) => json!({
                "metadata": {},
                "status": "Failure",
                "message": self.text(),
                "reason": "NonZeroExitCode",
                "details": { "causes": [{ "reason": "ExitCode", "message": code.to_string() }] },
            }),
            Self::Failure(text) => json!({
                "metadata": {},
                "status": "Failure",
                "message": self.text(),
                "reason": "InternalError",
                "details": { "causes": [{ "message": text }] },
                "code": 500,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_code_is_the_cause_that_kubectl_looks_for() {
        let status = End::Exit(3).status();
        assert_eq!(status["reason"], "NonZeroExitCode");
        assert_eq!(
            status["details"]["causes"][0],
            json!({ "reason": "ExitCode", "message": "3" })
        );
    }

    #[test]
    fn exit_with_zero_is_success() {
        assert_eq!(End::Exit(0).status()["status"], "Success");
    }

    #[test]
    fn failure_tells_its_causes() {
        let cause = std::io::Error::other("no such file");
        let error = crate::streaming::StreamingError::Listen {
            address: ([127, 0, 0, 1], 80).into(),
            source: cause,
        };
        let status = End::failure(&error).status();
        let message = status["message"].as_str().unwrap();
        assert!(message.ends_with("127.0.0.1:80: no such file"), "{message}");
    }
}
