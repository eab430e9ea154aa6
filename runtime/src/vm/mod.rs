//! A sandbox's virtual machine, seen from the daemon: the VMM's process, its control service, its
//! descriptor socket, and through its vsock the agent and the process streams.

mod stream;

pub(crate) use stream::{Output, ProcessInput, ProcessOutput, ProcessStream, StreamError};
