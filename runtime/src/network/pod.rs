//! What plugins are told of a pod: `CNI_ARGS` and arguments for capabilities, as the kubelet's other
//! runtimes tell them (CNI conventions, "Capabilities"; Kubernetes, "Network Plugins").

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::NetworkError;
use crate::field::FieldError;
use crate::id::SandboxId;
use crate::sandbox::PodConfig;

/// Annotations with the pod's bandwidth, in bits per second as Kubernetes writes quantities. The
/// directions are the pod's.
const INGRESS: &str = "kubernetes.io/ingress-bandwidth";
const EGRESS: &str = "kubernetes.io/egress-bandwidth";
/// Least and most bandwidth that makes sense, in bits per second: Kubernetes' own limits.
const BANDWIDTH_MIN: u64 = 1_000;
const BANDWIDTH_MAX: u64 = 1_000_000_000_000_000;

/// A port of the node that leads to one of the pod's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PortMapping {
    /// `tcp`, `udp` or `sctp`.
    pub(crate) protocol: String,
    /// The pod's.
    pub(crate) container_port: u16,
    /// The node's.
    pub(crate) host_port: u16,
    /// The node's address; empty: any.
    pub(crate) host_ip: String,
}

/// `CNI_ARGS`.
///
/// # Errors
///
/// When a name of the pod's would be read as another argument.
pub(super) fn args(id: &SandboxId, pod: &PodConfig) -> Result<Vec<(String, String)>, NetworkError> {
    let args = [
        ("IgnoreUnknown", "1", ""),
        (
            "K8S_POD_NAMESPACE",
            &pod.namespace,
            "config.metadata.namespace",
        ),
        ("K8S_POD_NAME", &pod.name, "config.metadata.name"),
        ("K8S_POD_INFRA_CONTAINER_ID", id.as_str(), ""),
        ("K8S_POD_UID", &pod.uid, "config.metadata.uid"),
    ];
    for (_, value, field) in args {
        if value.contains([';', '=', '\0']) {
            let reason = "has a `;` or `=` in it, which CNI plugins would misread";
            return Err(FieldError::new(field, reason).into());
        }
    }
    let owned = args.map(|(name, value, _)| (name.to_owned(), value.to_owned()));
    Ok(owned.into())
}

/// The arguments for capabilities that the pod has something to say to.
pub(super) fn capabilities(
    pod: &PodConfig,
    bandwidth: Bandwidth,
    ip_ranges: Option<Value>,
) -> BTreeMap<String, Value> {
    let mut capabilities = BTreeMap::new();
    let mut add = |name: &str, value: Value| capabilities.insert(name.to_owned(), value);
    if !pod.port_mappings.is_empty() {
        let mappings = pod.port_mappings.iter().map(|mapping| {
            json!({
                "hostPort": mapping.host_port,
                "containerPort": mapping.container_port,
                "protocol": mapping.protocol,
                "hostIP": mapping.host_ip,
            })
        });
        add("portMappings", mappings.collect());
    }
    if let Some(bandwidth) = bandwidth.argument() {
        add("bandwidth", bandwidth);
    }
    if !pod.dns.servers.is_empty() || !pod.dns.searches.is_empty() {
        let dns = json!({
            "servers": pod.dns.servers,
            "searches": pod.dns.searches,
            "options": pod.dns.options,
        });
        add("dns", dns);
    }
    if let Some(ranges) = ip_ranges {
        add("ipRanges", ranges);
    }
    capabilities
}

/// How fast a pod's packets may go, in bits per second; 0: as fast as they can.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Bandwidth {
    /// To the pod.
    pub(crate) ingress: u64,
    /// From it.
    pub(crate) egress: u64,
}

impl Bandwidth {
    /// What the annotations say.
    ///
    /// # Errors
    ///
    /// [`FieldError`] for one that makes no sense.
    pub(super) fn of(annotations: &BTreeMap<String, String>) -> Result<Self, FieldError> {
        let rate = |annotation: &str| {
            let Some(text) = annotations.get(annotation) else {
                return Ok(0);
            };
            let bits = quantity(text).filter(|bits| (BANDWIDTH_MIN..=BANDWIDTH_MAX).contains(bits));
            bits.ok_or_else(|| {
                let field = format!("config.annotations[{annotation:?}]");
                FieldError::new(field, "is not a bandwidth between 1k and 1P, such as 10M")
            })
        };
        Ok(Self {
            ingress: rate(INGRESS)?,
            egress: rate(EGRESS)?,
        })
    }

    /// The capability's argument.
    fn argument(self) -> Option<Value> {
        let mut limits = Map::new();
        for (bits, rate, burst) in [
            (self.ingress, "ingressRate", "ingressBurst"),
            (self.egress, "egressRate", "egressBurst"),
        ] {
            if bits > 0 {
                limits.insert(rate.to_owned(), bits.into());
                // A second's worth; the plugin has it in bits, too, and in 32 of them.
                let most = u64::from(u32::MAX);
                limits.insert(burst.to_owned(), bits.min(most).into());
            }
        }
        (!limits.is_empty()).then_some(Value::Object(limits))
    }
}

/// A quantity as Kubernetes writes it, without exponents: `1500`, `10M`, `1.5Gi`.
fn quantity(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let factor: u64 = match &text[digits.len()..] {
        "" => 1,
        "k" => 1_000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "T" => 1_000_000_000_000,
        "P" => 1_000_000_000_000_000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "Ti" => 1 << 40,
        _ => return None,
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let number = |text: &str| match text {
        "" => Some(0),
        text if text.len() <= 15 && text.bytes().all(|byte| byte.is_ascii_digit()) => {
            text.parse::<u64>().ok()
        }
        _ => None,
    };
    if digits.is_empty() || digits == "." {
        return None;
    }
    let scale = 10_u128.pow(u32::try_from(fraction.len()).ok()?.min(15));
    let part = u128::from(number(fraction)?) * u128::from(factor) / scale;
    let whole = u128::from(number(whole)?).checked_mul(factor.into())?;
    u64::try_from(whole + part).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_as_kubernetes_writes_them() {
        for (text, bits) in [
            ("1500", 1500),
            ("10M", 10_000_000),
            ("1.5G", 1_500_000_000),
            ("1Ki", 1024),
            ("0.5Mi", 524_288),
            ("2.", 2),
        ] {
            assert_eq!(quantity(text), Some(bits), "{text}");
        }
        for text in [
            "",
            ".",
            "M",
            "-1",
            "1m",
            "1e3",
            "1 M",
            "99999999999999999999",
            "1.x",
            "é",
        ] {
            assert_eq!(quantity(text), None, "{text}");
        }
    }

    #[test]
    fn bandwidth_of_one_direction_says_nothing_of_the_other() {
        let annotations = [(EGRESS.to_owned(), "8M".to_owned())].into();
        let expected = json!({ "egressRate": 8_000_000, "egressBurst": 8_000_000 });
        let bandwidth = Bandwidth::of(&annotations).unwrap();
        assert_eq!(bandwidth.argument(), Some(expected));
        assert_eq!(Bandwidth::default().argument(), None);
    }

    #[test]
    fn bandwidth_that_makes_no_sense_is_refused_by_name() {
        for text in ["", "fast", "999", "2000P"] {
            let annotations = [(INGRESS.to_owned(), text.to_owned())].into();
            let error = Bandwidth::of(&annotations).unwrap_err();
            assert!(error.field.contains(INGRESS), "{text}");
        }
    }
}
