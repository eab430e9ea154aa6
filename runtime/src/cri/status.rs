//! The table that turns errors into gRPC codes. There is no other on this side of the daemon.

use tonic::{Code, Status};

use crate::image::ImageError;

impl From<ImageError> for Status {
    fn from(error: ImageError) -> Self {
        let code = match error {
            ImageError::InvalidReference { .. } => Code::InvalidArgument,
            ImageError::NotFound { .. }
            | ImageError::NotInRegistry { .. }
            | ImageError::NoPlatform { .. } => Code::NotFound,
            ImageError::Denied { .. } => Code::PermissionDenied,
            ImageError::Unavailable { .. } => Code::Unavailable,
            ImageError::Corrupt { .. } => Code::DataLoss,
            ImageError::Refused { .. } => Code::FailedPrecondition,
            ImageError::TooLarge { .. } | ImageError::DiskFull { .. } => Code::ResourceExhausted,
            ImageError::Io { .. } | ImageError::Damaged { .. } => Code::Internal,
        };
        Self::new(code, crate::image::chain(&error))
    }
}
