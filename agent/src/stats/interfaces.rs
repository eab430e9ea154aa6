//! The sandbox's network interfaces.
//!
//! The agent is in the namespace that the containers share, so `/proc/net/dev` is what they see too.

use std::fs;
use std::path::Path;

use isopod_proto::agent::InterfaceStats;

/// Most interfaces that are told of: a container that may make some can make many.
const INTERFACES_MAX: usize = 64;

/// `IFF_UP` (netdevice(7)).
const UP: u32 = 1;

/// Every interface that is up, but loopback. Blocking.
pub(crate) fn read() -> Vec<InterfaceStats> {
    let mut interfaces = parse(&fs::read_to_string("/proc/net/dev").unwrap_or_default());
    interfaces.retain(|interface| is_up(Path::new("/sys/class/net"), &interface.name));
    interfaces
}

/// The kernel has interfaces that nobody asked for, all of them down. One of which nothing can be
/// learnt counts as up.
fn is_up(class: &Path, name: &str) -> bool {
    let flags = fs::read_to_string(class.join(name).join("flags")).unwrap_or_default();
    let flags = u32::from_str_radix(flags.trim().trim_start_matches("0x"), 16);
    flags.map_or(true, |flags| flags & UP != 0)
}

/// `proc_net(5)`, `/proc/net/dev`: two lines of headings, then a name, a colon, eight numbers of what
/// came and eight of what went.
fn parse(text: &str) -> Vec<InterfaceStats> {
    text.lines()
        .skip(2)
        .filter_map(interface)
        .filter(|interface| interface.name != "lo")
        .take(INTERFACES_MAX)
        .collect()
}

fn interface(line: &str) -> Option<InterfaceStats> {
    // A name has neither a colon nor white space in it.
    let (name, numbers) = line.split_once(':')?;
    let numbers: Vec<u64> = numbers
        .split_ascii_whitespace()
        .filter_map(|word| word.parse().ok())
        .collect();
    let [
        rx_bytes,
        rx_packets,
        rx_errors,
        rx_dropped,
        _,
        _,
        _,
        _,
        tx_bytes,
        tx_packets,
        tx_errors,
        tx_dropped,
        ..,
    ] = numbers.as_slice()
    else {
        return None;
    };
    Some(InterfaceStats {
        name: name.trim().to_owned(),
        rx_bytes: *rx_bytes,
        rx_packets: *rx_packets,
        rx_errors: *rx_errors,
        rx_dropped: *rx_dropped,
        tx_bytes: *tx_bytes,
        tx_packets: *tx_packets,
        tx_errors: *tx_errors,
        tx_dropped: *tx_dropped,
        ..Default::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo: 100 1 0 0 0 0 0 0 100 1 0 0 0 0 0 0
  eth0:1234 10 1 2 0 0 0 0 5678 20 3 4 0 0 0 0
";

    #[test]
    fn both_directions_are_read_and_loopback_is_left_out() {
        let interfaces = parse(TEXT);
        assert_eq!(interfaces.len(), 1);
        let eth0 = &interfaces[0];
        assert_eq!(eth0.name, "eth0");
        assert_eq!(
            [
                eth0.rx_bytes,
                eth0.rx_packets,
                eth0.rx_errors,
                eth0.rx_dropped
            ],
            [1234, 10, 1, 2]
        );
        assert_eq!(
            [
                eth0.tx_bytes,
                eth0.tx_packets,
                eth0.tx_errors,
                eth0.tx_dropped
            ],
            [5678, 20, 3, 4]
        );
    }

    #[test]
    fn interface_that_is_down_is_told_apart() {
        let class = tempfile::tempdir().unwrap();
        for (name, flags) in [("eth0", "0x1003\n"), ("dummy0", "0x82\n")] {
            fs::create_dir(class.path().join(name)).unwrap();
            fs::write(class.path().join(name).join("flags"), flags).unwrap();
        }
        assert!(is_up(class.path(), "eth0"));
        assert!(!is_up(class.path(), "dummy0"));
        assert!(is_up(class.path(), "unknown"));
    }

    #[test]
    fn many_interfaces_are_cut_off_and_odd_lines_are_skipped() {
        let line = |number| format!("v{number}: 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1\n");
        let many: String = (0..200).map(line).collect();
        assert_eq!(parse(&format!("a\nb\n{many}")).len(), INTERFACES_MAX);
        assert!(parse("a\nb\nbroken\nshort: 1 2\n").is_empty());
    }
}
