//! Finds interfaces by their MAC. They may be on a bus that the kernel has yet to look at.

use std::io;
use std::time::Duration;

use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::{Handle, MulticastGroup};
use tokio_stream::StreamExt;

use super::{NetworkError, Wanted};

/// How long an interface may take to appear after the bus was searched.
const TIMEOUT: Duration = Duration::from_secs(10);

/// An interface of the kernel's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
}

/// A socket to the kernel, and the interfaces in the order of those that are wanted.
pub(super) async fn find(
    wanted: &[Wanted],
    search: fn() -> io::Result<()>,
) -> Result<(Handle, Vec<Link>), NetworkError> {
    let connect = rtnetlink::new_multicast_connection(&[MulticastGroup::Link]);
    let (connection, handle, mut news) =
        connect.map_err(|error| NetworkError::Io("opening a netlink socket", error))?;
    tokio::spawn(connection);
    if let Ok(links) = look(&handle, wanted).await? {
        return Ok((handle, links));
    }
    let searched = tokio::task::spawn_blocking(search).await;
    searched
        .map_err(io::Error::other)
        .flatten()
        .map_err(|error| NetworkError::Io("searching the bus for interfaces", error))?;
    let appear = async {
        loop {
            match look(&handle, wanted).await? {
                Ok(links) => return Ok(links),
                // What the news is does not matter: something has changed.
                Err(missing) if news.next().await.is_none() => return Err(missing),
                Err(_missing) => {}
            }
        }
    };
    match tokio::time::timeout(TIMEOUT, appear).await {
        Ok(appeared) => Ok((handle, appeared?)),
        Err(_elapsed) => Ok((handle.clone(), look(&handle, wanted).await??)),
    }
}

/// The interfaces; the inner error names the first that is missing.
async fn look(
    handle: &Handle,
    wanted: &[Wanted],
) -> Result<Result<Vec<Link>, NetworkError>, NetworkError> {
    let mut links = handle.link().get().execute();
    let mut there = Vec::new();
    while let Some(link) = links.next().await {
        there.push(link.map_err(NetworkError::kernel("listing", "interfaces"))?);
    }
    Ok(wanted
        .iter()
        .map(|wanted| {
            let found = there.iter().find(|link| has_mac(link, wanted.mac));
            found.map(link).ok_or_else(|| NetworkError::NotFound {
                name: wanted.name.clone(),
                mac: wanted.mac,
            })
        })
        .collect())
}

fn has_mac(link: &LinkMessage, mac: [u8; 6]) -> bool {
    link.attributes
        .iter()
        .any(|attribute| matches!(attribute, LinkAttribute::Address(bytes) if *bytes == mac))
}

fn link(message: &LinkMessage) -> Link {
    let name = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => Some(name.clone()),
            _ => None,
        });
    Link {
        index: message.header.index,
        name: name.unwrap_or_default(),
    }
}
