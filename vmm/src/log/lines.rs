//! Output bytes become lines of the CRI log format.
//!
//! ```text
//! 2026-01-02T15:04:05.123456789Z stdout F a whole line, or the last part of one
//! 2026-01-02T15:04:05.123456789Z stderr P a part that another follows, or output without a newline
//! ```
//!
//! A line of more than [`CONTENT_MAX`] bytes is written in parts, and what a stream leaves without
//! a newline at its end is a part as well, as containerd does (`internal/cri/io/logger.go`).
//! Unlike containerd, a carriage return before the newline is kept: it is the container's byte.

use std::time::SystemTime;

use super::timestamp::{TIMESTAMP_LEN, append_timestamp};

/// Most bytes of output in one log line: the default `max_container_log_line_size` of containerd.
pub(super) const CONTENT_MAX: usize = 16 * 1024;

/// Most bytes of one log line with its time, stream, tag and newline.
pub(super) const LINE_MAX: usize = TIMESTAMP_LEN + " stdout F ".len() + CONTENT_MAX + 1;

/// Which of a process's outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Output {
    Stdout,
    Stderr,
}

impl Output {
    fn name(self) -> &'static [u8] {
        match self {
            Self::Stdout => b"stdout",
            Self::Stderr => b"stderr",
        }
    }
}

/// Cuts one process's two outputs into log lines. Holds at most [`CONTENT_MAX`] bytes of each.
#[derive(Debug, Default)]
pub(super) struct Lines {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

impl Lines {
    /// Takes bytes off the front of `input` until a log line is complete and appends it to `log`.
    /// Returns how many bytes of output that line stands for; `None` when all of `input` was taken
    /// and more is needed.
    pub(super) fn next_line(
        &mut self,
        output: Output,
        input: &mut &[u8],
        log: &mut Vec<u8>,
    ) -> Option<usize> {
        let unfinished = self.unfinished(output);
        let room = CONTENT_MAX - unfinished.len();
        let window = &input[..input.len().min(room + 1)];
        let (content, rest, tag, newline) =
            if let Some(at) = window.iter().position(|byte| *byte == b'\n') {
                (&input[..at], &input[at + 1..], b'F', 1)
            } else if input.len() > room {
                (&input[..room], &input[room..], b'P', 0)
            } else {
                unfinished.extend_from_slice(input);
                *input = &[];
                return None;
            };
        let len = unfinished.len() + content.len() + newline;
        append_line(log, output, tag, unfinished, content);
        unfinished.clear();
        *input = rest;
        Some(len)
    }

    /// Appends what `output` left without a newline, at its end. Returns how many bytes those are.
    pub(super) fn last_line(&mut self, output: Output, log: &mut Vec<u8>) -> Option<usize> {
        let unfinished = self.unfinished(output);
        if unfinished.is_empty() {
            return None;
        }
        append_line(log, output, b'P', unfinished, &[]);
        let len = unfinished.len();
        unfinished.clear();
        Some(len)
    }

    fn unfinished(&mut self, output: Output) -> &mut Vec<u8> {
        match output {
            Output::Stdout => &mut self.stdout,
            Output::Stderr => &mut self.stderr,
        }
    }
}

fn append_line(log: &mut Vec<u8>, output: Output, tag: u8, start: &[u8], end: &[u8]) {
    append_timestamp(log, SystemTime::now());
    log.push(b' ');
    log.extend_from_slice(output.name());
    log.extend_from_slice(&[b' ', tag, b' ']);
    log.extend_from_slice(start);
    log.extend_from_slice(end);
    log.push(b'\n');
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Log lines without their times, and the number of bytes that they stand for.
    fn log_of(chunks: &[(Output, &[u8])]) -> (Vec<String>, usize) {
        let mut lines = Lines::default();
        let mut log = Vec::new();
        let mut bytes = 0;
        for (output, chunk) in chunks {
            let mut input = *chunk;
            while let Some(len) = lines.next_line(*output, &mut input, &mut log) {
                bytes += len;
            }
        }
        for output in [Output::Stdout, Output::Stderr] {
            bytes += lines.last_line(output, &mut log).unwrap_or(0);
        }
        let text = String::from_utf8(log).unwrap();
        let lines = text
            .split_terminator('\n')
            .map(|line| line[TIMESTAMP_LEN + 1..].to_owned())
            .collect();
        (lines, bytes)
    }

    #[test]
    fn whole_lines_are_full_and_an_empty_line_has_no_content() {
        let (lines, bytes) = log_of(&[(Output::Stdout, b"one\n\ntwo\r\n")]);
        assert_eq!(lines, ["stdout F one", "stdout F ", "stdout F two\r"]);
        assert_eq!(bytes, 10);
    }

    #[test]
    fn a_line_in_pieces_is_one_line_and_the_outputs_do_not_mix() {
        let (lines, _) = log_of(&[
            (Output::Stdout, b"he"),
            (Output::Stderr, b"oops\nbad"),
            (Output::Stdout, b"llo\nrest"),
        ]);
        assert_eq!(
            lines,
            [
                "stderr F oops",
                "stdout F hello",
                "stdout P rest",
                "stderr P bad"
            ]
        );
    }

    #[test]
    fn a_line_of_exactly_the_limit_is_full() {
        let line = [vec![b'x'; CONTENT_MAX], b"\n".to_vec()].concat();
        let (lines, _) = log_of(&[(Output::Stdout, &line)]);
        assert_eq!(lines.len(), 1);
        assert!(lines[0].starts_with("stdout F x"));
        let (lines, _) = log_of(&[
            (Output::Stdout, &line[..CONTENT_MAX]),
            (Output::Stdout, b"\n"),
        ]);
        assert_eq!(lines.len(), 1);
    }

    #[test]
    fn a_line_over_the_limit_is_written_in_parts() {
        let line = [vec![b'x'; 2 * CONTENT_MAX + 1], b"\n".to_vec()].concat();
        let (lines, bytes) = log_of(&[(Output::Stderr, &line)]);
        let shapes: Vec<_> = lines
            .iter()
            .map(|line| (&line[..8], line.len() - 9))
            .collect();
        assert_eq!(
            shapes,
            [
                ("stderr P", CONTENT_MAX),
                ("stderr P", CONTENT_MAX),
                ("stderr F", 1)
            ]
        );
        assert_eq!(bytes, line.len());
    }

    proptest! {
        #[test]
        fn any_cut_of_the_input_gives_the_same_lines(
            text in "[a\n]{0,400}",
            long in 0_usize..3,
            cuts in prop::collection::vec(1_usize..20_000, 1..20),
        ) {
            let mut input = "y".repeat(long * CONTENT_MAX + text.len());
            input.push_str(&text);
            let whole = log_of(&[(Output::Stdout, input.as_bytes())]);
            let mut chunks = Vec::new();
            let mut rest = input.as_bytes();
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (chunk, tail) = rest.split_at((*cut).min(rest.len()));
                chunks.push((Output::Stdout, chunk));
                rest = tail;
            }
            let cut = log_of(&chunks);
            prop_assert_eq!(&whole, &cut);
            prop_assert_eq!(whole.1, input.len());
            let rebuilt: String = whole.0.iter().map(|line| {
                let newline = if line.contains(" F ") { "\n" } else { "" };
                format!("{}{newline}", &line["stdout F ".len()..])
            }).collect();
            prop_assert_eq!(rebuilt, input);
        }
    }
}
