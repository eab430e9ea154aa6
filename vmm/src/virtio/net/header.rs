//! What stands before each packet, to and from the guest (`struct virtio_net_hdr`, virtio 1.2
//! section 5.1.6).
//!
//! A tap takes the same structure, so the guest's would go straight to the host's kernel. It is
//! copied and checked first: the kernel sees nothing that the driver did not negotiate, and the
//! guest cannot change it in between.

use super::feature;

/// Length of `struct virtio_net_hdr_v1`: every driver of this transport has it.
pub(super) const HEADER_LEN: usize = 12;

/// Where `num_buffers` is in it.
pub(super) const NUM_BUFFERS: usize = 10;

const NEEDS_CSUM: u8 = 1;

const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
const GSO_ECN: u8 = 0x80;

/// Checks and cleans the header of a packet from a guest whose driver accepted `features`; `false`
/// when the packet must not go out.
pub(super) fn check(header: &mut [u8; HEADER_LEN], features: u64) -> bool {
    let has = |feature: u64| features & feature != 0;
    let (flags, gso) = (header[0], header[1]);
    let gso_size = u16::from_le_bytes([header[4], header[5]]);
    let needs_csum = flags & NEEDS_CSUM != 0;
    if needs_csum && !has(feature::CSUM) {
        return false;
    }
    let allowed = match gso & !GSO_ECN {
        GSO_NONE => gso & GSO_ECN == 0,
        GSO_TCPV4 => has(feature::HOST_TSO4),
        GSO_TCPV6 => has(feature::HOST_TSO6),
        GSO_UDP_L4 => has(feature::HOST_USO) && gso & GSO_ECN == 0,
        _ => false,
    };
    let ecn_allowed = gso & GSO_ECN == 0 || has(feature::HOST_ECN);
    // A segment needs a checksum of its own (section 5.1.6.2.1).
    let segments = gso == GSO_NONE || (needs_csum && gso_size > 0);
    // Other flags are for the other direction, and so is the number of buffers.
    header[0] = flags & NEEDS_CSUM;
    header[NUM_BUFFERS..].fill(0);
    allowed && ecn_allowed && segments
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: u64 = u64::MAX;

    fn header(flags: u8, gso: u8, gso_size: u16) -> [u8; HEADER_LEN] {
        let [low, high] = gso_size.to_le_bytes();
        [flags, gso, 54, 0, low, high, 34, 0, 16, 0, 7, 7]
    }

    #[test]
    fn what_was_negotiated_passes_and_nothing_else() {
        let cases = [
            (header(0, GSO_NONE, 0), 0),
            (header(NEEDS_CSUM, GSO_NONE, 0), feature::CSUM),
            (
                header(NEEDS_CSUM, GSO_TCPV4, 1448),
                feature::CSUM | feature::HOST_TSO4,
            ),
            (
                header(NEEDS_CSUM, GSO_TCPV6, 1428),
                feature::CSUM | feature::HOST_TSO6,
            ),
            (
                header(NEEDS_CSUM, GSO_UDP_L4, 1400),
                feature::CSUM | feature::HOST_USO,
            ),
            (
                header(NEEDS_CSUM, GSO_TCPV4 | GSO_ECN, 1448),
                feature::CSUM | feature::HOST_TSO4 | feature::HOST_ECN,
            ),
        ];
        for (header, needed) in cases {
            assert!(check(&mut header.clone(), needed), "{header:?}");
            for bit in (0..64).map(|bit| 1 << bit) {
                if needed & bit != 0 {
                    assert!(
                        !check(&mut header.clone(), ALL & !bit),
                        "{header:?} {bit:#x}"
                    );
                }
            }
        }
    }

    #[test]
    fn segments_without_a_size_or_a_checksum_do_not_pass() {
        assert!(!check(&mut header(NEEDS_CSUM, GSO_TCPV4, 0), ALL));
        assert!(!check(&mut header(0, GSO_TCPV4, 1448), ALL));
    }

    #[test]
    fn unknown_kinds_do_not_pass() {
        for gso in [2, 3, 6, 0x7f, GSO_ECN, GSO_ECN | GSO_UDP_L4, 0xff] {
            assert!(!check(&mut header(NEEDS_CSUM, gso, 1448), ALL), "{gso}");
        }
    }

    #[test]
    fn what_belongs_to_the_other_direction_is_cleared() {
        let mut dirty = header(0xfe, GSO_NONE, 0);
        assert!(check(&mut dirty, 0));
        assert_eq!((dirty[0], &dirty[NUM_BUFFERS..]), (0, &[0, 0][..]));
    }
}
