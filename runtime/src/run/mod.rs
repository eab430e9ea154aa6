//! `isopod run`: one command in a pod of its own, as if it ran here.
//!
//! A client of the daemon's CRI socket and nothing more; one task, on a single-threaded runtime.
//!
//! ```text
//! pull -> sandbox -> create -> attach -> start -> relay until the output ends -> exit code
//!   └────────┴─────────┴─────────┴────────┴─────────┴── whatever happens ──> stop and remove
//! ```
//!
//! Attaching comes before starting, so that the first byte is not missed; the exit code is asked for
//! when the last byte was written. A signal before the start ends the run; after it, the first asks
//! the command to end, the second kills it and the third gives up on it. The CRI has no way to send
//! a signal of one's choice: the command gets its image's stop signal. With a terminal, the keys
//! that send signals go to the command like all others.

mod args;
mod attach;
mod error;
mod pod;
mod signals;
mod spec;
mod terminal;
mod timings;

use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

pub(crate) use self::args::Args;
use self::attach::{Attached, input_queue, read_input};
pub(crate) use self::error::{EXIT_RUN_FAILED, RunError};
use self::pod::Pod;
use self::signals::Signals;
use self::terminal::RawTerminal;
use self::timings::Timings;
use crate::chain::chain;
use crate::client::Client;
use crate::id::random_hex;
use crate::streaming::channel::ClientMessage;

/// How long a command may take to end once it was asked to.
const STOP_PATIENCE: Duration = Duration::from_secs(10);

/// Runs the command and returns its exit code. Nothing is left of it but the image, unless it was
/// asked to stay.
///
/// # Errors
///
/// [`RunError`], whose exit status tells a command that could not be started from the rest.
pub(crate) async fn run(args: &Args, socket: &Path) -> Result<u8, RunError> {
    if args.tty && args.interactive && terminal::size(std::io::stdin().as_fd()).is_none() {
        return Err(RunError::NoTerminal);
    }
    let mut signals = Signals::catch()?;
    let mut timings = Timings::begin();
    let client = Client::connect(socket).await?;
    let run_id = random_hex().map_err(|source| RunError::System {
        action: "reading /dev/urandom",
        source,
    })?;
    let mut pod = Pod::new(client, run_id);
    let result = execute(args, &mut pod, &mut signals, &mut timings).await;
    clean_up(args, &mut pod, &mut signals).await;
    if args.timings {
        eprintln!("{timings}");
    }
    result
}

async fn execute(
    args: &Args,
    pod: &mut Pod,
    signals: &mut Signals,
    timings: &mut Timings,
) -> Result<u8, RunError> {
    let (container_id, attached) = tokio::select! {
        prepared = prepare(args, pod, timings) => prepared?,
        signal = signals.next() => return Err(RunError::Interrupted(signal)),
    };
    let (messages, input) = input_queue();
    let terminal = hand_over_terminal(args, &messages)?;
    let relayed = attached.relay(input, tokio::io::stdout(), tokio::io::stderr());
    let (mut runner, mut stopper) = (pod.clone(), pod.clone());
    let command = async {
        let start = async {
            runner.start(&container_id).await?;
            timings.end("start");
            if args.interactive {
                read_input(std::io::stdin(), messages)?;
            }
            Ok(())
        };
        // Output is taken from the very start: a command must not wait for a reader to be started.
        let ((), ended) = tokio::try_join!(start, relayed)?;
        if let Some(at) = ended.first_output {
            timings.end_at("first output", at);
        }
        let code = runner.exit_code(&container_id).await?;
        timings.end("run");
        Ok::<_, RunError>((code, ended))
    };
    let (code, ended) = tokio::select! {
        ended = command => ended?,
        error = obey(signals, &mut stopper, &container_id) => return Err(error),
    };
    drop(terminal);
    if let Some(failure) = ended.failure {
        eprintln!("isopod: some of the output may be missing: {failure}");
    }
    Ok(code)
}

/// Everything up to a container that waits to be started, with us attached to it.
async fn prepare(
    args: &Args,
    pod: &mut Pod,
    timings: &mut Timings,
) -> Result<(String, Attached), RunError> {
    let image = pod.image(args).await?;
    timings.end("pull");
    let sandbox = pod.sandbox(args).await?;
    timings.end("sandbox");
    let container_id = pod.container(args, &image, sandbox).await?;
    let url = pod.attach_url(args, &container_id).await?;
    let attached = Attached::connect(&url).await?;
    timings.end("create");
    Ok((container_id, attached))
}

/// Makes the user's terminal the command's, and keeps telling its size.
fn hand_over_terminal(
    args: &Args,
    messages: &mpsc::Sender<ClientMessage>,
) -> Result<Option<RawTerminal>, RunError> {
    let stdin = std::io::stdin();
    if !args.tty || terminal::size(stdin.as_fd()).is_none() {
        return Ok(None);
    }
    let mut changes = signal(SignalKind::window_change()).map_err(|source| RunError::System {
        action: "catching signals",
        source,
    })?;
    let messages = messages.clone();
    tokio::spawn(async move {
        loop {
            if let Some(size) = terminal::size(std::io::stdin().as_fd())
                && messages.send(ClientMessage::Resize(size)).await.is_err()
            {
                return;
            }
            if changes.recv().await.is_none() {
                return;
            }
        }
    });
    if !args.interactive {
        return Ok(None);
    }
    let raw = RawTerminal::new(stdin.as_fd()).map_err(RunError::Terminal)?;
    Ok(Some(raw))
}

/// Passes signals on as far as the CRI can; returns when it is time to give up.
async fn obey(signals: &mut Signals, pod: &mut Pod, container_id: &str) -> RunError {
    let first = signals.next().await;
    let mut patience = if first == Signal::SIGQUIT {
        Duration::ZERO
    } else {
        STOP_PATIENCE
    };
    loop {
        let stopped = pod.stop(container_id, patience);
        let signal = tokio::select! {
            // The command's end is waited for elsewhere.
            Ok(()) = stopped => signals.next().await,
            signal = signals.next() => signal,
        };
        if patience.is_zero() {
            return RunError::Interrupted(signal);
        }
        patience = Duration::ZERO;
    }
}

/// Removes the pod, or says where it is. A failure is told and changes nothing else.
async fn clean_up(args: &Args, pod: &mut Pod, signals: &mut Signals) {
    if args.keep {
        match pod.sandboxes().await {
            Ok(ids) => ids
                .iter()
                .for_each(|id| eprintln!("isopod: the sandbox {id} is kept")),
            Err(error) => eprintln!("isopod: {}", chain(&error)),
        }
        return;
    }
    tokio::select! {
        removed = pod.remove() => if let Err(error) = removed {
            eprintln!("isopod: the pod may be left behind: {}", chain(&error));
        },
        signal = signals.next() => {
            eprintln!("isopod: the pod is left behind: interrupted by {signal}");
        }
    }
}
