//! The sandbox's network interfaces, set up as the caller has them: the agent is told everything and
//! asks nobody.
//!
//! ```text
//!  wanted.rs   what the caller asks for, checked
//!  find.rs     the kernel's interface with that MAC, which may be about to appear
//!  set_up.rs   name, MTU, addresses, routes, neighbours
//!  queues.rs   a queue for each processor, once there are several
//! ```
//!
//! Called once, while the sandbox is set up, on the runtime's thread.

mod find;
mod queues;
mod set_up;
#[cfg(test)]
mod tests;
mod wanted;

use std::io;

use isopod_proto::agent::Interface;

pub(crate) use self::queues::use_all as use_all_queues;
pub(crate) use self::wanted::Wanted;

/// Why an interface is not as it should be.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NetworkError {
    /// The request makes no sense.
    #[error("interface {name:?}: {reason}")]
    Request {
        /// Which interface.
        name: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// It did not appear.
    #[error("no interface {name} with the address {mac:02x?}")]
    NotFound {
        /// What it would be called.
        name: String,
        /// Its MAC.
        mac: [u8; 6],
    },
    /// The kernel's socket, or the bus.
    #[error("{0}")]
    Io(&'static str, #[source] io::Error),
    /// The kernel refused.
    #[error("{action} {name}")]
    Kernel {
        /// What was tried.
        action: &'static str,
        /// On which interface, or with what.
        name: String,
        /// What it said.
        #[source]
        source: io::Error,
    },
}

impl NetworkError {
    fn kernel(
        action: &'static str,
        name: impl Into<String>,
    ) -> impl FnOnce(rtnetlink::Error) -> Self {
        let name = name.into();
        move |error| Self::Kernel {
            action,
            name,
            source: match error {
                rtnetlink::Error::NetlinkError(message) => message.to_io(),
                other => io::Error::other(other),
            },
        }
    }
}

/// Checks what the caller wants.
///
/// # Errors
///
/// [`NetworkError::Request`].
pub(crate) fn check(interfaces: &[Interface]) -> Result<Vec<Wanted>, NetworkError> {
    wanted::check(interfaces)
}

/// Finds and sets up every interface; `search` makes the kernel look for devices.
///
/// # Errors
///
/// [`NetworkError`] of the first that cannot be.
pub(crate) async fn set_up(
    wanted: &[Wanted],
    search: fn() -> io::Result<()>,
) -> Result<(), NetworkError> {
    if wanted.is_empty() {
        return Ok(());
    }
    let (handle, links) = find::find(wanted, search).await?;
    set_up::name(&handle, wanted, &links).await?;
    for (wanted, link) in wanted.iter().zip(&links) {
        set_up::set_up(&handle, wanted, link.index).await?;
    }
    Ok(())
}
