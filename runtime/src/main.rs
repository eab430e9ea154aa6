//! Isopod: the node's daemon (`isopod serve`) and the commands that people type.
//!
//! One subcommand, one module; what they share is the configuration. `serve` is the whole CRI
//! server, the others are short-lived and talk to it through its socket.

#![allow(
    dead_code,
    unused_imports,
    reason = "the rooms land one after the other; the last one removes this line"
)]

mod chain;
mod clock;
mod config;
mod container;
mod cri;
mod field;
mod id;
mod image;
mod logging;
mod record;
mod sandbox;
mod serve;
mod streaming;
mod table;
mod vm;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Runs every Kubernetes pod in its own microVM.
#[derive(Debug, Parser)]
#[command(name = "isopod", version, about, disable_version_flag = true)]
struct Cli {
    /// The configuration file [default: /etc/isopod/config.toml, or the defaults if there is none]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// error, warn, info, debug, trace, or a filter such as isopod=debug,tonic=warn
    /// [default: the environment's ISOPOD_LOG, then log_level of the configuration]
    #[arg(long, global = true, value_name = "FILTER")]
    log_level: Option<String>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Be the node's CRI server
    Serve(serve::Args),
}

/// Exit status when the command itself failed, rather than what it ran or checked.
const EXIT_FAILURE: u8 = 1;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        Command::Serve(args) => {
            serve::execute(&args, cli.config.as_deref(), cli.log_level.as_deref())
        }
    };
    result.unwrap_or_else(|error| {
        eprintln!("isopod: {error:#}");
        ExitCode::from(EXIT_FAILURE)
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
