//! Results: for people a table, for programs lines `ratio NAME PEER X`.

use std::fmt;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::Serialize;

/// One measured thing.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    name: &'static str,
    what: &'static str,
    unit: &'static str,
    /// Sorted, in the unit.
    values: Vec<f64>,
}

impl Row {
    /// Durations, shown in milliseconds.
    #[must_use]
    pub fn times(name: &'static str, what: &'static str, values: Vec<Duration>) -> Self {
        let values = values.into_iter().map(|time| time.as_secs_f64() * 1e3);
        Self::new(name, what, "ms", values)
    }

    /// Bytes, shown in MiB.
    #[must_use]
    pub fn sizes(name: &'static str, what: &'static str, values: Vec<u64>) -> Self {
        let values = values
            .into_iter()
            .map(|bytes| f64::from(kib(bytes)) / 1024.0);
        Self::new(name, what, "MiB", values)
    }

    /// So many bytes in each of these times, shown in MiB a second.
    #[must_use]
    pub fn rates(
        name: &'static str,
        what: &'static str,
        bytes: u64,
        values: Vec<Duration>,
    ) -> Self {
        let mib = f64::from(kib(bytes)) / 1024.0;
        let values = values.into_iter().map(|time| mib / time.as_secs_f64());
        Self::new(name, what, "MiB/s", values)
    }

    /// So many of something in each of these times, shown as how many in a second.
    #[must_use]
    pub fn frequencies(
        name: &'static str,
        what: &'static str,
        count: u32,
        values: Vec<Duration>,
    ) -> Self {
        let values = values
            .into_iter()
            .map(|time| f64::from(count) / time.as_secs_f64());
        Self::new(name, what, "1/s", values)
    }

    fn new(
        name: &'static str,
        what: &'static str,
        unit: &'static str,
        values: impl Iterator<Item = f64>,
    ) -> Self {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        Self {
            name,
            what,
            unit,
            values,
        }
    }

    /// The one in the middle, the lower one of two.
    fn median(&self) -> f64 {
        let middle = self.values.len().saturating_sub(1) / 2;
        self.values.get(middle).copied().unwrap_or(f64::NAN)
    }
}

/// In KiB they fit: nothing here takes 4 TiB.
fn kib(bytes: u64) -> u32 {
    u32::try_from(bytes >> 10).unwrap_or(u32::MAX)
}

/// Everything that was measured in one run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Table {
    /// In the order in which they are shown.
    pub rows: Vec<Row>,
    /// Name, the peer's name, the name of the peer's row.
    pub ratios: Vec<(&'static str, &'static str, &'static str)>,
}

impl Table {
    /// Every value, as JSON.
    ///
    /// # Errors
    /// Never: it is made of names and numbers.
    pub fn json(&self) -> Result<String> {
        serde_json::to_string_pretty(self).context("writing JSON")
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<32} {:>10} {:>10} {:>10}",
            "", "median", "least", "most"
        )?;
        for row in &self.rows {
            let end = |value: Option<&f64>| value.copied().unwrap_or(f64::NAN);
            writeln!(
                f,
                "{:<32} {:>10.2} {:>10.2} {:>10.2} {:<5} {}",
                row.name,
                row.median(),
                end(row.values.first()),
                end(row.values.last()),
                row.unit,
                row.what,
            )?;
        }
        for (name, peer, peers_row) in &self.ratios {
            let median = |name: &str| {
                self.rows
                    .iter()
                    .find(|row| row.name == name)
                    .map_or(f64::NAN, Row::median)
            };
            writeln!(
                f,
                "ratio {name} {peer} {:.3}",
                median(name) / median(peers_row)
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(name: &'static str, milliseconds: &[u64]) -> Row {
        Row::times(
            name,
            "x",
            milliseconds
                .iter()
                .copied()
                .map(Duration::from_millis)
                .collect(),
        )
    }

    #[test]
    fn the_ratio_is_that_of_the_medians() {
        let table = Table {
            rows: vec![times("a", &[900, 100, 110]), times("b", &[220, 210, 1])],
            ratios: vec![("a", "peer", "b")],
        };
        let text = table.to_string();
        assert_eq!(text.lines().last(), Some("ratio a peer 0.524"), "{text}");
    }

    #[test]
    fn a_row_shows_median_and_extremes() {
        let table = Table {
            rows: vec![times("a", &[30, 10, 20])],
            ratios: vec![],
        };
        let text = table.to_string();
        let row: Vec<&str> = text.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(row[..5], ["a", "20.00", "10.00", "30.00", "ms"]);
    }

    #[test]
    fn sizes_are_in_mebibytes() {
        let row = Row::sizes("m", "x", vec![3 << 19]);
        assert_eq!((row.median(), row.unit), (1.5, "MiB"));
    }
    #[test]
    fn json_has_every_value() {
        let table = Table {
            rows: vec![times("a", &[30, 10])],
            ratios: vec![("a", "peer", "a")],
        };
        let json: serde_json::Value = serde_json::from_str(&table.json().unwrap()).unwrap();
        assert_eq!(json["rows"][0]["values"], serde_json::json!([10.0, 30.0]));
        assert_eq!(json["ratios"][0][1], "peer");
    }

    #[test]
    fn rates_are_in_mebibytes_a_second() {
        let times = vec![Duration::from_millis(500), Duration::from_secs(4)];
        let row = Row::rates("r", "x", 64 << 20, times);
        assert_eq!((row.values, row.unit), (vec![16.0, 128.0], "MiB/s"));
    }

    #[test]
    fn frequencies_are_in_times_a_second() {
        let times = vec![Duration::from_millis(500), Duration::from_secs(4)];
        let row = Row::frequencies("r", "x", 100, times);
        assert_eq!((row.values, row.unit), (vec![25.0, 200.0], "1/s"));
    }
}
