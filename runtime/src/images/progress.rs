//! How far a pull is, on standard error: a line per layer, redrawn on a terminal, and otherwise once
//! when the layer is there.

use std::collections::HashSet;
use std::io::{IsTerminal as _, Write as _};

use isopod_proto::images::{Layer, LayerState, Progress};

use super::size::human;

/// More layers than that do not fit a small terminal, and are told in one line.
const LINES_MAX: usize = 16;

/// Digits of a digest that people see, as docker shows them.
const SHORT_DIGEST: usize = 12;

/// What is on the screen.
#[derive(Debug)]
pub(super) struct Display {
    mode: Mode,
    /// Lines drawn the last time.
    lines: usize,
    /// Layers that need no other word.
    told: HashSet<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Quiet,
    Lines,
    Terminal,
}

impl Display {
    /// Shows nothing if it is to be quiet.
    pub(super) fn new(quiet: bool) -> Self {
        let mode = match (quiet, std::io::stderr().is_terminal()) {
            (true, _) => Mode::Quiet,
            (false, true) => Mode::Terminal,
            (false, false) => Mode::Lines,
        };
        Self {
            mode,
            lines: 0,
            told: HashSet::new(),
        }
    }

    /// Shows where the pull is now.
    pub(super) fn show(&mut self, progress: &Progress) {
        let text = match self.mode {
            Mode::Quiet => return,
            Mode::Lines => self.news(progress),
            Mode::Terminal => self.redrawn(progress),
        };
        // Nothing depends on its being seen.
        let _ = std::io::stderr().write_all(text.as_bytes());
    }

    /// Layers that have come since the last time.
    fn news(&mut self, progress: &Progress) -> String {
        let done = progress
            .layers
            .iter()
            .filter(|layer| matches!(layer.state(), LayerState::Done | LayerState::Present));
        let new = done.filter(|layer| self.told.insert(layer.digest.clone()));
        new.map(|layer| format!("{}\n", line(layer))).collect()
    }

    fn redrawn(&mut self, progress: &Progress) -> String {
        let lines: Vec<String> = match progress.layers.len() {
            0 => return String::new(),
            1..=LINES_MAX => progress.layers.iter().map(line).collect(),
            _ => vec![total(&progress.layers)],
        };
        // Up to the first line of the last time; then every line anew, and what is left of the old
        // one erased (ECMA-48 CUU and EL).
        let mut text = match self.lines {
            0 => String::new(),
            lines => format!("\x1b[{lines}A"),
        };
        for line in &lines {
            text.push_str(&format!("{line}\x1b[K\n"));
        }
        self.lines = lines.len();
        text
    }
}

fn line(layer: &Layer) -> String {
    let digits = layer.digest.strip_prefix("sha256:");
    let digits = digits.unwrap_or(&layer.digest);
    let short = digits.get(..SHORT_DIGEST).unwrap_or(digits);
    let size = human(layer.size_bytes);
    match layer.state() {
        LayerState::Waiting => format!("{short}: Waiting"),
        LayerState::Downloading => {
            // What is received again after a layer failed counts twice.
            let received = human(layer.received_bytes.min(layer.size_bytes));
            format!("{short}: Downloading {received}/{size}")
        }
        LayerState::Done => format!("{short}: Pull complete {size}"),
        LayerState::Present => format!("{short}: Already exists"),
    }
}

fn total(layers: &[Layer]) -> String {
    let done = layers
        .iter()
        .filter(|layer| matches!(layer.state(), LayerState::Done | LayerState::Present));
    let received = layers.iter().map(|layer| match layer.state() {
        LayerState::Present => layer.size_bytes,
        _ => layer.received_bytes.min(layer.size_bytes),
    });
    let size = layers.iter().map(|layer| layer.size_bytes);
    format!(
        "{}/{} layers, {}/{}",
        done.count(),
        layers.len(),
        human(received.fold(0, u64::saturating_add)),
        human(size.fold(0, u64::saturating_add)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(digit: &str, state: LayerState) -> Layer {
        Layer {
            digest: format!("sha256:{}", digit.repeat(64)),
            size_bytes: 2_000_000,
            received_bytes: 1_500_000,
            state: state.into(),
        }
    }

    fn display(mode: Mode) -> Display {
        Display {
            mode,
            lines: 0,
            told: HashSet::new(),
        }
    }

    #[test]
    fn without_a_terminal_a_layer_is_told_once_when_it_is_there() {
        let mut display = display(Mode::Lines);
        let mut progress = Progress {
            layers: vec![
                layer("a", LayerState::Downloading),
                layer("b", LayerState::Present),
            ],
        };
        assert_eq!(display.news(&progress), "bbbbbbbbbbbb: Already exists\n");
        progress.layers[0] = layer("a", LayerState::Done);
        assert_eq!(display.news(&progress), "aaaaaaaaaaaa: Pull complete 2MB\n");
        assert_eq!(display.news(&progress), "");
    }

    #[test]
    fn a_terminal_s_lines_are_drawn_over() {
        let mut display = display(Mode::Terminal);
        let progress = Progress {
            layers: vec![
                layer("a", LayerState::Downloading),
                layer("b", LayerState::Waiting),
            ],
        };
        let lines = "aaaaaaaaaaaa: Downloading 1.5MB/2MB\x1b[K\nbbbbbbbbbbbb: Waiting\x1b[K\n";
        assert_eq!(display.redrawn(&progress), lines);
        assert_eq!(display.redrawn(&progress), format!("\x1b[2A{lines}"));
    }

    #[test]
    fn many_layers_are_one_line() {
        let mut display = display(Mode::Terminal);
        let mut layers = vec![layer("a", LayerState::Downloading); 99];
        layers.push(layer("b", LayerState::Present));
        let text = display.redrawn(&Progress { layers });
        assert_eq!(text, "1/100 layers, 151MB/200MB\x1b[K\n");
    }
}
