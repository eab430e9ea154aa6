//! A VMM without a virtual machine, for tests of the daemon where there is no KVM.
//!
//! It takes what a VMM inherits, answers what a VMM and an agent answer, and runs "containers" as
//! plain processes of this machine, which die with it. The sandbox's host name chooses how it
//! misbehaves:
//!
//! - `mute`: the agent never answers.
//! - `stubborn`: the agent does not power off.
//! - `full`: no container can be created.
//! - `frozen`: creating a container takes for ever.
//! - `sleepy`: it never says what it uses.

mod agent;
mod descriptors;
mod log;
mod machine;
mod process;
mod stream;

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use isopod_proto::agent_ttrpc::create_agent;
use isopod_proto::stream::Kind;
use isopod_proto::vmm_ttrpc::create_machine;
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use ttrpc::Code;
use ttrpc::asynchronous::Server;
use ttrpc::asynchronous::transport::Listener;
use ttrpc::error::get_rpc_status;

use self::descriptors::{inherited, take_descriptors};
use self::log::Log;
use self::process::Process;
use self::stream::connection;

type Reply<T> = ttrpc::Result<T>;
type Output = (Kind, Vec<u8>);

struct Fake {
    dir: PathBuf,
    hostname: Mutex<String>,
    files: Mutex<HashMap<String, OwnedFd>>,
    disks: Mutex<BTreeSet<String>>,
    /// The queues keep the taps alive.
    nics: Mutex<Vec<(String, Vec<File>)>>,
    /// By container id, and container and exec id.
    processes: Mutex<HashMap<(String, String), Arc<Process>>>,
    logs: Mutex<HashMap<String, Log>>,
}

/// The services, which must be types of this crate.
#[derive(Clone)]
struct Served(Arc<Fake>);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn refuse<T>(code: Code, text: &str) -> Reply<T> {
    Err(get_rpc_status(code, text))
}

impl Fake {
    fn process(&self, container: &str, exec: &str) -> Reply<Arc<Process>> {
        let key = (container.to_owned(), exec.to_owned());
        let found = lock(&self.processes).get(&key).cloned();
        found.map_or_else(|| refuse(Code::NOT_FOUND, "no such process"), Ok)
    }

    fn add(&self, container: &str, exec: &str, process: Arc<Process>) {
        lock(&self.processes).insert((container.to_owned(), exec.to_owned()), process);
    }

    fn take_file(&self, name: &str) -> Reply<Option<File>> {
        if name.is_empty() {
            return Ok(None);
        }
        match lock(&self.files).remove(name) {
            Some(fd) => Ok(Some(fd.into())),
            None => refuse(Code::NOT_FOUND, &format!("no descriptor {name}")),
        }
    }

    fn hostname_is(&self, name: &str) -> bool {
        *lock(&self.hostname) == name
    }

    /// Ends the process with its last words.
    fn end(&self, reason: &str) -> ! {
        let words = format!(
            r#"{{"reason":"{reason}","message":"","at_ns":{}}}"#,
            now_ns()
        );
        std::fs::write(self.dir.join("exit.json"), words).expect("the folder is there");
        for process in lock(&self.processes).values() {
            process.signal(9);
        }
        std::process::exit(0)
    }
}

fn now_ns() -> i64 {
    let since = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

fn listener(fds: &mut HashMap<String, OwnedFd>, name: &str) -> UnixListener {
    let listener = std::os::unix::net::UnixListener::from(fds.remove(name).expect("inherited"));
    listener.set_nonblocking(true).expect("a socket");
    UnixListener::from_std(listener).expect("a socket on a runtime")
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    assert_eq!(arguments.next().as_deref(), Some("--dir"));
    let mut fds = inherited();
    let (control, vsock) = (listener(&mut fds, "control"), listener(&mut fds, "vsock"));
    let descriptors = fds.remove("descriptors").expect("inherited");
    let fake = Arc::new(Fake {
        dir: arguments.next().expect("--dir DIR").into(),
        hostname: Mutex::default(),
        files: Mutex::new(fds),
        disks: Mutex::new(BTreeSet::from(["scratch".to_owned()])),
        nics: Mutex::default(),
        processes: Mutex::default(),
        logs: Mutex::default(),
    });
    let at = Arc::clone(&fake);
    std::thread::Builder::new()
        .spawn(move || take_descriptors(&descriptors, &at))
        .expect("a thread");
    let control = tokio_stream::wrappers::UnixListenerStream::new(control);
    let mut machine = Server::new()
        .add_listener(Listener::new(control))
        .register_service(create_machine(Arc::new(Served(Arc::clone(&fake)))));
    machine.start().await.expect("a listener");

    let (agents, connected) = mpsc::unbounded_channel();
    let connected = tokio_stream::wrappers::UnboundedReceiverStream::new(connected);
    let connected = tokio_stream::StreamExt::map(connected, std::io::Result::Ok);
    let mut agent = Server::new()
        .add_listener(Listener::new(connected))
        .register_service(create_agent(Arc::new(Served(Arc::clone(&fake)))));
    agent.start().await.expect("a listener");
    loop {
        let (stream, _) = vsock.accept().await.expect("a listening socket");
        tokio::spawn(connection(stream, Arc::clone(&fake), agents.clone()));
    }
}
