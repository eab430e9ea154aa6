//! What the network does: a guest's interface against QEMU's, and streams through the daemon.
//!
//! ```text
//!  harness ── TCP ── tap bench0 ── VMM ── virtio-net ── guest: busybox
//!  traffic.rs        tap.rs        ours or QEMU's       guest.rs
//! ```
//!
//! Both VMMs get the same tap with the same options, the same guest and one vCPU; neither gets help
//! from the host's kernel (`vhost`). Ours has its interface on PCI, added while the guest runs as it is
//! for a pod; QEMU's microvm has it on MMIO from the start.

mod guest;
mod streams;
mod tap;
mod traffic;

use std::net::Ipv4Addr;

use anyhow::{Context as _, Result};

use self::traffic::Figures;
use super::table::{Row, Table};
use super::vmm::Vmm;
use super::{Guest, qemu};

/// The network between host and guest.
const HOST: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
const GUEST: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 2);
const PREFIX_LEN: u8 = 24;

/// The guest's interface: a local address (IEEE 802), and the MTU of most networks.
const MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x63];
const MTU: u32 = 1500;

/// Ports of the guest: says what it hears, sends [`BYTES`], reads to the end.
const ECHO: u16 = 7;
const SOURCE: u16 = 19;
const SINK: u16 = 9;

/// How often one guest is tried.
const ATTEMPTS: u32 = 4;

/// What is sent at once in each direction, a multiple of every buffer on the way.
const BYTES: u64 = 64 << 20;

/// Measures everything about the network, `repetitions` times.
///
/// # Errors
/// A guest did not answer.
pub fn net(repetitions: u32) -> Result<Table> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the runtime")?;
    let guest = guest::prepare()?;
    let (mut ours, mut peers) = (Vec::new(), Vec::new());
    // The first of each does not count, and they alternate, as everywhere here.
    for repetition in 0..=repetitions {
        let own = patiently("vmm", || runtime.block_on(vmm(&guest)))?;
        let peer = patiently("qemu", || qemu(&guest))?;
        eprintln!("vmm {own:?}\nqemu {peer:?}");
        if repetition > 0 {
            ours.push(own);
            peers.push(peer);
        }
    }
    let mut rows = interface_rows(OURS, &ours);
    rows.extend(interface_rows(QEMU, &peers));
    let ratios = OURS.into_iter().zip(QEMU);
    let ratios = ratios.map(|((name, _), (peer, _))| (name, "qemu-microvm", peer));
    Ok(Table {
        rows,
        ratios: ratios.collect(),
    })
}

/// Measures commands and output of containers through the daemon, `repetitions` times.
///
/// # Errors
/// The daemon failed.
pub fn streams(repetitions: u32) -> Result<Table> {
    let times = streams::measure(repetitions)?;
    let [spdy, websocket] = times.attach;
    let rate = |name, what, times| Row::rates(name, what, streams::BYTES, times);
    Ok(Table {
        rows: vec![
            Row::times("net.exec", "ExecSync of `true`", times.exec),
            rate(
                "net.attach_spdy",
                "a container's output to crictl attach, SPDY",
                spdy,
            ),
            rate(
                "net.attach_websocket",
                "the same over a WebSocket",
                websocket,
            ),
        ],
        ratios: vec![],
    })
}

/// Measures once more when a guest has stood still, under either VMM. On the instruction clock, QEMU
/// may deliver an interrupt to a guest twice, and the guest may not survive that.
fn patiently(what: &str, mut measure: impl FnMut() -> Result<Figures>) -> Result<Figures> {
    for _ in 1..ATTEMPTS {
        match measure() {
            Ok(figures) => return Ok(figures),
            Err(error) => eprintln!("{what} is measured again: {error:#}"),
        }
    }
    measure()
}

/// Names of an interface's rows, and what they say.
type Names = [(&'static str, &'static str); 3];

const OURS: Names = [
    ("net.tcp_throughput", "TCP from a guest to the host"),
    (
        "net.tcp_throughput_to_guest",
        "TCP from the host to a guest",
    ),
    (
        "net.rtt",
        "one byte to a guest and back over TCP, median of 500",
    ),
];

const QEMU: Names = [
    (
        "net.qemu_throughput",
        "from a guest under QEMU's microvm, no vhost",
    ),
    ("net.qemu_throughput_to_guest", "to that guest"),
    ("net.qemu_rtt", "one byte to that guest and back"),
];

fn interface_rows([from, to, rtt]: Names, figures: &[Figures]) -> Vec<Row> {
    let all = |figure: fn(&Figures) -> _| figures.iter().map(figure).collect();
    vec![
        Row::rates(from.0, from.1, BYTES, all(|it| it.from_guest)),
        Row::rates(to.0, to.1, BYTES, all(|it| it.to_guest)),
        Row::times(rtt.0, rtt.1, all(|it| it.round_trip)),
    ]
}

async fn vmm(guest: &Guest) -> Result<Figures> {
    let tap = tap::open()?;
    let vmm = Vmm::boot(guest).await?;
    vmm.add_nic(&tap, MAC, MTU).await?;
    drop(tap);
    vmm.with_log(traffic::measure())
}

fn qemu(guest: &Guest) -> Result<Figures> {
    let tap = tap::open()?;
    let _qemu = qemu::with_nic(guest, &tap, MAC)?;
    drop(tap);
    traffic::measure()
}
