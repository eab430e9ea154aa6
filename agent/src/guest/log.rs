//! Messages go to the kernel's log, which the VMM's debug console shows.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};

use tracing_subscriber::fmt::MakeWriter;

const KMSG: &str = "/dev/kmsg";

/// Level of messages (`syslog(2)`): informational; the text has its own level.
const PREFIX: &str = "<6>isopod-agent: ";

/// Level of the reason why the machine ends: critical.
const LAST_PREFIX: &str = "<2>isopod-agent: ";

/// Longest message, in bytes: the kernel refuses longer ones (`LOG_LINE_MAX`, 1024 with its prefix).
const MESSAGE_MAX: usize = 960;

/// From now on, events and panics go to the kernel's log.
pub(super) fn install() {
    let Ok(kmsg) = OpenOptions::new().write(true).open(KMSG) else {
        return;
    };
    tracing_subscriber::fmt()
        .without_time()
        .with_ansi(false)
        .with_writer(Kmsg(kmsg))
        .init();
    std::panic::set_hook(Box::new(|panic| last_words(&panic.to_string())));
}

/// Says why the machine is about to end.
pub(super) fn last_words(text: &str) {
    let text = text.replace('\n', " ");
    let text = &text[..text.floor_char_boundary(MESSAGE_MAX)];
    // Without a log there is nobody to tell.
    if let Ok(mut kmsg) = OpenOptions::new().write(true).open(KMSG) {
        let _ = kmsg.write_all(format!("{LAST_PREFIX}{text}").as_bytes());
    }
}

/// One write to the device is one message.
struct Kmsg(File);

impl<'a> MakeWriter<'a> for Kmsg {
    type Writer = Message<'a>;

    fn make_writer(&'a self) -> Self::Writer {
        Message(&self.0)
    }
}

struct Message<'a>(&'a File);

impl Write for Message<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(bytes);
        let end = text.floor_char_boundary(MESSAGE_MAX);
        self.0
            .write_all(format!("{PREFIX}{}", text[..end].trim_end()).as_bytes())?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
