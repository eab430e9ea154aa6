//! Isopod: the node's daemon (`isopod serve`) and the commands that people type.
//!
//! One subcommand, one module; what they share is the configuration. `serve` is the whole CRI
//! server, the others are short-lived and talk to it through its socket.

mod cgroup;
mod chain;
mod client;
mod clock;
mod config;
mod container;
mod cri;
mod doctor;
mod events;
mod field;
mod id;
#[allow(
    dead_code,
    unused_imports,
    reason = "parts of it wait for their callers"
)]
mod image;
mod images;
mod logging;
mod metrics;
mod network;
mod record;
mod run;
mod sandbox;
mod stats;
mod streaming;
mod table;
mod version;
mod vm;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use tokio::runtime::Runtime;

use crate::config::Config;
use crate::images::ImagesError;
use crate::version::OutputFormat;

/// Runs every Kubernetes pod in its own microVM.
#[derive(Debug, Parser)]
#[command(name = "isopod", version, about, disable_version_flag = true)]
struct Cli {
    /// The configuration file [default: /etc/isopod/config.toml, or the defaults if there is none]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Be the node's CRI server
    Serve(ServeArgs),
    /// Run a command in a pod of its own
    Run(Box<run::Args>),
    /// List the images on this node
    Images(images::ListArgs),
    /// Pull images from their registries
    Pull(images::PullArgs),
    /// Remove images
    Rmi(images::RemoveArgs),
    /// Bring images in and out without a registry
    #[command(subcommand)]
    Image(ImageCommand),
    /// Check whether this machine can run microVMs, and say what to do if not
    Doctor(DoctorArgs),
    /// Tell what is installed here and what runs
    Version(VersionArgs),
}

#[derive(Debug, Subcommand)]
enum ImageCommand {
    /// Bring in the images of an OCI archive or folder
    Import(images::ImportArgs),
    /// Write images to an OCI archive
    Export(images::ExportArgs),
}

#[derive(Debug, clap::Args)]
struct ServeArgs {
    /// Print the documented configuration file with every default, and exit
    #[arg(long)]
    print_default_config: bool,
    /// error, warn, info, debug, trace, or a filter such as isopod=debug,tonic=warn
    /// [default: the environment's ISOPOD_LOG, then log_level of the configuration]
    #[arg(long, value_name = "FILTER")]
    log_level: Option<String>,
}

#[derive(Debug, clap::Args)]
struct DoctorArgs {
    /// How to print it
    #[arg(short, long, value_enum, default_value_t)]
    output: OutputFormat,
}

#[derive(Debug, clap::Args)]
struct VersionArgs {
    /// The daemon's CRI socket [default: the configuration's]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// How to print it
    #[arg(short, long, value_enum, default_value_t)]
    output: OutputFormat,
}

/// Exit status when the command itself failed, rather than what it ran or checked.
const EXIT_FAILURE: u8 = 1;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let config = cli.config.as_deref();
    let (result, failure) = match cli.command {
        Command::Serve(args) => (serve(&args, config), EXIT_FAILURE),
        Command::Run(args) => (run(&args, config), run::EXIT_RUN_FAILED),
        Command::Images(args) => (
            ask(config, async |socket| images::list(&args, &socket).await),
            EXIT_FAILURE,
        ),
        Command::Pull(args) => (
            ask(config, async |socket| images::pull(&args, &socket).await),
            EXIT_FAILURE,
        ),
        Command::Rmi(args) => (
            ask(config, async |socket| images::remove(&args, &socket).await),
            EXIT_FAILURE,
        ),
        Command::Image(ImageCommand::Import(args)) => (
            ask(config, async |socket| images::import(&args, &socket).await),
            EXIT_FAILURE,
        ),
        Command::Image(ImageCommand::Export(args)) => (
            ask(config, async |socket| images::export(&args, &socket).await),
            EXIT_FAILURE,
        ),
        Command::Doctor(args) => (Ok(doctor(&args, config)), EXIT_FAILURE),
        Command::Version(args) => (version(&args, config), EXIT_FAILURE),
    };
    result.unwrap_or_else(|error| {
        eprintln!("isopod: {error:#}");
        let run = error.downcast_ref::<run::RunError>();
        ExitCode::from(run.map_or(failure, run::RunError::exit_status))
    })
}

fn serve(args: &ServeArgs, config: Option<&Path>) -> Result<ExitCode> {
    if args.print_default_config {
        print!("{}", config::SAMPLE);
        return Ok(ExitCode::SUCCESS);
    }
    let config = Config::load(config)?;
    logging::init(args.log_level.as_deref(), &config.log_level)?;
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("starting the asynchronous runtime")?
        .block_on(cri::serve(config))?;
    Ok(ExitCode::SUCCESS)
}

fn run(args: &run::Args, config: Option<&Path>) -> Result<ExitCode> {
    let socket = socket(args.socket.as_deref(), config)?;
    let runtime = single_threaded()?;
    let code = runtime.block_on(run::run(args, &socket));
    // A write to a pipe that nobody reads may still wait, and must not keep us here.
    runtime.shutdown_background();
    Ok(ExitCode::from(code?))
}

/// Asks the configuration's daemon something about images.
fn ask(
    config: Option<&Path>,
    question: impl AsyncFnOnce(PathBuf) -> Result<(), ImagesError>,
) -> Result<ExitCode> {
    let socket = socket(None, config)?;
    single_threaded()?.block_on(question(socket))?;
    Ok(ExitCode::SUCCESS)
}

fn doctor(args: &DoctorArgs, config: Option<&Path>) -> ExitCode {
    let report = doctor::examine(Config::load(config));
    println!("{}", report.print(args.output));
    match report.is_ok() {
        true => ExitCode::SUCCESS,
        false => ExitCode::from(EXIT_FAILURE),
    }
}

fn version(args: &VersionArgs, config: Option<&Path>) -> Result<ExitCode> {
    let socket = socket(args.socket.as_deref(), config)?;
    let text = single_threaded()?.block_on(version::version(&socket, args.output));
    println!("{text}");
    Ok(ExitCode::SUCCESS)
}

/// The daemon's CRI socket: the one that was named, or the configuration's.
fn socket(named: Option<&Path>, config: Option<&Path>) -> Result<PathBuf> {
    let socket = match named {
        Some(socket) => socket.to_owned(),
        None => Config::load(config)?.socket,
    };
    std::path::absolute(&socket).with_context(|| format!("{} is no path", socket.display()))
}

fn single_threaded() -> Result<Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the asynchronous runtime")
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
