//! How many tests passed, failed and were skipped, from what test binaries print.

use std::fmt;
use std::io::{BufRead, BufReader, Read};
use std::ops::AddAssign;

/// A sum over test binaries.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Count {
    /// Tests that passed.
    pub(super) passed: u64,
    /// Tests that failed.
    pub(super) failed: u64,
    /// Tests that were ignored, or said that they cannot run here.
    pub(super) skipped: u64,
    /// Of the skipped ones, those that the test harness still has to count as passed.
    passed_over: u64,
}

impl Count {
    /// Reads lines to the end, shows each one, and counts.
    pub(super) fn read(output: impl Read) -> Self {
        let mut count = Self::default();
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            println!("{line}");
            count.line(&line);
        }
        count
    }

    /// Counts the results in one binary's output, which may break off in the middle.
    pub(super) fn of(log: &str) -> Self {
        let mut count = Self::default();
        let mut alone = Self::default();
        for line in log.lines() {
            count.line(line);
            let result = line.split_once(" ... ").map_or(line, |(_, result)| result);
            match result {
                "ok" => alone.passed += 1,
                // What a failing test prints comes between its name and its result.
                "FAILED" => alone.failed += 1,
                _ => {}
            }
        }
        if log.contains("test result: ") {
            count
        } else {
            alone
        }
    }

    /// Counts what one line says.
    fn line(&mut self, line: &str) {
        if line.starts_with("skipped ") {
            // The test harness counts it as passed.
            self.skipped += 1;
            self.passed_over += 1;
        }
        let Some((_, numbers)) = line.split_once("test result: ") else {
            return;
        };
        for part in numbers.split([';', '.']) {
            let mut words = part.split_whitespace();
            let (Some(number), Some(what)) = (words.next(), words.next()) else {
                continue;
            };
            let Ok(number) = number.parse::<u64>() else {
                continue;
            };
            match what {
                "passed" => {
                    self.passed += number.saturating_sub(self.passed_over);
                    self.passed_over = 0;
                }
                "failed" => self.failed += number,
                "ignored" => self.skipped += number,
                _ => {}
            }
        }
    }
}

impl AddAssign for Count {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
        self.passed_over += other.passed_over;
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} passed, {} failed, {} skipped",
            self.passed, self.failed, self.skipped
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_an_output_that_breaks_off_are_counted_one_by_one() {
        let log = "running 4 tests\ntest a ... ok\ntest b ... ---- a log\n\nFAILED\ntest c ... ";
        let count = Count::of(log);
        assert_eq!((count.passed, count.failed), (1, 1));
        let whole = "test a ... ok\ntest result: ok. 1 passed; 0 failed; 0 ignored\n";
        assert_eq!(Count::of(whole).passed, 1);
    }

    #[test]
    fn results_of_several_binaries_add_up() {
        let output = "running 3 tests\ntest a ... ok\n\
            test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 4 filtered out; finished in 0.01s\n\
            test result: FAILED. 5 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.00s\n";
        let count = Count::read(output.as_bytes());
        assert_eq!(
            count,
            Count {
                passed: 7,
                failed: 2,
                skipped: 1,
                passed_over: 0
            }
        );
        assert_eq!(count.to_string(), "7 passed, 2 failed, 1 skipped");
    }

    #[test]
    fn a_test_that_says_it_was_skipped_has_not_passed() {
        let mut count = Count::default();
        count.line("skipped walkthrough: needs KVM: no /dev/kvm");
        count.line("test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out");
        assert_eq!(
            count,
            Count {
                passed: 1,
                failed: 0,
                skipped: 1,
                passed_over: 0
            }
        );
    }
}
