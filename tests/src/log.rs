//! Container logs as the kubelet reads them: `TIME STREAM TAG TEXT`, one line each
//! (`k8s.io/cri-api`, "CRI logging").

use anyhow::{Context as _, Result, bail, ensure};

/// Where a line was printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// A line of a container's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// RFC 3339 with nine digits of nanoseconds, UTC.
    pub time: String,
    /// Where it was printed.
    pub stream: Stream,
    /// The container's line goes on in the next one (tag `P`).
    pub partial: bool,
    /// What was printed, without the newline.
    pub text: Vec<u8>,
}

/// Longest text of one line, as containerd cuts it.
pub const MAX_TEXT: usize = 16 * 1024;

/// Reads a whole log, strictly.
///
/// # Errors
/// A line is not as the format wants it.
pub fn parse(log: &[u8]) -> Result<Vec<Line>> {
    let mut lines = Vec::new();
    for line in log.split_inclusive(|byte| *byte == b'\n') {
        let shown = String::from_utf8_lossy(&line[..line.len().min(80)]).into_owned();
        lines.push(
            parse_line(line).with_context(|| format!("line {}: {shown:?}", lines.len() + 1))?,
        );
    }
    Ok(lines)
}

fn parse_line(line: &[u8]) -> Result<Line> {
    let line = line.strip_suffix(b"\n").context("no newline at the end")?;
    let mut parts = line.splitn(4, |byte| *byte == b' ');
    let mut next = || parts.next().context("four fields are wanted");
    let time = std::str::from_utf8(next()?)?.to_owned();
    check_time(&time)?;
    let stream = match next()? {
        b"stdout" => Stream::Stdout,
        b"stderr" => Stream::Stderr,
        other => bail!("stream {:?}", String::from_utf8_lossy(other)),
    };
    let partial = match next()? {
        b"P" => true,
        b"F" => false,
        other => bail!("tag {:?}", String::from_utf8_lossy(other)),
    };
    let text = next()?.to_vec();
    ensure!(text.len() <= MAX_TEXT, "a text of {} bytes", text.len());
    Ok(Line {
        time,
        stream,
        partial,
        text,
    })
}

/// `2006-01-02T15:04:05.999999999Z`: the kubelet parses it with Go's RFC3339Nano.
fn check_time(time: &str) -> Result<()> {
    let pattern = "0000-00-00T00:00:00.000000000Z";
    let fits = time.len() == pattern.len()
        && time.chars().zip(pattern.chars()).all(|(have, want)| {
            if want == '0' {
                have.is_ascii_digit()
            } else {
                have == want
            }
        });
    ensure!(fits, "time {time:?}");
    Ok(())
}

/// The container's lines of one stream, partial ones joined.
#[must_use]
pub fn texts(lines: &[Line], stream: Stream) -> Vec<String> {
    let mut texts = Vec::new();
    let mut text = Vec::new();
    for line in lines.iter().filter(|line| line.stream == stream) {
        text.extend_from_slice(&line.text);
        if !line.partial {
            texts.push(String::from_utf8_lossy(&std::mem::take(&mut text)).into_owned());
        }
    }
    if !text.is_empty() {
        texts.push(String::from_utf8_lossy(&text).into_owned());
    }
    texts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partial_lines_of_one_stream_are_joined() {
        let log = b"2026-01-02T03:04:05.000000001Z stdout P one \n\
            2026-01-02T03:04:05.000000002Z stderr F other\n\
            2026-01-02T03:04:05.000000003Z stdout F two\n";
        let lines = parse(log).unwrap();
        assert_eq!(texts(&lines, Stream::Stdout), ["one two"]);
        assert_eq!(texts(&lines, Stream::Stderr), ["other"]);
    }

    #[test]
    fn a_line_with_another_time_stream_or_tag_is_an_error() {
        for log in [
            "2026-01-02T03:04:05Z stdout F text\n",
            "2026-01-02T03:04:05.000000001Z output F text\n",
            "2026-01-02T03:04:05.000000001Z stdout X text\n",
            "2026-01-02T03:04:05.000000001Z stdout F\n",
            "2026-01-02T03:04:05.000000001Z stdout F text",
        ] {
            assert!(parse(log.as_bytes()).is_err(), "{log:?}");
        }
    }
}
