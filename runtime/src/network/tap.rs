//! A tap in the sandbox's namespace, joined to an interface: what arrives at one leaves by the other
//! (tc's ingress queueing discipline and its mirred action). The interface keeps its addresses, so
//! that plugins find what they made, but its namespace's own network stack sees no packet.
//!
//! A tap lives as long as its descriptors, which the VMM gets.
#![expect(unsafe_code, reason = "TUNSETIFF has no safe wrapper")]

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use rtnetlink::LinkUnspec;

use super::link::{Link, Links};
use super::namespace::Namespace;
use super::{NetworkError, blocking};

nix::ioctl_readwrite_bad!(tun_set_interface, libc::TUNSETIFF, libc::ifreq);

/// The device that makes taps.
const TUN: &str = "/dev/net/tun";

/// The handle of an ingress queueing discipline, parent of its filters (tc(8), `ffff:`).
const INGRESS: u32 = 0xffff_0000;

/// Makes a tap with so many queues and joins it to `link`; the queues' descriptors.
///
/// # Errors
///
/// When the kernel refuses.
pub(super) async fn make(
    namespace: &Namespace,
    links: &Links,
    link: &Link,
    queues: usize,
) -> Result<Vec<OwnedFd>, NetworkError> {
    let name = format!("tap{}", link.index);
    let fds = open_queues(namespace, &name, queues).await?;
    let index = set_up(links, &name, link.interface.mtu).await?;
    redirect(links, (&link.interface.name, link.index), (&name, index)).await?;
    redirect(links, (&name, index), (&link.interface.name, link.index)).await?;
    Ok(fds)
}

async fn open_queues(
    namespace: &Namespace,
    name: &str,
    queues: usize,
) -> Result<Vec<OwnedFd>, NetworkError> {
    let (inside, device) = (namespace.clone(), name.to_owned());
    blocking(move || {
        let open = move || {
            let fds = (0..queues)
                .map(|_| open_queue(&device, queues > 1))
                .collect::<io::Result<Vec<_>>>()?;
            // The namespace's kernel must not speak to the guest by itself (router solicitations).
            let quiet = format!("/proc/sys/net/ipv6/conf/{device}/disable_ipv6");
            match fs::write(quiet, "1") {
                // A kernel without IPv6 is quiet.
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(fds),
            }
        };
        inside
            .enter(open)
            .map_err(NetworkError::io("making a tap with", TUN))
    })
    .await
}

fn open_queue(name: &str, several: bool) -> io::Result<OwnedFd> {
    let file: File = OpenOptions::new().read(true).write(true).open(TUN)?;
    let mut flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    if several {
        flags |= libc::IFF_MULTI_QUEUE;
    }
    let mut request = libc::ifreq {
        ifr_name: [0; libc::IFNAMSIZ],
        ifr_ifru: libc::__c_anonymous_ifr_ifru {
            ifru_flags: libc::c_short::try_from(flags).map_err(io::Error::other)?,
        },
    };
    if name.len() >= libc::IFNAMSIZ {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    // SAFETY: the descriptor is open, the request a whole ifreq that the kernel reads and writes, and
    // the name is shorter than its field and so ends with a zero.
    unsafe { tun_set_interface(file.as_raw_fd(), &raw mut request) }?;
    Ok(file.into())
}

/// Gives the tap the interface's MTU and brings it up; its number.
async fn set_up(links: &Links, name: &str, mtu: u32) -> Result<u32, NetworkError> {
    use futures_util::TryStreamExt;
    let mut found = links
        .handle()
        .link()
        .get()
        .match_name(name.to_owned())
        .execute();
    let link = found
        .try_next()
        .await
        .map_err(NetworkError::netlink("finding", name))?;
    let index = link.map(|link| link.header.index).unwrap_or_default();
    let message = LinkUnspec::new_with_index(index).mtu(mtu).up().build();
    let set = links.handle().link().set(message).execute().await;
    set.map_err(NetworkError::netlink("setting up", name))?;
    Ok(index)
}

/// Sends everything that arrives at one interface out of the other.
async fn redirect(
    links: &Links,
    (from, from_index): (&str, u32),
    (to, to_index): (&str, u32),
) -> Result<(), NetworkError> {
    let action = "redirecting packets from";
    let index =
        i32::try_from(from_index).map_err(|_error| NetworkError::Interface(from.to_owned()))?;
    let mut qdisc = links.handle().qdisc();
    let ingress = qdisc.add(index).ingress().execute().await;
    ingress.map_err(NetworkError::netlink(action, from))?;
    let every_protocol = u16::try_from(libc::ETH_P_ALL).expect("3 fits").to_be();
    let filter = links
        .handle()
        .traffic_filter(index)
        .add()
        .parent(INGRESS)
        .protocol(every_protocol)
        .redirect(to_index)
        .map_err(NetworkError::netlink(action, to))?;
    filter
        .execute()
        .await
        .map_err(NetworkError::netlink(action, from))
}
