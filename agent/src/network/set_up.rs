//! Makes an interface what it shall be.

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use nix::errno::Errno;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags};
use rtnetlink::packet_route::link::LinkMessage;
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage, RouteMetric, RouteScope};
use rtnetlink::{Handle, LinkUnspec, RouteMessageBuilder};

use super::find::Link;
use super::wanted::WantedRoute;
use super::{NetworkError, Wanted};

/// Gives the interfaces their names. The kernel's own are in the order in which it found them, so
/// one may have another's: those that are to change first get out of the way.
pub(super) async fn name(
    handle: &Handle,
    wanted: &[Wanted],
    links: &[Link],
) -> Result<(), NetworkError> {
    let renamed: Vec<_> = wanted
        .iter()
        .zip(links)
        .filter(|(wanted, link)| wanted.name != link.name)
        .collect();
    for (_, link) in &renamed {
        let index = link.index;
        rename(handle, index, &format!("renamed{index}")).await?;
    }
    for (wanted, link) in renamed {
        rename(handle, link.index, &wanted.name).await?;
    }
    Ok(())
}

async fn rename(handle: &Handle, index: u32, name: &str) -> Result<(), NetworkError> {
    let message = LinkUnspec::new_with_index(index).name(name).build();
    set(handle, message, "naming", name).await
}

async fn set(
    handle: &Handle,
    message: LinkMessage,
    action: &'static str,
    name: &str,
) -> Result<(), NetworkError> {
    let set = handle.link().set(message).execute().await;
    set.map_err(NetworkError::kernel(action, name))
}

/// Brings an interface up with all that belongs to it.
pub(super) async fn set_up(
    handle: &Handle,
    wanted: &Wanted,
    index: u32,
) -> Result<(), NetworkError> {
    // Its addresses have been in use outside; nobody else has them, and nobody needs to wait.
    let dad = Path::new("/proc/sys/net/ipv6/conf").join(&wanted.name);
    let _without_ipv6 = fs::write(dad.join("accept_dad"), "0");
    let link = LinkUnspec::new_with_index(index).mtu(wanted.mtu).up();
    set(handle, link.build(), "bringing up", &wanted.name).await?;
    for (ip, length, peer) in &wanted.addresses {
        add_address(handle, index, (*ip, *length, *peer)).await?;
    }
    for (ip, mac) in &wanted.neighbours {
        let added = handle.neighbours().add(index, *ip).link_layer_address(mac);
        let added = added.replace().execute().await;
        added.map_err(NetworkError::kernel("adding the neighbour", ip.to_string()))?;
    }
    for route in &wanted.routes {
        add_route(handle, index, route).await?;
    }
    Ok(())
}

async fn add_address(
    handle: &Handle,
    index: u32,
    (ip, length, peer): (IpAddr, u8, Option<IpAddr>),
) -> Result<(), NetworkError> {
    let mut request = handle.address().add(index, ip, length).replace();
    let attributes = &mut request.message_mut().attributes;
    if let Some(peer) = peer {
        // On a link to one peer, the address is the peer's and the local one ours; nobody is
        // broadcast to.
        attributes.retain(|it| {
            !matches!(
                it,
                AddressAttribute::Address(_) | AddressAttribute::Broadcast(_)
            )
        });
        attributes.push(AddressAttribute::Address(peer));
        if ip.is_ipv6() {
            attributes.push(AddressAttribute::Local(ip));
        }
    }
    // The routes are told, those to the interface's own networks included.
    let flags = AddressFlags::Noprefixroute | AddressFlags::Nodad | AddressFlags::Permanent;
    attributes.push(AddressAttribute::Flags(flags));
    let added = request.execute().await;
    added.map_err(NetworkError::kernel("adding the address", ip.to_string()))
}

async fn add_route(handle: &Handle, index: u32, route: &WantedRoute) -> Result<(), NetworkError> {
    let (destination, length) = route.destination;
    let message = message(index, route);
    match handle.route().add(message).execute().await {
        // The kernel made it itself.
        Err(rtnetlink::Error::NetlinkError(error))
            if error.raw_code() == -(Errno::EEXIST as i32) =>
        {
            Ok(())
        }
        added => added.map_err(NetworkError::kernel(
            "adding the route to",
            format!("{destination}/{length}"),
        )),
    }
}

fn message(index: u32, route: &WantedRoute) -> RouteMessage {
    let mut builder = RouteMessageBuilder::<IpAddr>::new()
        .output_interface(index)
        .scope(RouteScope::from(route.scope));
    if route.priority != 0 {
        builder = builder.priority(route.priority);
    }
    if route.on_link {
        builder = builder.onlink();
    }
    let mut message = builder.build();
    let (destination, length) = route.destination;
    message.header.address_family = match destination {
        IpAddr::V4(_) => rtnetlink::packet_route::AddressFamily::Inet,
        IpAddr::V6(_) => rtnetlink::packet_route::AddressFamily::Inet6,
    };
    message.header.destination_prefix_length = length;
    let attributes = &mut message.attributes;
    if length > 0 {
        attributes.push(RouteAttribute::Destination(destination.into()));
    }
    attributes.extend(route.gateway.map(|ip| RouteAttribute::Gateway(ip.into())));
    attributes.extend(route.source.map(|ip| RouteAttribute::PrefSource(ip.into())));
    if route.mtu != 0 {
        let metrics = vec![RouteMetric::Mtu(route.mtu)];
        attributes.push(RouteAttribute::Metrics(metrics));
    }
    message
}
