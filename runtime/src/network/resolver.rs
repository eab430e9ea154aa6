//! Which name servers a pod asks: those that it was told, or else its network's, or else the node's.

use std::fs::File;
use std::io::Read;
use std::net::IpAddr;

use super::cni::CniResult;
use crate::sandbox::Dns;

/// The node's own configuration.
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Most of it that is read, in bytes.
const RESOLV_CONF_MAX: u64 = 64 << 10;

/// What a pod without name servers of its own gets. Blocking.
pub(super) fn default(result: &CniResult) -> Dns {
    let dns = &result.dns;
    if !dns.nameservers.is_empty() {
        let domain = Some(&dns.domain).filter(|domain| !domain.is_empty());
        return Dns {
            servers: dns.nameservers.clone(),
            searches: domain.into_iter().chain(&dns.search).cloned().collect(),
            options: dns.options.clone(),
        };
    }
    let mut text = String::new();
    let opened = File::open(RESOLV_CONF);
    let read = opened.and_then(|file| file.take(RESOLV_CONF_MAX).read_to_string(&mut text));
    // A node without name servers gives its pods none.
    read.map_or_else(|_error| Dns::default(), |_length| parse(&text))
}

/// resolv.conf(5), without servers that only the node itself can reach.
fn parse(text: &str) -> Dns {
    let mut dns = Dns::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => {
                let reachable =
                    |server: &&str| server.parse::<IpAddr>().is_ok_and(|ip| !ip.is_loopback());
                dns.servers
                    .extend(words.next().filter(reachable).map(str::to_owned));
            }
            // The last one counts.
            Some("search" | "domain") => dns.searches = words.map(str::to_owned).collect(),
            Some("options") => dns.options.extend(words.map(str::to_owned)),
            _ => {}
        }
    }
    dns
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nodes_file_is_read_without_its_local_servers() {
        let text = "# comment\nnameserver 127.0.0.53\nnameserver 10.0.0.2\nnameserver ::1\n\
                    nameserver fd00::2\nnameserver fe80::1%eth0\nsearch a\nsearch b c\n\
                    options ndots:2 edns0\n";
        let dns = parse(text);
        assert_eq!(dns.servers, ["10.0.0.2", "fd00::2"]);
        assert_eq!(dns.searches, ["b", "c"]);
        assert_eq!(dns.options, ["ndots:2", "edns0"]);
    }
}
