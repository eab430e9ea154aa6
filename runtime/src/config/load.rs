//! From a file to a [`Config`], or to everything that is wrong with it.

use std::fmt;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::validate::validate;
use super::{Config, DEFAULT_PATH, EndpointConfig};

/// Most problems that one report lists.
const PROBLEMS_MAX: usize = 50;

/// Largest configuration file, in bytes.
const FILE_MAX: u64 = 1024 * 1024;

/// The table whose keys are the user's to choose: registry host to endpoints.
const MIRRORS: &str = "registry.mirrors";

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    /// The file cannot be read.
    #[error("reading the configuration {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is larger than a configuration can be.
    #[error("the configuration {} is over {FILE_MAX} bytes", path.display())]
    Size {
        /// The file.
        path: PathBuf,
    },
    /// The file is no TOML.
    #[error("the configuration {} is not valid TOML", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// The file says what cannot be.
    #[error("{}{}", heading(path, problems.len()), listed(problems))]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, in the order of the keys.
        problems: Vec<Problem>,
    },
}

/// One thing that is wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    /// The key's path, such as `vm.memory_mib`.
    pub(crate) key: String,
    /// What is wrong and what to do.
    pub(crate) message: String,
}

impl Problem {
    pub(super) fn new(key: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            key: key.into(),
            message: message.into(),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.message)
    }
}

fn heading(path: &Path, problems: usize) -> String {
    let noun = if problems == 1 { "problem" } else { "problems" };
    format!("{problems} {noun} in {}", path.display())
}

fn listed(problems: &[Problem]) -> String {
    let mut lines: String = problems
        .iter()
        .take(PROBLEMS_MAX)
        .map(|problem| format!("\n  {problem}"))
        .collect();
    if problems.len() > PROBLEMS_MAX {
        lines.push_str("\n  and more");
    }
    lines
}

impl Config {
    /// Reads the file that the user named, or else [`DEFAULT_PATH`] if it is there.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] when a file that must be there is not, or cannot be used.
    pub(crate) fn load(named: Option<&Path>) -> Result<Self, ConfigError> {
        match named {
            Some(path) => Self::read(path),
            None => match Self::read(Path::new(DEFAULT_PATH)) {
                Err(ConfigError::Read { source, .. })
                    if source.kind() == std::io::ErrorKind::NotFound =>
                {
                    Ok(Self::default())
                }
                result => result,
            },
        }
    }

    fn read(path: &Path) -> Result<Self, ConfigError> {
        let error = |source| ConfigError::Read {
            path: path.to_owned(),
            source,
        };
        if std::fs::metadata(path).map_err(error)?.len() > FILE_MAX {
            return Err(ConfigError::Size {
                path: path.to_owned(),
            });
        }
        Self::parse(&std::fs::read_to_string(path).map_err(error)?, path)
    }

    /// Reads a configuration file's text; `path` is for messages.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Syntax`] and [`ConfigError::Invalid`].
    pub(super) fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let table: Table = text.parse().map_err(|source| ConfigError::Syntax {
            path: path.to_owned(),
            source: Box::new(source),
        })?;
        let mut reader = Reader {
            accepted: schema(),
            problems: Vec::new(),
        };
        reader.table(&table, &mut Vec::new());
        let config = from_table(reader.accepted).expect("every value of it was tried alone");
        let mut problems = reader.problems;
        problems.extend(validate(&config));
        if problems.is_empty() {
            Ok(config)
        } else {
            Err(ConfigError::Invalid {
                path: path.to_owned(),
                problems,
            })
        }
    }
}

/// The defaults as a table: which keys there are, and of which type.
pub(super) fn schema() -> Table {
    Table::try_from(Config::default()).expect("the defaults have a TOML form")
}

fn from_table(table: Table) -> Result<Config, toml::de::Error> {
    Value::Table(table).try_into()
}

/// Walks a file's table beside the schema and keeps what is right.
struct Reader {
    /// The defaults, overwritten by what the file says and may say.
    accepted: Table,
    problems: Vec<Problem>,
}

impl Reader {
    fn table(&mut self, table: &Table, path: &mut Vec<String>) {
        for (key, value) in table {
            path.push(key.clone());
            let name = key_path(path);
            let known = lookup(&self.accepted, path).cloned();
            match (known, value) {
                (None, _) => self.problem(&name, self.unknown(path)),
                (Some(Value::Table(_)), Value::Table(mirrors)) if name == MIRRORS => {
                    self.mirrors(mirrors, path);
                }
                (Some(Value::Table(_)), Value::Table(table)) => self.table(table, path),
                (Some(known), value) if !known.same_type(value) => {
                    self.problem(&name, wrong_type(&known, value));
                }
                (Some(_), value) => self.leaf(value, path),
            }
            path.pop();
        }
    }

    /// Takes a value of the right TOML type, unless it alone makes the configuration unreadable.
    fn leaf(&mut self, value: &Value, path: &[String]) {
        let mut alone = schema();
        insert(&mut alone, path, value.clone());
        match from_table(alone) {
            Ok(_) => insert(&mut self.accepted, path, value.clone()),
            Err(error) => self.problem(&key_path(path), error.message()),
        }
    }

    fn mirrors(&mut self, mirrors: &Table, path: &[String]) {
        for (registry, endpoints) in mirrors {
            let mut path = path.to_vec();
            path.push(registry.clone());
            let name = key_path(&path);
            let Value::Array(endpoints) = endpoints else {
                let message = "must be an array of endpoints, such as [{ host = \"127.0.0.1:5000\", plain_http = true }]";
                self.problem(&name, message);
                continue;
            };
            let problems = self.problems.len();
            for (index, endpoint) in endpoints.iter().enumerate() {
                if let Err(error) = endpoint.clone().try_into::<EndpointConfig>() {
                    let message = error.message().to_owned();
                    self.problem(&format!("{name}[{index}]"), message);
                }
            }
            if self.problems.len() == problems {
                insert(&mut self.accepted, &path, Value::Array(endpoints.clone()));
            }
        }
    }

    fn unknown(&self, path: &[String]) -> String {
        let (key, parents) = path.split_last().expect("a key was pushed before the call");
        let siblings: Vec<&String> = match lookup(&self.accepted, parents) {
            Some(Value::Table(table)) => table.keys().collect(),
            _ => self.accepted.keys().collect(),
        };
        let near = siblings
            .iter()
            .map(|sibling| (distance(sibling, key), sibling))
            .min();
        match near {
            Some((distance, sibling)) if distance <= key.len() / 3 => {
                format!("unknown key; did you mean `{sibling}`?")
            }
            _ => {
                let known: Vec<String> = siblings.iter().map(|key| format!("`{key}`")).collect();
                format!("unknown key; known here are {}", known.join(", "))
            }
        }
    }

    fn problem(&mut self, key: &str, message: impl Into<String>) {
        self.problems.push(Problem::new(key, message));
    }
}

fn wrong_type(known: &Value, value: &Value) -> String {
    format!(
        "must be {}, such as {known}; {} was found",
        article(known.type_str()),
        article(value.type_str())
    )
}

fn article(noun: &str) -> String {
    let article = if noun.starts_with(['a', 'i']) {
        "an"
    } else {
        "a"
    };
    format!("{article} {noun}")
}

/// A key's path as TOML writes it.
fn key_path(path: &[String]) -> String {
    let bare = |key: &str| {
        !key.is_empty()
            && key
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
    };
    path.iter()
        .map(|key| {
            if bare(key) {
                key.clone()
            } else {
                format!("{key:?}")
            }
        })
        .collect::<Vec<_>>()
        .join(".")
}

fn lookup<'a>(table: &'a Table, path: &[String]) -> Option<&'a Value> {
    let (first, rest) = path.split_first()?;
    let value = table.get(first)?;
    if rest.is_empty() {
        Some(value)
    } else {
        lookup(value.as_table()?, rest)
    }
}

/// Puts a value where the schema has one, or into a table that the schema has.
fn insert(table: &mut Table, path: &[String], value: Value) {
    match path {
        [] => {}
        [key] => {
            table.insert(key.clone(), value);
        }
        [first, rest @ ..] => {
            if let Some(Value::Table(inner)) = table.get_mut(first) {
                insert(inner, rest, value);
            }
        }
    }
}

/// How many letters must be added, removed or changed to make one word of the other.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().take(64).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, left) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, right) in b.iter().enumerate() {
            let change = diagonal + usize::from(left != *right);
            diagonal = row[j + 1];
            row[j + 1] = change.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::SAMPLE;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(text, Path::new("test.toml"))
    }

    fn problems(text: &str) -> Vec<String> {
        match parse(text) {
            Err(ConfigError::Invalid { problems, .. }) => {
                problems.iter().map(ToString::to_string).collect()
            }
            other => panic!("expected problems, not {other:?}"),
        }
    }

    /// Every key path, as it must stand in the sample.
    fn keys(table: &Table, prefix: &str) -> Vec<String> {
        let mut paths = Vec::new();
        for (key, value) in table {
            let path = if prefix.is_empty() {
                key.clone()
            } else {
                format!("{prefix}.{key}")
            };
            match value {
                Value::Table(inner) if path != MIRRORS => paths.extend(keys(inner, &path)),
                _ => paths.push(path),
            }
        }
        paths
    }

    #[test]
    fn sample_holds_every_key_and_parses_to_the_defaults() {
        assert_eq!(parse(SAMPLE).unwrap(), Config::default());
        let sample: Table = SAMPLE.parse().unwrap();
        assert_eq!(keys(&sample, ""), keys(&schema(), ""));
    }

    #[test]
    fn sample_documents_every_key_and_table_right_before_it() {
        let lines: Vec<&str> = SAMPLE.lines().collect();
        for (number, line) in lines.iter().enumerate() {
            if !line.is_empty() && !line.starts_with('#') {
                let before = number.checked_sub(1).map(|n| lines[n]);
                assert!(
                    before.is_some_and(|line| line.starts_with("# ")),
                    "line {}: {line}",
                    number + 1
                );
            }
        }
    }

    #[test]
    fn sample_shows_a_mirror_table_that_works() {
        let example: String = SAMPLE
            .lines()
            .skip_while(|line| *line != "# [registry.mirrors]")
            .take_while(|line| line.starts_with('#'))
            .map(|line| format!("{}\n", &line[2..]))
            .collect();
        let config = parse(&example).unwrap();
        assert_eq!(config.registry.mirrors["docker.io"].len(), 2);
        assert!(config.registry.mirrors["docker.io"][1].plain_http);
    }

    #[test]
    fn empty_file_is_the_defaults() {
        assert_eq!(parse("").unwrap(), Config::default());
    }

    #[test]
    fn every_problem_of_a_file_is_told_with_its_key_path() {
        let found = problems(
            r#"
            sokcet = "/run/x.sock"
            root_dir = "relative"
            log_level = "isopod=loud"
            [vm]
            memory_mib = "256"
            max_vcpus = 0
            scratch_mib = -1
            colour = "red"
            [streaming]
            address = "nowhere"
            [registry.mirrors]
            "docker.io" = [{ host = "a:5000", plain_htpp = true }, { host = "http://b" }]
            "quay.io" = "b"
            [network]
            "#,
        );
        let expect = [
            ("sokcet: ", "did you mean `socket`?"),
            ("root_dir: ", "absolute path"),
            ("log_level: ", "level"),
            (
                "vm.memory_mib: ",
                "must be an integer, such as 256; a string was found",
            ),
            ("vm.max_vcpus: ", "1 to 64"),
            ("vm.scratch_mib: ", "u64"),
            ("vm.colour: ", "known here are `agent_image`"),
            ("streaming.address: ", "socket address"),
            ("registry.mirrors.\"docker.io\"[0]: ", "plain_htpp"),
            ("registry.mirrors.\"quay.io\": ", "array of endpoints"),
            ("network: ", "unknown key"),
        ];
        for (key, part) in expect {
            assert!(
                found
                    .iter()
                    .any(|problem| problem.starts_with(key) && problem.contains(part)),
                "{key}{part} is missing in {found:#?}"
            );
        }
        assert_eq!(found.len(), expect.len(), "{found:#?}");
    }

    #[test]
    fn report_names_the_file_and_counts() {
        let text = parse("a = 1\nb = 2").unwrap_err().to_string();
        assert!(
            text.starts_with("2 problems in test.toml\n  a: unknown key"),
            "{text}"
        );
    }

    #[test]
    fn text_that_is_no_toml_is_told_with_its_line() {
        let error = parse("socket = \n").unwrap_err();
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert!(source.contains("line 1"), "{source}");
    }

    #[test]
    fn named_file_that_is_missing_is_an_error() {
        let error = Config::load(Some(Path::new("/nonexistent/config.toml"))).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/config.toml"));
    }

    #[test]
    fn named_file_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        std::fs::write(&path, "[vm]\nmemory_mib = 512\n").unwrap();
        assert_eq!(Config::load(Some(&path)).unwrap().vm.memory_mib, 512);
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_or_refused_without_panic(text in ".{0,200}") {
            let _ = parse(&text);
        }
    }
}
