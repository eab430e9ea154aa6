//! Carries libcontainer's own words about an error to the agent.
//!
//! Its error values name the step that failed; what the kernel said is only in its error events.

use std::fmt::{self, Write};
use std::sync::{Mutex, PoisonError};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use super::protocol::{Channel, Report};

/// Longest detail, in bytes: events can print whole requests.
const DETAIL_MAX: usize = 1024;

/// From now on, error events of this process and those that it forks become reports.
pub(super) fn install(channel: &Channel) {
    let Ok(channel) = channel.try_clone() else {
        return;
    };
    // Fails only if there is a subscriber already, and a helper has none.
    let _ = tracing::subscriber::set_global_default(Details {
        channel: Mutex::new(channel),
    });
}

#[derive(Debug)]
struct Details {
    channel: Mutex<Channel>,
}

impl Subscriber for Details {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() == Level::ERROR && metadata.is_event()
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut text = Text::default();
        event.record(&mut text);
        let mut text = text.message + &text.fields;
        let end = text.floor_char_boundary(DETAIL_MAX);
        text.truncate(end);
        // Without the agent there is nobody to tell.
        let _ = self
            .channel
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .report(&Report::Detail(text));
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// An event as `message (field=value, field=value)`, without the values that could be secret.
#[derive(Debug, Default)]
struct Text {
    message: String,
    fields: String,
}

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a string cannot fail.
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            "args" | "env" | "envs" | "spec" => Ok(()),
            name => write!(self.fields, ", {name}: {value:?}"),
        };
    }
}
