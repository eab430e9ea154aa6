//! The project's own commands: `cargo xtask COMMAND`.
//!
//! One module per command ([`guest_image`], [`lab`], ...), and what they share: [`setup`] installs
//! what is missing, [`build`] builds the binaries, [`kvm`] tells whether this machine runs microVMs,
//! [`project`] knows where things are, [`progress`] says what is going on.

mod bench;
mod build;
mod demo;
mod guest_image;
mod kvm;
mod lab;
mod progress;
mod project;
mod setup;
mod test;
mod test_images;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Isopod's own commands.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a container from a registry's image in its own microVM, from nothing
    Demo(demo::Arguments),
    /// Install what building, testing and the lab need, as far as it is missing
    Setup,
    /// Build the guest's kernel and what holds the agent, and print where they are
    GuestImage(guest_image::Arguments),
    /// Run a command on a host that has a real KVM: here, or in an emulated one
    Lab(lab::Arguments),
    /// Measure against peers, in one run
    Bench(bench::Arguments),
    /// Run the tests: formatting, clippy, unit tests, end-to-end tests
    Test(test::Arguments),
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Demo(arguments) => demo::run(&arguments),
        Command::Setup => {
            setup::packages(setup::Need::ALL)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::GuestImage(arguments) => {
            guest_image::run(&arguments)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Bench(arguments) => bench::run(&arguments),
        Command::Lab(arguments) => lab::run(&arguments),
        Command::Test(arguments) => test::run(&arguments),
    }
}
