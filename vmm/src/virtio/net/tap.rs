//! One queue of a tap (kernel documentation, networking/tuntap): each read and each write is one
//! packet, with a [header](super::header) before it.
#![expect(unsafe_code, reason = "ioctls of taps have no safe wrappers")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};

use super::feature;
use super::header::HEADER_LEN;

nix::ioctl_write_int_bad!(tun_set_offload, libc::TUNSETOFFLOAD);
nix::ioctl_write_ptr_bad!(tun_set_header_len, libc::TUNSETVNETHDRSZ, libc::c_int);
nix::ioctl_write_ptr_bad!(tun_set_queue, libc::TUNSETQUEUE, libc::ifreq);

/// Offloads that every kernel has that Isopod runs on.
const OFFLOADS: libc::c_uint =
    libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;

/// Segmentation of UDP, from Linux 6.2 on.
const UDP_OFFLOADS: libc::c_uint = libc::TUN_F_USO4 | libc::TUN_F_USO6;

/// A queue of a tap.
#[derive(Debug)]
pub(super) struct Tap {
    fd: OwnedFd,
    /// A socket that takes the tap's place: it has packets, and no settings.
    #[cfg(any(test, fuzzing))]
    is_socket: bool,
}

impl Tap {
    /// Takes a descriptor that was opened for IFF_TAP, IFF_NO_PI and IFF_VNET_HDR.
    ///
    /// # Errors
    ///
    /// When it is not a tap's.
    pub(super) fn new(fd: OwnedFd) -> io::Result<Self> {
        set_nonblocking(&fd)?;
        let tap = Self {
            fd,
            #[cfg(any(test, fuzzing))]
            is_socket: false,
        };
        let len = libc::c_int::try_from(HEADER_LEN).expect("12 fits in an int");
        // SAFETY: the descriptor is open, and the kernel reads one int that lives.
        tap.set(|fd| unsafe { tun_set_header_len(fd, &raw const len) })?;
        Ok(tap)
    }

    /// A datagram socket in the place of a tap.
    #[cfg(any(test, fuzzing))]
    pub(super) fn socket(fd: OwnedFd) -> io::Result<Self> {
        set_nonblocking(&fd)?;
        Ok(Self {
            fd,
            is_socket: true,
        })
    }

    /// Queues of a new tap, in the namespace of the thread that asks.
    #[cfg(test)]
    pub(super) fn open(name: &str, count: usize) -> io::Result<Vec<OwnedFd>> {
        nix::ioctl_readwrite_bad!(tun_set_interface, libc::TUNSETIFF, libc::ifreq);
        let mut flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        if count > 1 {
            flags |= libc::IFF_MULTI_QUEUE;
        }
        let mut request = libc::ifreq {
            ifr_name: [0; libc::IFNAMSIZ],
            ifr_ifru: libc::__c_anonymous_ifr_ifru {
                ifru_flags: libc::c_short::try_from(flags).unwrap(),
            },
        };
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from.cast_signed();
        }
        let open = || {
            let tun = std::fs::File::options()
                .read(true)
                .write(true)
                .open("/dev/net/tun")?;
            // SAFETY: the descriptor is open, and the request a whole ifreq that lives.
            unsafe { tun_set_interface(tun.as_raw_fd(), &raw mut request) }?;
            Ok(tun.into())
        };
        std::iter::repeat_with(open).take(count).collect()
    }

    /// Another handle of the same queue.
    pub(super) fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            fd: self.fd.try_clone()?,
            #[cfg(any(test, fuzzing))]
            is_socket: self.is_socket,
        })
    }

    /// Whether the host's kernel segments UDP for taps. Leaves the tap without offloads.
    ///
    /// # Errors
    ///
    /// When it has not even the offloads of old.
    pub(super) fn has_udp_offloads(&self) -> io::Result<bool> {
        self.offload(OFFLOADS)?;
        let has = self.offload(OFFLOADS | UDP_OFFLOADS).is_ok();
        self.offload(0)?;
        Ok(has)
    }

    /// Tells the host which packets the guest takes as they are, by the features that its driver
    /// accepted.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub(super) fn set_offloads(&self, features: u64) -> io::Result<()> {
        let mut offloads = 0;
        // All others depend on it (virtio 1.2 section 5.1.3.1).
        if features & feature::GUEST_CSUM != 0 {
            offloads = libc::TUN_F_CSUM;
            for (feature, offload) in [
                (feature::GUEST_TSO4, libc::TUN_F_TSO4),
                (feature::GUEST_TSO6, libc::TUN_F_TSO6),
            ] {
                if features & feature != 0 {
                    offloads |= offload;
                }
            }
            let tso = offloads & (libc::TUN_F_TSO4 | libc::TUN_F_TSO6) != 0;
            if tso && features & feature::GUEST_ECN != 0 {
                offloads |= libc::TUN_F_TSO_ECN;
            }
            // The kernel has both or none.
            let uso = feature::GUEST_USO4 | feature::GUEST_USO6;
            if features & uso == uso {
                offloads |= UDP_OFFLOADS;
            }
        }
        self.offload(offloads)
    }

    fn offload(&self, offloads: libc::c_uint) -> io::Result<()> {
        let offloads = offloads.cast_signed();
        // SAFETY: the descriptor is open; the argument is a number.
        self.set(|fd| unsafe { tun_set_offload(fd, offloads) })
    }

    /// Gives this queue packets, or none any more. Idempotent.
    ///
    /// # Errors
    ///
    /// When the kernel refuses: the tap has one queue only.
    pub(super) fn attach(&self, attached: bool) -> io::Result<()> {
        let flags = match attached {
            true => libc::IFF_ATTACH_QUEUE,
            false => libc::IFF_DETACH_QUEUE,
        };
        let request = libc::ifreq {
            ifr_name: [0; libc::IFNAMSIZ],
            ifr_ifru: libc::__c_anonymous_ifr_ifru {
                ifru_flags: libc::c_short::try_from(flags).expect("flags of 16 bits"),
            },
        };
        // SAFETY: the descriptor is open, and the kernel reads a whole ifreq that lives.
        match self.set(|fd| unsafe { tun_set_queue(fd, &raw const request) }) {
            // As it was already.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
            result => result,
        }
    }

    fn set(&self, call: impl FnOnce(libc::c_int) -> nix::Result<libc::c_int>) -> io::Result<()> {
        #[cfg(any(test, fuzzing))]
        if self.is_socket {
            return Ok(());
        }
        call(self.fd.as_raw_fd())?;
        Ok(())
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn set_nonblocking(fd: &OwnedFd) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}
