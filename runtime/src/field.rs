//! A field of a request that cannot be honoured.

/// Says which field of a request is wrong, and why.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{field}: {reason}")]
pub(crate) struct FieldError {
    /// Its path in the request, as the CRI's protocol file spells it.
    pub(crate) field: String,
    /// What is wrong with it.
    pub(crate) reason: String,
}

impl FieldError {
    /// `field` is wrong because of `reason`.
    pub(crate) fn new(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            reason: reason.into(),
        }
    }

    /// The field asks for something that is not there yet, and leaving it out silently would run
    /// something else than was asked for.
    pub(crate) fn unsupported(field: &'static str) -> Self {
        Self::new(field, "is not supported yet")
    }

    /// `Err` when the field asks for something that is not there yet.
    ///
    /// # Errors
    ///
    /// When `asked`.
    pub(crate) fn refuse_if(asked: bool, field: &'static str) -> Result<(), Self> {
        if asked {
            Err(Self::unsupported(field))
        } else {
            Ok(())
        }
    }
}
