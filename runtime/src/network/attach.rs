//! From a pod to interfaces that its guest can have.

use std::os::fd::OwnedFd;

use isopod_proto::agent::Interface;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::cni::{Attachment, CniResult};
use super::link::Links;
use super::namespace::Namespace;
use super::pod::Bandwidth;
use super::{NetworkError, Networks, PodNetwork, blocking, pod, resolver, tap};
use crate::id::SandboxId;
use crate::sandbox::{Dns, PodConfig};

/// The name of a pod's first interface.
const INTERFACE: &str = "eth0";

/// Most queues of an interface: more vCPUs share them.
const QUEUES_MAX: u32 = 8;

/// A pod in its network.
#[derive(Debug)]
pub(crate) struct Attached {
    /// Where it is.
    pub(crate) network: PodNetwork,
    /// What its guest gets.
    pub(crate) nics: Vec<Nic>,
    /// Its resolver's configuration.
    pub(crate) dns: Dns,
}

/// An interface of a guest.
#[derive(Debug)]
pub(crate) struct Nic {
    /// As the guest shall have it.
    pub(crate) interface: Interface,
    /// The queues of the tap, whose other end is the network.
    pub(crate) queues: Vec<OwnedFd>,
    /// How fast the VMM lets packets go.
    pub(crate) bandwidth: Bandwidth,
}

impl Networks {
    /// Makes a namespace for the sandbox, has the plugins attach it, and a tap for each interface;
    /// `None` when pods have no networks. Whether it fails or is cancelled in the middle,
    /// [`detach`](Self::detach) undoes it.
    ///
    /// # Errors
    ///
    /// [`NetworkError`] of the first step that fails.
    #[tracing::instrument(level = "debug", skip_all)]
    pub(crate) async fn attach(
        &self,
        id: &SandboxId,
        pod: &PodConfig,
        cancel: &CancellationToken,
    ) -> Result<Option<Attached>, NetworkError> {
        if !self.enabled {
            return Ok(None);
        }
        let network = self.load().await?;
        self.plugins.find_all(&network)?;
        let bandwidth = Bandwidth::of(&pod.annotations)?;
        // Networks whose plugins do not shape leave it to the VMM.
        let shaped_by_vmm = match network.takes("bandwidth") {
            true => Bandwidth::default(),
            false => bandwidth,
        };
        let namespace = Namespace::random()?;
        let mut attachment = Attachment {
            network,
            container_id: id.to_string(),
            netns: namespace.path().to_owned(),
            interface: INTERFACE.to_owned(),
            args: pod::args(id, pod)?,
            capabilities: pod::capabilities(pod, bandwidth, self.pod_cidr.ip_ranges()),
            result: None,
        };
        let adding = self.adding.read().await;
        self.records.save_network(id, &attachment).await?;
        let new = namespace.clone();
        blocking(move || new.create()).await?;
        let links = Links::open(&namespace).await?;
        links.bring_loopback_up().await?;
        let added = self.plugins.add(&attachment, cancel);
        let result = added.instrument(tracing::debug_span!("add")).await?;
        drop(adding);
        // What is none is not what DEL shall be told.
        let parsed = CniResult::parse(&result, INTERFACE)?;
        attachment.result = Some(result);
        self.records.save_network(id, &attachment).await?;

        let nics = make_nics(&namespace, &links, pod.size.max_vcpus, shaped_by_vmm).await?;
        if nics.is_empty() {
            return Err(NetworkError::NoInterface(attachment.network.name));
        }
        let dns = match pod.dns == Dns::default() {
            true => {
                let result = parsed.clone();
                blocking(move || Ok(resolver::default(&result))).await?
            }
            false => pod.dns.clone(),
        };
        let network = PodNetwork {
            netns: attachment.netns,
            ips: parsed.ips,
        };
        Ok(Some(Attached { network, nics, dns }))
    }
}

async fn make_nics(
    namespace: &Namespace,
    links: &Links,
    vcpus: u32,
    bandwidth: Bandwidth,
) -> Result<Vec<Nic>, NetworkError> {
    let count = vcpus.clamp(1, QUEUES_MAX);
    let mut nics = Vec::new();
    let mut found = links.interfaces().await?;
    // The pod's own comes first, whatever else there is.
    found.sort_by_key(|link| link.interface.name != INTERFACE);
    for link in found {
        let pairs = usize::try_from(count).expect("at most QUEUES_MAX");
        let queues = tap::make(namespace, links, &link, pairs).await?;
        let mut interface = link.interface;
        interface.queues = count;
        nics.push(Nic {
            interface,
            queues,
            bandwidth,
        });
    }
    Ok(nics)
}
