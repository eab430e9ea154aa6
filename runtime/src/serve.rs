//! `isopod serve`: loads the configuration and becomes the CRI server.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::config::{self, Config};
use crate::cri;
use crate::logging;

/// What `isopod serve` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Print the documented configuration file with every default, and exit
    #[arg(long)]
    print_default_config: bool,
}

/// Runs the daemon until it is told to stop.
pub(crate) fn execute(
    args: &Args,
    config: Option<&Path>,
    log_level: Option<&str>,
) -> Result<ExitCode> {
    if args.print_default_config {
        print!("{}", config::SAMPLE);
        return Ok(ExitCode::SUCCESS);
    }
    let config = Config::load(config)?;
    logging::init(log_level, &config.log_level)?;
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("starting the asynchronous runtime")?
        .block_on(cri::serve(config))?;
    Ok(ExitCode::SUCCESS)
}
