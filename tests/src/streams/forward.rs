//! Forwarded ports, and clients and servers for them.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::{Context as _, Result};

use super::LIMIT;
use super::terminal::{collect, wait_said};
use crate::node::Node;
use crate::process::Child;
use crate::wait::wait_for;

/// A crictl that forwards a port of a pod to one that the kernel chose.
#[derive(Debug)]
pub struct Forward {
    _crictl: Child,
    address: SocketAddr,
    said: Arc<Mutex<String>>,
}

impl Forward {
    /// Starts it, and waits until it listens.
    ///
    /// # Errors
    /// It does not.
    pub fn start(node: &Node, transport: &str, pod: &str, port: u16) -> Result<Self> {
        let ports = format!(":{port}");
        let arguments = ["port-forward", "--transport", transport, pod, &ports];
        let mut child = node
            .crictl()?
            .command(&arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let said = Arc::default();
        collect(child.stdout.take().context("it is piped")?, &said)?;
        collect(child.stderr.take().context("it is piped")?, &said)?;
        let crictl = Child::new(child);
        wait_said(&said, "Forwarding from 127.0.0.1:")?;
        let address = wait_for("the port's number", LIMIT, || {
            let said = said.lock().unwrap_or_else(PoisonError::into_inner);
            let (_, rest) = said.split_once("Forwarding from 127.0.0.1:")?;
            let port = rest.split_once(' ')?.0.parse().ok()?;
            Some(SocketAddr::from(([127, 0, 0, 1], port)))
        })?;
        Ok(Self {
            _crictl: crictl,
            address,
            said,
        })
    }

    /// A connection to the port.
    ///
    /// # Errors
    /// crictl is gone.
    pub fn connect(&self) -> Result<TcpStream> {
        let connection = TcpStream::connect(self.address)?;
        connection.set_read_timeout(Some(LIMIT))?;
        connection.set_write_timeout(Some(LIMIT))?;
        Ok(connection)
    }

    /// Waits until crictl has said this.
    ///
    /// # Errors
    /// It has not, within the limit.
    pub fn wait_said(&self, wanted: &str) -> Result<()> {
        wait_said(&self.said, wanted)
    }
}

/// Serves on a port of this machine for as long as the test runs; the port.
///
/// # Errors
/// There is no port.
///
/// # Panics
/// On its own thread, when there is no room for another one.
pub fn serve(connection: impl Fn(TcpStream) + Send + Sync + 'static) -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    let connection = Arc::new(connection);
    thread::Builder::new().spawn(move || {
        for accepted in listener.incoming().flatten() {
            let connection = Arc::clone(&connection);
            let served = thread::Builder::new().spawn(move || connection(accepted));
            served.expect("there is room for a thread");
        }
    })?;
    Ok(port)
}

/// Says what it hears, and ends when the client does.
pub fn echo(connection: TcpStream) {
    // A client that is gone hears nothing.
    let _ = std::io::copy(&mut &connection, &mut &connection);
    drop(connection);
}

/// Sends, ends this direction, and hears the other one to its end.
///
/// # Errors
/// The connection breaks.
///
/// # Panics
/// Never: what it joins does not.
pub fn exchange(mut connection: TcpStream, sent: &[u8]) -> Result<Vec<u8>> {
    let mut reader = connection.try_clone()?;
    let reading = thread::Builder::new().spawn(move || {
        let mut heard = Vec::new();
        reader.read_to_end(&mut heard).map(|_| heard)
    })?;
    connection.write_all(sent)?;
    connection.shutdown(Shutdown::Write)?;
    Ok(reading.join().expect("it does not panic")?)
}
