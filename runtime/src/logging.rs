//! Where the daemon's log lines go: standard error, in a form that journald understands.
//!
//! error: the requested action failed. warn: abnormal but harmless. info: rare lifecycle events.
//! Under systemd every line carries its priority (`sd-daemon(3)`) and no time, which the journal
//! keeps itself; elsewhere lines carry the time in UTC and no colour.

use std::fmt;
use std::os::fd::AsFd;

use nix::sys::stat::fstat;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// The environment's log filter; the command line goes before it, the configuration after.
pub(crate) const LOG_ENVIRONMENT: &str = "ISOPOD_LOG";

/// A log that cannot be set up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoggingError {
    /// The filter is not one.
    #[error("{from}: `{filter}` is no log level and no filter")]
    Filter {
        /// Where the filter came from.
        from: &'static str,
        /// What it says.
        filter: String,
        /// What is wrong with it.
        #[source]
        source: tracing_subscriber::filter::ParseError,
    },
    /// Somebody was here before.
    #[error("setting up the log")]
    Twice(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Sends the process's log lines to standard error.
///
/// # Errors
///
/// [`LoggingError`] when the filter that counts cannot be read, or on a second call.
pub(crate) fn init(flag: Option<&str>, configured: &str) -> Result<(), LoggingError> {
    let environment = std::env::var(LOG_ENVIRONMENT).ok();
    let (from, filter) = match (flag, environment.as_deref()) {
        (Some(filter), _) => ("--log-level", filter),
        (None, Some(filter)) => (LOG_ENVIRONMENT, filter),
        (None, None) => ("log_level", configured),
    };
    let filter = parse_filter(filter).map_err(|source| LoggingError::Filter {
        from,
        filter: filter.to_owned(),
        source,
    })?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false);
    let format = tracing_subscriber::fmt::format().with_target(true);
    if stderr_is_the_journal() {
        let format = Prioritised {
            inner: format.without_time(),
        };
        builder.event_format(format).try_init()
    } else {
        builder.event_format(format).try_init()
    }
    .map_err(LoggingError::Twice)
}

/// Reads a level or a filter as the configuration and the command line write it.
///
/// # Errors
///
/// When it is neither.
pub(crate) fn parse_filter(
    filter: &str,
) -> Result<EnvFilter, tracing_subscriber::filter::ParseError> {
    EnvFilter::builder().parse(filter)
}

/// systemd names the journal's socket by device and inode (`systemd.exec(5)`, `$JOURNAL_STREAM`).
fn stderr_is_the_journal() -> bool {
    let Ok(journal) = std::env::var("JOURNAL_STREAM") else {
        return false;
    };
    let Ok(stat) = fstat(std::io::stderr().as_fd()) else {
        return false;
    };
    journal == format!("{}:{}", stat.st_dev, stat.st_ino)
}

/// Puts a line's syslog priority before it.
struct Prioritised<F> {
    inner: F,
}

impl<S, N, F> FormatEvent<S, N> for Prioritised<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        write!(writer, "<{}>", priority(*event.metadata().level()))?;
        self.inner.format_event(context, writer, event)
    }
}

/// A level's syslog priority (RFC 5424 section 6.2.1).
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn journal_lines_start_with_their_priority_and_carry_no_time() {
        let lines = Lines::default();
        let writer = lines.clone();
        let format = Prioritised {
            inner: tracing_subscriber::fmt::format()
                .with_ansi(false)
                .without_time(),
        };
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .event_format(format)
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            tracing::warn!(sandbox_id = "s1", "the guest answers slowly");
        });
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        assert!(text.starts_with("<4> WARN"), "{text}");
        assert!(
            text.trim_end()
                .ends_with("the guest answers slowly sandbox_id=\"s1\""),
            "{text}"
        );
    }

    #[test]
    fn filter_that_is_none_is_refused() {
        assert!(parse_filter("info").is_ok());
        assert!(parse_filter("isopod=debug,tonic=warn").is_ok());
        assert!(parse_filter("isopod=loud").is_err());
    }
}
