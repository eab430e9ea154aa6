//! The host's end of a guest's interface: a tap with an address of its own, the same for every VMM.
#![expect(unsafe_code, reason = "TUNSETIFF has no safe wrapper")]

use std::fs::File;
use std::os::fd::{AsRawFd as _, OwnedFd};

use anyhow::{Context as _, Result};

use super::{HOST, PREFIX_LEN};
use crate::network::run;

nix::ioctl_readwrite_bad!(tun_set_interface, libc::TUNSETIFF, libc::ifreq);

const NAME: &str = "bench0";

/// Makes the tap, up and with the host's address. It goes with its descriptor.
pub(super) fn open() -> Result<OwnedFd> {
    let tap = File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .context("opening /dev/net/tun")?;
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    let mut request = libc::ifreq {
        ifr_name: [0; libc::IFNAMSIZ],
        ifr_ifru: libc::__c_anonymous_ifr_ifru {
            ifru_flags: libc::c_short::try_from(flags)?,
        },
    };
    for (to, from) in request.ifr_name.iter_mut().zip(NAME.bytes()) {
        *to = from.cast_signed();
    }
    // SAFETY: the descriptor is open, the request a whole ifreq that the kernel reads and writes, and
    // the name is shorter than its field and so ends with a zero.
    unsafe { tun_set_interface(tap.as_raw_fd(), &raw mut request) }.context("making a tap")?;
    let address = format!("{HOST}/{PREFIX_LEN}");
    run("ip", &["address", "add", &address, "dev", NAME])?;
    run("ip", &["link", "set", NAME, "up"])?;
    Ok(tap.into())
}
