//! Several queues for several processors (`ethtool(8)`, "set-channels").
//!
//! A driver begins with as many as there are processors when it finds its device, which is one.
#![expect(unsafe_code, reason = "SIOCETHTOOL has no safe wrapper")]

use std::io;
use std::os::fd::AsRawFd;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use super::Wanted;

nix::ioctl_readwrite_bad!(ethtool, libc::SIOCETHTOOL, libc::ifreq);

/// ETHTOOL_SCHANNELS (linux/ethtool.h).
const SET_CHANNELS: u32 = 0x3d;

/// `struct ethtool_channels`.
#[repr(C)]
#[derive(Debug, Default)]
struct Channels {
    command: u32,
    max_rx: u32,
    max_tx: u32,
    max_other: u32,
    max_combined: u32,
    rx: u32,
    tx: u32,
    other: u32,
    combined: u32,
}

/// Lets each interface use a queue for each processor, as far as it has them. Blocking.
pub(crate) fn use_all(interfaces: &[Wanted]) {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let processors = u32::try_from(processors).unwrap_or(u32::MAX);
    for interface in interfaces {
        let queues = interface.queues.min(processors);
        if queues > 1
            && let Err(error) = set(&interface.name, queues)
        {
            tracing::warn!(name = interface.name, queues, %error, "an interface has one queue");
        }
    }
}

fn set(name: &str, queues: u32) -> io::Result<()> {
    let socket = socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    let mut channels = Channels {
        command: SET_CHANNELS,
        combined: queues,
        ..Default::default()
    };
    let mut request = libc::ifreq {
        ifr_name: [0; libc::IFNAMSIZ],
        ifr_ifru: libc::__c_anonymous_ifr_ifru {
            ifru_data: (&raw mut channels).cast(),
        },
    };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    // SAFETY: the request is a whole ifreq that points to a whole ethtool_channels; both live and are
    // ours. The name was checked to be shorter than its field, and so ends with a zero.
    unsafe { ethtool(socket.as_raw_fd(), &raw mut request) }?;
    Ok(())
}
