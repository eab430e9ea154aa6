//! The kernel's configuration as it is asked for: `CONFIG_NAME=value` lines under `##` headings.
//!
//! A heading says why the lines below it are there, so a line without one is an error. After
//! `make allnoconfig` has filled in the rest, [`Fragment::check`] compares: Kconfig drops an option
//! whose dependencies are not met without a word.

use std::collections::BTreeMap;
use std::fmt;

/// The project's kernel configuration.
pub const KERNEL_CONFIG: &str = include_str!("../kernel.config");

/// What a fragment can have wrong.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum FragmentError {
    /// A line is neither a comment nor `CONFIG_NAME=value`.
    #[error("line {line}: {text:?} is not CONFIG_NAME=value")]
    Syntax {
        /// Its number, from 1.
        line: usize,
        /// What it says.
        text: String,
    },
    /// A line stands before the first heading.
    #[error("line {line}: {name} is in no group; a group's heading says why its options are there")]
    NoGroup {
        /// Its number, from 1.
        line: usize,
        /// The option.
        name: String,
    },
    /// The same option twice.
    #[error("line {line}: {name} was set before")]
    Twice {
        /// Its number, from 1.
        line: usize,
        /// The option.
        name: String,
    },
    /// The kernel's `.config` differs from what was asked.
    #[error("{} did not take:\n{}", options(.0), list(.0))]
    Refused(Vec<Refusal>),
}

/// An option that Kconfig did not set as asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// `CONFIG_...`.
    pub name: String,
    /// The value in the fragment.
    pub asked: String,
    /// The value in `.config`; `n` when absent.
    pub got: String,
}

/// A parsed fragment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fragment {
    options: BTreeMap<String, String>,
}

impl Fragment {
    /// Reads a fragment.
    ///
    /// # Errors
    ///
    /// [`FragmentError`] for the first line that cannot stand.
    pub fn parse(text: &str) -> Result<Self, FragmentError> {
        let mut options = BTreeMap::new();
        let mut in_group = false;
        for (number, text) in (1..).zip(text.lines()) {
            let text = text.trim_end();
            if text.starts_with("## ") {
                in_group = true;
            }
            if text.is_empty() || text.starts_with('#') {
                continue;
            }
            let (name, value) = text
                .split_once('=')
                .filter(|(name, value)| is_name(name) && !value.is_empty())
                .ok_or_else(|| FragmentError::Syntax {
                    line: number,
                    text: text.to_owned(),
                })?;
            if !in_group {
                return Err(FragmentError::NoGroup {
                    line: number,
                    name: name.to_owned(),
                });
            }
            if options.insert(name.to_owned(), value.to_owned()).is_some() {
                return Err(FragmentError::Twice {
                    line: number,
                    name: name.to_owned(),
                });
            }
        }
        Ok(Self { options })
    }

    /// Every option's name and value, sorted by name.
    pub fn options(&self) -> impl Iterator<Item = (&str, &str)> {
        self.options
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// Compares with the `.config` that Kconfig made of this fragment.
    ///
    /// # Errors
    ///
    /// [`FragmentError::Refused`] with every option that did not take.
    pub fn check(&self, dot_config: &str) -> Result<(), FragmentError> {
        let got: BTreeMap<&str, &str> = dot_config
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| line.split_once('='))
            .collect();
        let refused: Vec<Refusal> = self
            .options()
            .filter_map(|(name, asked)| {
                let got = got.get(name).copied().unwrap_or("n");
                (got != asked).then(|| Refusal {
                    name: name.to_owned(),
                    asked: asked.to_owned(),
                    got: got.to_owned(),
                })
            })
            .collect();
        if refused.is_empty() {
            Ok(())
        } else {
            Err(FragmentError::Refused(refused))
        }
    }
}

/// The options alone, sorted by name: what the kernel depends on.
impl fmt::Display for Fragment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.options()
            .try_for_each(|(name, value)| writeln!(f, "{name}={value}"))
    }
}

fn is_name(name: &str) -> bool {
    name.strip_prefix("CONFIG_").is_some_and(|rest| {
        !rest.is_empty()
            && rest
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    })
}

fn options(refused: &[Refusal]) -> String {
    match refused.len() {
        1 => "1 kernel option".to_owned(),
        many => format!("{many} kernel options"),
    }
}

fn list(refused: &[Refusal]) -> String {
    let lines: Vec<String> = refused
        .iter()
        .map(|refusal| {
            format!(
                "  {}: asked for {}, got {}",
                refusal.name, refusal.asked, refusal.got
            )
        })
        .collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_order_do_not_change_what_a_fragment_says() {
        let one = Fragment::parse("## why\nCONFIG_B=n\nCONFIG_A=y\n").unwrap();
        let two = Fragment::parse("## why\nCONFIG_A=y\n\n## because\nCONFIG_B=n\n").unwrap();
        assert_eq!(one.to_string(), "CONFIG_A=y\nCONFIG_B=n\n");
        assert_eq!(one.to_string(), two.to_string());
    }

    #[test]
    fn the_projects_own_fragment_parses() {
        let fragment = Fragment::parse(KERNEL_CONFIG).unwrap();
        assert!(
            fragment
                .options()
                .any(|option| option == ("CONFIG_PVH", "y"))
        );
    }

    #[test]
    fn a_config_that_has_every_line_passes() {
        let fragment =
            Fragment::parse("## why\nCONFIG_A=y\nCONFIG_B=n\nCONFIG_C=\"x y\"\n").unwrap();
        fragment
            .check("CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=\"x y\"\nCONFIG_D=y\n")
            .unwrap();
    }

    #[test]
    fn every_option_that_did_not_take_is_named() {
        let fragment = Fragment::parse("## why\nCONFIG_A=y\nCONFIG_B=n\nCONFIG_C=7\n").unwrap();
        let error = fragment
            .check("# CONFIG_A is not set\nCONFIG_B=y\nCONFIG_C=7\n")
            .unwrap_err();
        let sentence = error.to_string();
        assert!(sentence.contains("2 kernel options"), "{sentence}");
        assert!(
            sentence.contains("CONFIG_A: asked for y, got n"),
            "{sentence}"
        );
        assert!(
            sentence.contains("CONFIG_B: asked for n, got y"),
            "{sentence}"
        );
        assert!(!sentence.contains("CONFIG_C"), "{sentence}");
    }

    #[test]
    fn an_option_without_a_reason_is_refused() {
        let name = "CONFIG_A".to_owned();
        assert_eq!(
            Fragment::parse("# no heading\nCONFIG_A=y\n"),
            Err(FragmentError::NoGroup { line: 2, name })
        );
    }

    #[test]
    fn an_option_given_twice_is_refused() {
        let name = "CONFIG_A".to_owned();
        assert_eq!(
            Fragment::parse("## why\nCONFIG_A=y\nCONFIG_A=n\n"),
            Err(FragmentError::Twice { line: 3, name })
        );
    }

    #[test]
    fn a_line_that_is_no_assignment_is_refused() {
        for text in [
            "CONFIG_A",
            "A=y",
            "CONFIG_=y",
            "CONFIG_A=",
            "CONFIG_A B=y",
            " CONFIG_A=y",
        ] {
            assert!(
                matches!(
                    Fragment::parse(&format!("## why\n{text}\n")),
                    Err(FragmentError::Syntax { line: 2, .. })
                ),
                "{text:?}"
            );
        }
    }
}
