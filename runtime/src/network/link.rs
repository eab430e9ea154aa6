//! What the plugins made of a namespace, read from the kernel rather than from their results: what is
//! there counts, whoever made it, and results do not have all of it.

use std::net::IpAddr;

use futures_util::TryStreamExt;
use isopod_proto::agent;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressScope};
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkLayerType, LinkMessage};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric,
    RouteProtocol, RouteType,
};
use rtnetlink::{Handle, LinkUnspec, RouteMessageBuilder};

use super::namespace::Namespace;
use super::{NetworkError, blocking};

/// Most interfaces of a pod.
const INTERFACES_MAX: usize = 16;

/// `lo`, the first interface of every namespace.
const LOOPBACK: u32 = 1;

/// The kernel's view of a namespace, over a netlink socket in it.
#[derive(Debug)]
pub(super) struct Links {
    handle: Handle,
}

/// An interface that a guest can have.
#[derive(Debug, Clone)]
pub(super) struct Link {
    /// Its number in the namespace.
    pub(super) index: u32,
    /// As the guest shall have it.
    pub(super) interface: agent::Interface,
}

impl Links {
    /// Opens a socket in the namespace.
    ///
    /// # Errors
    ///
    /// When the namespace cannot be entered.
    pub(super) async fn open(namespace: &Namespace) -> Result<Self, NetworkError> {
        let runtime = tokio::runtime::Handle::current();
        let namespace = namespace.clone();
        let (connection, handle, _) = blocking(move || {
            // A socket stays in the namespace that it was made in.
            let connect = move || {
                let _runtime = runtime.enter();
                rtnetlink::new_connection()
            };
            let connected = namespace.enter(connect);
            connected.map_err(NetworkError::io("opening a socket in", namespace.path()))
        })
        .await?;
        // It ends with the last handle.
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// For changes.
    pub(super) fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Brings the loopback interface up, which other runtimes do, too.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub(super) async fn bring_loopback_up(&self) -> Result<(), NetworkError> {
        let message = LinkUnspec::new_with_index(LOOPBACK).up().build();
        let set = self.handle.link().set(message).execute().await;
        set.map_err(NetworkError::netlink("bringing up", "lo"))
    }

    /// Every Ethernet interface that is up, with all that belongs to it.
    ///
    /// # Errors
    ///
    /// When the kernel does not answer, or there are too many.
    pub(super) async fn interfaces(&self) -> Result<Vec<Link>, NetworkError> {
        let failed = |what| NetworkError::netlink("listing", what);
        let links: Vec<LinkMessage> = self
            .handle
            .link()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(failed("the interfaces"))?;
        let mut found = Vec::new();
        for link in links.iter().filter(|link| is_for_guests(link)) {
            found.push(Link {
                index: link.header.index,
                interface: interface(link)?,
            });
        }
        if found.len() > INTERFACES_MAX {
            return Err(NetworkError::Interfaces(found.len()));
        }
        self.add_addresses(&mut found)
            .await
            .map_err(failed("the addresses"))?;
        self.add_routes(&mut found)
            .await
            .map_err(failed("the routes"))?;
        self.add_neighbours(&mut found)
            .await
            .map_err(failed("the neighbours"))?;
        Ok(found)
    }

    async fn add_addresses(&self, found: &mut [Link]) -> Result<(), rtnetlink::Error> {
        let mut addresses = self.handle.address().get().execute();
        while let Some(message) = addresses.try_next().await? {
            // The guest makes its own link-local ones, the same from the same MAC.
            if message.header.scope == AddressScope::Link {
                continue;
            }
            let (mut address, mut local) = (None, None);
            for attribute in &message.attributes {
                match attribute {
                    AddressAttribute::Address(ip) => address = Some(*ip),
                    AddressAttribute::Local(ip) => local = Some(*ip),
                    _ => {}
                }
            }
            // On a link to one peer, the address is the peer's.
            let (Some(ip), peer) = (local.or(address), address) else {
                continue;
            };
            if let Some(link) = by_index(found, message.header.index) {
                link.interface.addresses.push(agent::Address {
                    ip: octets(ip),
                    prefix_len: message.header.prefix_len.into(),
                    peer: peer
                        .filter(|peer| *peer != ip)
                        .map(octets)
                        .unwrap_or_default(),
                    ..Default::default()
                });
            }
        }
        Ok(())
    }

    async fn add_routes(&self, found: &mut [Link]) -> Result<(), rtnetlink::Error> {
        let wanted = [
            RouteMessageBuilder::<std::net::Ipv4Addr>::new().build(),
            RouteMessageBuilder::<std::net::Ipv6Addr>::new().build(),
        ];
        for family in wanted {
            let mut routes = std::pin::pin!(self.handle.route().get(family).execute());
            while let Some(message) = routes.try_next().await? {
                if let Some((index, route)) = route(&message)
                    && let Some(link) = by_index(found, index)
                {
                    link.interface.routes.push(route);
                }
            }
        }
        for link in found {
            // A gateway must be reachable before a route through it can be made.
            link.interface
                .routes
                .sort_by_key(|route| !route.gateway.is_empty());
        }
        Ok(())
    }

    async fn add_neighbours(&self, found: &mut [Link]) -> Result<(), rtnetlink::Error> {
        let mut neighbours = std::pin::pin!(self.handle.neighbours().get().execute());
        while let Some(message) = neighbours.try_next().await? {
            if let Some(neighbour) = neighbour(&message)
                && let Some(link) = by_index(found, message.header.ifindex)
            {
                link.interface.neighbours.push(neighbour);
            }
        }
        Ok(())
    }
}

fn by_index(found: &mut [Link], index: u32) -> Option<&mut Link> {
    found.iter_mut().find(|link| link.index == index)
}

/// Tunnels' fallback devices, which some kernels put into every namespace, are down.
fn is_for_guests(link: &LinkMessage) -> bool {
    link.header.link_layer_type == LinkLayerType::Ether && link.header.flags.contains(LinkFlags::Up)
}

fn interface(link: &LinkMessage) -> Result<agent::Interface, NetworkError> {
    let mut interface = agent::Interface::new();
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::IfName(name) => interface.name.clone_from(name),
            LinkAttribute::Address(mac) => interface.mac.clone_from(mac),
            LinkAttribute::Mtu(mtu) => interface.mtu = *mtu,
            _ => {}
        }
    }
    if interface.mac.len() != 6 || !(68..=65535).contains(&interface.mtu) {
        return Err(NetworkError::Interface(interface.name));
    }
    Ok(interface)
}

/// A route of the main table and the number of its interface, if it is one that a guest shall have.
fn route(message: &RouteMessage) -> Option<(u32, agent::Route)> {
    let header = &message.header;
    let made_by_kernel = matches!(
        header.protocol,
        RouteProtocol::Ra | RouteProtocol::IcmpRedirect
    );
    if header.kind != RouteType::Unicast || made_by_kernel {
        return None;
    }
    let mut route = agent::Route {
        prefix_len: header.destination_prefix_length.into(),
        scope: u8::from(header.scope).into(),
        on_link: header.flags.contains(RouteFlags::Onlink),
        ipv6: header.address_family == AddressFamily::Inet6,
        ..Default::default()
    };
    let (mut index, mut table) = (None, u32::from(header.table));
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(oif) => index = Some(*oif),
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::Destination(address) => route.destination = route_octets(address)?,
            RouteAttribute::Gateway(address) => route.gateway = route_octets(address)?,
            RouteAttribute::PrefSource(address) => route.source = route_octets(address)?,
            RouteAttribute::Priority(priority) => route.priority = *priority,
            RouteAttribute::Metrics(metrics) => {
                for metric in metrics {
                    if let RouteMetric::Mtu(mtu) = metric {
                        route.mtu = *mtu;
                    }
                }
            }
            _ => {}
        }
    }
    // As with the addresses: the guest has these from its kernel.
    let link_local = route.ipv6 && route.destination.starts_with(&[0xfe, 0x80]);
    let main = table == u32::from(RouteHeader::RT_TABLE_MAIN);
    (main && !link_local).then_some((index?, route))
}

fn route_octets(address: &RouteAddress) -> Option<Vec<u8>> {
    match address {
        RouteAddress::Inet(ip) => Some(ip.octets().into()),
        RouteAddress::Inet6(ip) => Some(ip.octets().into()),
        _ => None,
    }
}

fn neighbour(message: &NeighbourMessage) -> Option<agent::Neighbour> {
    if message.header.state != NeighbourState::Permanent {
        return None;
    }
    let (mut ip, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => {
                ip = Some(v4.octets().to_vec());
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => {
                ip = Some(v6.octets().to_vec());
            }
            NeighbourAttribute::LinkLayerAddress(bytes) if bytes.len() == 6 => {
                mac = Some(bytes.clone());
            }
            _ => {}
        }
    }
    Some(agent::Neighbour {
        ip: ip?,
        mac: mac?,
        ..Default::default()
    })
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().into(),
        IpAddr::V6(ip) => ip.octets().into(),
    }
}
