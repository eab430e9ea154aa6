//! What `isopod run` takes, and the values' own syntax.

use std::path::PathBuf;

use clap::ValueEnum;

/// What `isopod run` takes.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// The image, as registries name it: `docker.io/library/busybox:latest`
    pub(super) image: String,
    /// The command and its arguments, instead of the image's
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "CMD"
    )]
    pub(super) command: Vec<String>,
    /// Send this command's standard input
    #[arg(short, long)]
    pub(super) interactive: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    pub(super) tty: bool,
    /// When to pull the image
    #[arg(long, value_enum, default_value_t = Pull::Missing)]
    pub(super) pull: Pull,
    /// The pod's name [default: run- and 8 digits]
    #[arg(long)]
    pub(super) name: Option<String>,
    /// Set an environment variable; without a value, pass this command's own
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub(super) env: Vec<String>,
    /// The command's working directory, instead of the image's
    #[arg(
        short,
        long,
        value_name = "DIR",
        default_value = "",
        hide_default_value = true
    )]
    pub(super) workdir: String,
    /// Who runs the command: UID, UID:GID or a name from the image
    #[arg(short, long, value_parser = parse_user)]
    pub(super) user: Option<User>,
    /// Run this instead of the image's entrypoint
    #[arg(long, value_name = "CMD")]
    pub(super) entrypoint: Option<String>,
    /// The runtime handler
    #[arg(
        long,
        value_name = "HANDLER",
        default_value = "",
        hide_default_value = true
    )]
    pub(super) runtime: String,
    /// Limit the memory, in bytes or with a suffix k, m or g
    #[arg(short, long, value_name = "SIZE", value_parser = parse_memory)]
    pub(super) memory: Option<i64>,
    /// Limit the processor time, in processors: 0.5, 2
    #[arg(long, value_name = "COUNT", value_parser = parse_cpus)]
    pub(super) cpus: Option<CpuQuota>,
    /// Leave the pod when the command has ended
    #[arg(long)]
    pub(super) keep: bool,
    /// At the end, say where the time went
    #[arg(long)]
    pub(super) timings: bool,
    /// The daemon's CRI socket [default: the configuration's]
    #[arg(long, value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,
}

/// When to pull.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Pull {
    /// Even if the image is there
    Always,
    /// If the image is not there
    Missing,
    /// Not at all
    Never,
}

/// Who runs the command, in the CRI's terms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum User {
    /// By number, with or without a group.
    Id { uid: u32, gid: Option<u32> },
    /// By name, looked up in the image.
    Name(String),
}

/// A quota in microseconds of every [`CPU_PERIOD_US`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CpuQuota(pub(super) i64);

/// The period of a CPU quota, in microseconds; the kernel's default.
pub(super) const CPU_PERIOD_US: i64 = 100_000;

/// Most processors that a guest has.
const CPUS_MAX: f64 = 64.0;

/// Smallest memory limit, in bytes: less holds no process.
const MEMORY_MIN: i64 = 1024 * 1024;

fn parse_user(text: &str) -> Result<User, String> {
    let id = |text: &str| text.parse::<u32>();
    match text.split_once(':') {
        None if text.is_empty() => Err("is empty".to_owned()),
        None => Ok(match id(text) {
            Ok(uid) => User::Id { uid, gid: None },
            Err(_) => User::Name(text.to_owned()),
        }),
        Some((user, group)) => match (id(user), id(group)) {
            (Ok(uid), Ok(gid)) => Ok(User::Id {
                uid,
                gid: Some(gid),
            }),
            _ => Err("a user with a group is UID:GID, two numbers: the CRI knows no more".into()),
        },
    }
}

fn parse_memory(text: &str) -> Result<i64, String> {
    let lower = text.to_ascii_lowercase();
    let lower = lower
        .strip_suffix("ib")
        .or(lower.strip_suffix('b'))
        .unwrap_or(&lower);
    let (number, shift) = match lower.char_indices().last() {
        Some((end, 'k')) => (&lower[..end], 10),
        Some((end, 'm')) => (&lower[..end], 20),
        Some((end, 'g')) => (&lower[..end], 30),
        _ => (lower, 0),
    };
    let number: i64 = number
        .parse()
        .map_err(|_invalid| "is a number with a suffix k, m or g".to_owned())?;
    let bytes = number.checked_mul(1 << shift).ok_or("is too large")?;
    if bytes < MEMORY_MIN {
        return Err(format!("is at least {MEMORY_MIN} bytes"));
    }
    Ok(bytes)
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "bounded by CPUS_MAX before the cast"
)]
fn parse_cpus(text: &str) -> Result<CpuQuota, String> {
    let cpus: f64 = text
        .parse()
        .map_err(|_invalid| "is a number such as 0.5 or 2".to_owned())?;
    if !(0.01..=CPUS_MAX).contains(&cpus) {
        return Err(format!("is 0.01 to {CPUS_MAX}"));
    }
    Ok(CpuQuota((cpus * 100_000.0).round() as i64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_is_an_id_with_or_without_a_group_or_a_name() {
        assert_eq!(parse_user("7"), Ok(User::Id { uid: 7, gid: None }));
        assert_eq!(
            parse_user("7:8"),
            Ok(User::Id {
                uid: 7,
                gid: Some(8)
            })
        );
        assert_eq!(parse_user("www-data"), Ok(User::Name("www-data".into())));
        for bad in ["", "a:b", "7:", ":7", "7:b"] {
            assert!(parse_user(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn memory_is_bytes_or_has_a_suffix() {
        assert_eq!(parse_memory("1048576"), Ok(1 << 20));
        assert_eq!(parse_memory("256m"), Ok(256 << 20));
        assert_eq!(parse_memory("2G"), Ok(2 << 30));
        assert_eq!(parse_memory("2GiB"), Ok(2 << 30));
        for bad in ["", "m", "-1g", "1", "9999999999g", "1.5g", "1x"] {
            assert!(parse_memory(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn cpus_become_a_quota() {
        assert_eq!(parse_cpus("0.5"), Ok(CpuQuota(50_000)));
        assert_eq!(parse_cpus("2"), Ok(CpuQuota(200_000)));
        for bad in ["", "0", "-1", "NaN", "inf", "65", "a"] {
            assert!(parse_cpus(bad).is_err(), "{bad}");
        }
    }
}
