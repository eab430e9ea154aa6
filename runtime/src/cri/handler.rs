//! The runtime handlers: what a RuntimeClass may name.

use crate::field::FieldError;

/// Every handler of this daemon; the empty one is what a pod without a RuntimeClass gets.
pub(super) const KNOWN: [&str; 2] = ["", "isopod"];

/// Checks a requested handler.
///
/// # Errors
///
/// [`FieldError`], with the names that are known.
pub(super) fn check(handler: &str) -> Result<(), FieldError> {
    if KNOWN.contains(&handler) {
        return Ok(());
    }
    let known: Vec<_> = KNOWN.iter().map(|name| format!("{name:?}")).collect();
    let reason = format!(
        "{handler:?} is not known; the known handlers are {}",
        known.join(" and ")
    );
    Err(FieldError::new("runtime_handler", reason))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_handler_is_refused_with_the_known_ones() {
        check("").unwrap();
        check("isopod").unwrap();
        let error = check("runc").unwrap_err().to_string();
        assert!(
            error.contains("\"isopod\"") && error.contains("\"runc\""),
            "{error}"
        );
    }
}
