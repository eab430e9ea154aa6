//! Brings the loopback interface up.
#![expect(unsafe_code, reason = "SIOCSIFFLAGS has no safe wrapper")]

use std::io;
use std::os::fd::AsRawFd;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

nix::ioctl_write_ptr_bad!(set_interface_flags, libc::SIOCSIFFLAGS, libc::ifreq);

const NAME: &[u8] = b"lo";

/// `ip link set lo up`; the kernel then gives it its addresses.
///
/// # Errors
///
/// What the kernel says.
pub(super) fn up() -> io::Result<()> {
    let socket = socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    let flags = libc::IFF_UP | libc::IFF_RUNNING;
    let mut request = libc::ifreq {
        ifr_name: [0; libc::IFNAMSIZ],
        ifr_ifru: libc::__c_anonymous_ifr_ifru {
            ifru_flags: i16::try_from(flags).unwrap_or_default(),
        },
    };
    for (to, from) in request.ifr_name.iter_mut().zip(NAME) {
        *to = from.cast_signed();
    }
    // SAFETY: the request is a whole, initialised ifreq, which the kernel only reads; the name is
    // shorter than its field and so ends with a zero.
    unsafe { set_interface_flags(socket.as_raw_fd(), &raw const request) }?;
    Ok(())
}
