//! What the caller asks for, checked once.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use isopod_proto::agent::{Address, Interface, Neighbour, Route};

use super::NetworkError;

/// Most interfaces.
const INTERFACES_MAX: usize = 32;
/// Most addresses, routes and neighbours of one.
const ENTRIES_MAX: usize = 4096;
/// Longest name (`IFNAMSIZ` without the zero).
const NAME_MAX: usize = 15;
/// Least and largest MTU.
const MTUS: std::ops::RangeInclusive<u32> = 68..=65_535;

/// An interface as it shall be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(super) name: String,
    pub(super) mac: [u8; 6],
    pub(super) mtu: u32,
    /// Address, prefix length, and the peer if there is one.
    pub(super) addresses: Vec<(IpAddr, u8, Option<IpAddr>)>,
    pub(super) routes: Vec<WantedRoute>,
    pub(super) neighbours: Vec<(IpAddr, [u8; 6])>,
    /// Pairs of queues that the device has.
    pub(super) queues: u32,
}

/// A route through the interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct WantedRoute {
    /// All zeroes with the length 0: the default route.
    pub(super) destination: (IpAddr, u8),
    pub(super) gateway: Option<IpAddr>,
    pub(super) source: Option<IpAddr>,
    pub(super) scope: u8,
    pub(super) priority: u32,
    pub(super) mtu: u32,
    pub(super) on_link: bool,
}

impl Wanted {
    /// Its first address.
    pub(crate) fn address(&self) -> Option<IpAddr> {
        self.addresses.first().map(|(ip, ..)| *ip)
    }
}

pub(super) fn check(interfaces: &[Interface]) -> Result<Vec<Wanted>, NetworkError> {
    if interfaces.len() > INTERFACES_MAX {
        return Err(NetworkError::Request {
            name: String::new(),
            reason: "there are too many interfaces",
        });
    }
    interfaces
        .iter()
        .map(|interface| {
            parse(interface).map_err(|reason| NetworkError::Request {
                name: interface.name.chars().take(NAME_MAX).collect(),
                reason,
            })
        })
        .collect()
}

fn parse(interface: &Interface) -> Result<Wanted, &'static str> {
    let name = &interface.name;
    let plain = |byte: u8| byte.is_ascii_graphic() && byte != b'/' && byte != b':';
    let dots = name == "." || name == "..";
    if !(1..=NAME_MAX).contains(&name.len()) || !name.bytes().all(plain) || dots {
        return Err("the name is not one");
    }
    if !MTUS.contains(&interface.mtu) {
        return Err("the MTU is out of range");
    }
    let lengths = [
        interface.addresses.len(),
        interface.routes.len(),
        interface.neighbours.len(),
    ];
    if lengths.into_iter().any(|length| length > ENTRIES_MAX) {
        return Err("there are too many addresses, routes or neighbours");
    }
    Ok(Wanted {
        name: name.clone(),
        mac: mac(&interface.mac)?,
        mtu: interface.mtu,
        addresses: collect(&interface.addresses, address)?,
        routes: collect(&interface.routes, route)?,
        neighbours: collect(&interface.neighbours, neighbour)?,
        queues: interface.queues,
    })
}

fn collect<T, U>(
    from: &[T],
    parse: impl Fn(&T) -> Result<U, &'static str>,
) -> Result<Vec<U>, &'static str> {
    from.iter().map(parse).collect()
}

fn address(address: &Address) -> Result<(IpAddr, u8, Option<IpAddr>), &'static str> {
    let ip = ip(&address.ip)?;
    let peer = optional(&address.peer)?;
    if peer.is_some_and(|peer| peer.is_ipv4() != ip.is_ipv4()) {
        return Err("an address and its peer have different versions");
    }
    Ok((ip, length(ip, address.prefix_len)?, peer))
}

fn route(route: &Route) -> Result<WantedRoute, &'static str> {
    let any = match route.ipv6 {
        true => IpAddr::from(Ipv6Addr::UNSPECIFIED),
        false => IpAddr::from(Ipv4Addr::UNSPECIFIED),
    };
    let destination = optional(&route.destination)?.unwrap_or(any);
    let (gateway, source) = (optional(&route.gateway)?, optional(&route.source)?);
    for other in [Some(destination), gateway, source].into_iter().flatten() {
        if other.is_ipv6() != route.ipv6 {
            return Err("a route has addresses of different versions");
        }
    }
    Ok(WantedRoute {
        destination: (destination, length(destination, route.prefix_len)?),
        gateway,
        source,
        scope: u8::try_from(route.scope).map_err(|_large| "a route has no such scope")?,
        priority: route.priority,
        mtu: route.mtu,
        on_link: route.on_link,
    })
}

fn neighbour(neighbour: &Neighbour) -> Result<(IpAddr, [u8; 6]), &'static str> {
    Ok((ip(&neighbour.ip)?, mac(&neighbour.mac)?))
}

fn length(ip: IpAddr, length: u32) -> Result<u8, &'static str> {
    let most = if ip.is_ipv4() { 32 } else { 128 };
    let length = u8::try_from(length).ok().filter(|length| *length <= most);
    length.ok_or("a prefix is too long")
}

fn mac(bytes: &[u8]) -> Result<[u8; 6], &'static str> {
    bytes.try_into().map_err(|_length| "a MAC is not six bytes")
}

fn ip(bytes: &[u8]) -> Result<IpAddr, &'static str> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Ok(v4.into());
    }
    let v6 = <[u8; 16]>::try_from(bytes);
    v6.map(IpAddr::from)
        .map_err(|_length| "an IP address is not 4 or 16 bytes")
}

fn optional(bytes: &[u8]) -> Result<Option<IpAddr>, &'static str> {
    if bytes.is_empty() {
        return Ok(None);
    }
    ip(bytes).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface() -> Interface {
        Interface {
            name: "eth0".into(),
            mac: vec![2, 0, 0, 0, 0, 1],
            mtu: 1500,
            addresses: vec![Address {
                ip: vec![10, 0, 0, 2],
                prefix_len: 24,
                ..Default::default()
            }],
            routes: vec![Route {
                gateway: vec![10, 0, 0, 1],
                ..Default::default()
            }],
            ..Default::default()
        }
    }

    #[test]
    fn a_default_route_needs_no_destination() {
        let wanted = check(&[interface()]).unwrap().remove(0);
        let expected = (IpAddr::from(Ipv4Addr::UNSPECIFIED), 0);
        assert_eq!(wanted.routes[0].destination, expected);
        assert_eq!(wanted.address(), Some([10, 0, 0, 2].into()));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let changes: [fn(&mut Interface); 12] = [
            |it| it.name = String::new(),
            |it| it.name = "a/b".into(),
            |it| it.name = "..".into(),
            |it| it.name = "x".repeat(16),
            |it| it.mac = vec![1; 5],
            |it| it.mtu = 67,
            |it| it.mtu = 65_536,
            |it| it.addresses[0].ip = vec![1; 5],
            |it| it.addresses[0].prefix_len = 33,
            |it| it.addresses[0].peer = vec![1; 16],
            |it| it.routes[0].ipv6 = true,
            |it| it.routes[0].scope = 256,
        ];
        for (number, change) in changes.into_iter().enumerate() {
            let mut changed = interface();
            change(&mut changed);
            assert!(check(&[changed]).is_err(), "{number}");
        }
        assert!(check(&vec![interface(); INTERFACES_MAX + 1]).is_err());
    }
}
