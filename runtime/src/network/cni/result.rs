//! What ADD answers (specification, section 5), as far as it matters here.

use std::net::IpAddr;

use serde::Deserialize;
use serde_json::Value;

/// Most interfaces, addresses and entries of a DNS list in a result.
const ENTRIES_MAX: usize = 256;

/// A result.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct CniResult {
    /// The pod's addresses: those of its first interface.
    pub(crate) ips: Vec<IpAddr>,
    /// What the network says of name servers.
    pub(crate) dns: ResultDns,
}

/// `dns` of a result.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ResultDns {
    /// Addresses.
    pub(crate) nameservers: Vec<String>,
    /// The local domain; a search domain like others.
    pub(crate) domain: String,
    /// Search domains.
    pub(crate) search: Vec<String>,
    /// Options of the resolver.
    pub(crate) options: Vec<String>,
}

/// A result that does not make sense.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ResultError {
    /// Not of the specification's form.
    #[error("the result of the CNI plugins is not one")]
    Form(#[source] serde_json::Error),
    /// More than any network has.
    #[error("the result of the CNI plugins has more than {ENTRIES_MAX} entries of a kind")]
    Size,
    /// Not `address/length`.
    #[error("the result of the CNI plugins has {0:?}, which is no address and prefix length")]
    Address(String),
}

#[derive(Debug, Deserialize)]
struct Form {
    #[serde(default, deserialize_with = "or_default")]
    interfaces: Vec<InterfaceForm>,
    #[serde(default, deserialize_with = "or_default")]
    ips: Vec<IpForm>,
    #[serde(default, deserialize_with = "or_default")]
    dns: ResultDns,
}

#[derive(Debug, Deserialize)]
struct InterfaceForm {
    name: String,
    #[serde(default)]
    sandbox: String,
}

#[derive(Debug, Deserialize)]
struct IpForm {
    address: String,
    #[serde(default)]
    interface: Option<usize>,
}

/// `null` is nothing: Go's encoders write it for empty lists.
fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Option::<T>::deserialize(deserializer).map(Option::unwrap_or_default)
}

impl CniResult {
    /// Reads a result; the pod's first interface is `interface`.
    ///
    /// # Errors
    ///
    /// [`ResultError`] for what is none.
    pub(crate) fn parse(result: &Value, interface: &str) -> Result<Self, ResultError> {
        let Form {
            interfaces,
            ips,
            dns,
        } = Form::deserialize(result).map_err(ResultError::Form)?;
        let lengths = [
            interfaces.len(),
            ips.len(),
            dns.nameservers.len(),
            dns.search.len(),
            dns.options.len(),
        ];
        if lengths.into_iter().any(|length| length > ENTRIES_MAX) {
            return Err(ResultError::Size);
        }
        // An address belongs to the pod unless it says that it is another interface's.
        let is_pods = |ip: &&IpForm| match ip.interface.map(|index| interfaces.get(index)) {
            Some(Some(owner)) => owner.name == interface && !owner.sandbox.is_empty(),
            Some(None) => false,
            None => true,
        };
        let mut ips = ips
            .iter()
            .filter(is_pods)
            .map(|ip| address(&ip.address))
            .collect::<Result<Vec<_>, _>>()?;
        // The kubelet takes the first as the pod's own: as with other runtimes, one of IPv4.
        ips.sort_by_key(IpAddr::is_ipv6);
        Ok(Self { ips, dns })
    }
}

fn address(text: &str) -> Result<IpAddr, ResultError> {
    let parse = || {
        let (ip, length) = text.split_once('/')?;
        let (ip, length) = (ip.parse::<IpAddr>().ok()?, length.parse::<u8>().ok()?);
        let most = if ip.is_ipv4() { 32 } else { 128 };
        (length <= most).then_some(ip)
    };
    parse().ok_or_else(|| ResultError::Address(text.chars().take(64).collect()))
}

/// What a target in `fuzz/` calls, and a bounded test with every run.
#[cfg(any(test, fuzzing))]
#[cfg_attr(
    not(fuzzing),
    expect(
        unreachable_pub,
        reason = "the fuzz crate compiles this file as its own"
    )
)]
pub mod fuzz {
    use std::net::IpAddr;

    use super::{CniResult, ENTRIES_MAX};

    /// Reads `data` as what plugins have printed. What is taken has no more than a network has, with
    /// IPv4 first.
    pub fn result(data: &[u8]) {
        let Ok(value) = serde_json::from_slice(data) else {
            return;
        };
        if let Ok(result) = CniResult::parse(&value, "eth0") {
            assert!(result.ips.len() <= ENTRIES_MAX);
            assert!(result.ips.is_sorted_by_key(IpAddr::is_ipv6));
            assert!(result.dns.nameservers.len() <= ENTRIES_MAX);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn addresses_of_the_pods_interface_are_the_pods_ipv4_first() {
        let result = json!({
            "cniVersion": "1.0.0",
            "interfaces": [
                { "name": "cni0" },
                { "name": "eth0", "sandbox": "/run/netns/x" },
                { "name": "net1", "sandbox": "/run/netns/x" },
            ],
            "ips": [
                { "interface": 1, "address": "fd00::5/64" },
                { "interface": 1, "address": "10.1.0.5/16", "gateway": "10.1.0.1" },
                { "interface": 2, "address": "10.9.0.5/16" },
                { "interface": 0, "address": "10.1.0.1/16" },
            ],
            "dns": { "nameservers": ["10.1.0.1"] }
        });
        let parsed = CniResult::parse(&result, "eth0").unwrap();
        let ips: Vec<IpAddr> = ["10.1.0.5", "fd00::5"].map(|ip| ip.parse().unwrap()).into();
        assert_eq!(parsed.ips, ips);
        assert_eq!(parsed.dns.nameservers, ["10.1.0.1"]);
    }

    #[test]
    fn a_result_of_old_and_an_empty_one_are_read() {
        let old = json!({
            "cniVersion": "0.3.1", "interfaces": null,
            "ips": [{ "version": "4", "address": "10.0.0.2/24" }], "dns": {}
        });
        assert_eq!(CniResult::parse(&old, "eth0").unwrap().ips.len(), 1);
        let empty = CniResult::parse(&json!({}), "eth0").unwrap();
        assert_eq!(empty, CniResult::default());
    }

    #[test]
    fn what_is_no_result_is_refused() {
        for bad in [
            json!(null),
            json!("text"),
            json!({ "ips": 1 }),
            json!({ "ips": [{}] }),
            json!({ "ips": [{ "address": "10.0.0.1" }] }),
            json!({ "ips": [{ "address": "10.0.0.1/33" }] }),
            json!({ "ips": [{ "address": "::/129" }] }),
            json!({ "ips": [{ "address": "x/1" }] }),
            json!({ "ips": vec![json!({ "address": "10.0.0.1/8" }); ENTRIES_MAX + 1] }),
        ] {
            assert!(CniResult::parse(&bad, "eth0").is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in r#"[\[\]{}",:0-9a-z./ ]{0,200}"#) {
            fuzz::result(text.as_bytes());
        }

        #[test]
        fn any_addresses_are_read_or_refused(
            addresses in proptest::collection::vec("[0-9a-f.:]{1,12}/[0-9]{1,3}", 0..8),
            interface in 0_usize..3,
        ) {
            let ips: Vec<_> = addresses
                .iter()
                .map(|address| json!({ "address": address, "interface": interface }))
                .collect();
            let interfaces = [json!({ "name": "eth0", "sandbox": "/run/netns/x" }), json!({ "name": "x" })];
            fuzz::result(json!({ "interfaces": interfaces, "ips": ips }).to_string().as_bytes());
        }
    }
}
