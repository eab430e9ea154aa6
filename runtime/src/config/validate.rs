//! What the types of a [`Config`] admit and a daemon cannot use.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::load::Problem;
use super::{Config, EndpointConfig};
use crate::{image, logging};

/// Longest path of a unix socket: `sun_path` less its final zero (`unix(7)`).
const SOCKET_PATH_MAX: usize = 107;

/// Longest state folder: `/sandboxes/<id>/descriptors.sock` must fit behind it, with an id that
/// messages and paths shorten to 13 characters at least.
const STATE_DIR_MAX: usize = 72;

/// Longest addition to the guest's kernel command line, in bytes.
const KERNEL_ARGS_MAX: usize = 1024;

/// Every value that is out of its range.
pub(super) fn validate(config: &Config) -> Vec<Problem> {
    let mut check = Check::default();
    check.path("socket", &config.socket, SOCKET_PATH_MAX);
    check.path("root_dir", &config.root_dir, libc_path_max());
    check.path("state_dir", &config.state_dir, STATE_DIR_MAX);
    if let Err(error) = logging::parse_filter(&config.log_level) {
        let message =
            format!("must be a level (error, warn, info, debug, trace) or a filter: {error}");
        check.problem("log_level", message);
    }

    let vm = &config.vm;
    check.path("vm.vmm", &vm.vmm, libc_path_max());
    check.path("vm.kvm", &vm.kvm, libc_path_max());
    check.path("vm.kernel", &vm.kernel, libc_path_max());
    check.path("vm.agent_image", &vm.agent_image, libc_path_max());
    if !vm.initramfs.as_os_str().is_empty() {
        check.path("vm.initramfs", &vm.initramfs, libc_path_max());
    }
    check.range("vm.memory_mib", vm.memory_mib, &(64..=1024 * 1024));
    check.range("vm.max_memory_mib", vm.max_memory_mib, &(0..=255 * 1024));
    check.range("vm.max_vcpus", vm.max_vcpus, &(1..=64));
    check.range("vm.scratch_mib", vm.scratch_mib, &(16..=16 * 1024 * 1024));
    check.range("vm.start_timeout_ms", vm.start_timeout_ms, &(100..=600_000));
    let printable = |byte: u8| byte == b' ' || byte.is_ascii_graphic();
    if vm.kernel_args.len() > KERNEL_ARGS_MAX || !vm.kernel_args.bytes().all(printable) {
        let message = format!("must be at most {KERNEL_ARGS_MAX} printable ASCII characters");
        check.problem("vm.kernel_args", message);
    }

    let max_layer = &(1..=4 * 1024 * 1024);
    check.range(
        "registry.max_layer_mib",
        config.registry.max_layer_mib,
        max_layer,
    );
    let keep = &(0..=24 * 60 * 60 * 1000);
    check.range(
        "registry.keep_layers_ms",
        config.registry.keep_layers_ms,
        keep,
    );
    check.optional_path(
        "registry.credentials_file",
        &config.registry.credentials_file,
    );
    for (index, reference) in config.registry.pinned.iter().enumerate() {
        if let Err(error) = image::check_reference(reference) {
            check.problem(&format!("registry.pinned[{index}]"), error.to_string());
        }
    }
    for (registry, endpoints) in &config.registry.mirrors {
        check.mirror(registry, endpoints);
    }

    let cni = &config.cni;
    check.paths("cni.config_dirs", &cni.config_dirs);
    check.paths("cni.plugin_dirs", &cni.plugin_dirs);
    check.range("cni.timeout_ms", cni.timeout_ms, &(100..=600_000));

    let streaming = &config.streaming;
    let idle = 1000..=30 * 24 * 60 * 60 * 1000;
    check.range(
        "streaming.idle_timeout_ms",
        streaming.idle_timeout_ms,
        &idle,
    );
    if config.metrics.address().is_err() {
        let message = format!(
            "must be an IP address and a port, such as \"127.0.0.1:9476\", or \"\", is {:?}",
            config.metrics.address
        );
        check.problem("metrics.address", message);
    }
    check.problems
}

/// `PATH_MAX` less its final zero.
fn libc_path_max() -> usize {
    usize::try_from(libc::PATH_MAX - 1).expect("PATH_MAX is 4096")
}

#[derive(Default)]
struct Check {
    problems: Vec<Problem>,
}

impl Check {
    fn path(&mut self, key: &str, path: &Path, max: usize) {
        let length = path.as_os_str().as_bytes().len();
        if !path.is_absolute() {
            let message = format!(
                "must be an absolute path, is {:?}",
                path.display().to_string()
            );
            self.problem(key, message);
        } else if length > max {
            let message = format!("must be a path of at most {max} bytes, has {length}");
            self.problem(key, message);
        }
    }

    fn optional_path(&mut self, key: &str, path: &Path) {
        if !path.as_os_str().is_empty() {
            self.path(key, path, libc_path_max());
        }
    }

    fn paths(&mut self, key: &str, paths: &[PathBuf]) {
        if paths.is_empty() {
            self.problem(key, "must name a folder");
        }
        for (index, path) in paths.iter().enumerate() {
            self.path(&format!("{key}[{index}]"), path, libc_path_max());
        }
    }

    fn range<T: PartialOrd + Display + Copy>(
        &mut self,
        key: &str,
        value: T,
        range: &RangeInclusive<T>,
    ) {
        if !range.contains(&value) {
            let message = format!("must be {} to {}, is {value}", range.start(), range.end());
            self.problem(key, message);
        }
    }

    fn mirror(&mut self, registry: &str, endpoints: &[EndpointConfig]) {
        let key = format!("registry.mirrors.{registry:?}");
        if !is_authority(registry) {
            self.problem(
                &key,
                "must be a registry's `host` or `host:port` as image names write it",
            );
        }
        for (index, endpoint) in endpoints.iter().enumerate() {
            if !is_authority(&endpoint.host) {
                let message = format!(
                    "must be `host` or `host:port` without a scheme or a path, is {:?}",
                    endpoint.host
                );
                self.problem(&format!("{key}[{index}].host"), message);
            }
            self.tls(&format!("{key}[{index}]"), endpoint);
        }
    }

    fn tls(&mut self, key: &str, endpoint: &EndpointConfig) {
        let files = [
            ("ca_file", &endpoint.ca_file),
            ("client_cert_file", &endpoint.client_cert_file),
            ("client_key_file", &endpoint.client_key_file),
        ];
        for (name, path) in files {
            self.optional_path(&format!("{key}.{name}"), path);
            if endpoint.plain_http && !path.as_os_str().is_empty() {
                self.problem(
                    &format!("{key}.{name}"),
                    "means nothing beside plain_http = true",
                );
            }
        }
        let is_empty = |path: &Path| path.as_os_str().is_empty();
        if is_empty(&endpoint.client_cert_file) != is_empty(&endpoint.client_key_file) {
            self.problem(
                key,
                "client_cert_file and client_key_file go together: set both or none",
            );
        }
    }

    fn problem(&mut self, key: &str, message: impl Into<String>) {
        self.problems.push(Problem::new(key, message));
    }
}

/// `host` or `host:port` (RFC 3986 section 3.2, without user information).
fn is_authority(text: &str) -> bool {
    match text.parse::<http::uri::Authority>() {
        Ok(authority) => {
            let bare = !text.contains('@') && !authority.host().is_empty();
            let port = text[authority.host().len()..].strip_prefix(':');
            bare && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port != 0))
        }
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_valid() {
        assert_eq!(validate(&Config::default()), []);
    }

    #[test]
    fn limits_themselves_are_valid_and_the_next_value_is_not() {
        let mut config = Config::default();
        config.vm.memory_mib = 64;
        config.vm.max_vcpus = 64;
        config.socket = format!("/{}", "s".repeat(106)).into();
        assert_eq!(validate(&config), []);
        config.vm.memory_mib = 63;
        config.vm.max_vcpus = 65;
        config.socket = format!("/{}", "s".repeat(107)).into();
        let keys: Vec<String> = validate(&config).into_iter().map(|p| p.key).collect();
        assert_eq!(keys, ["socket", "vm.memory_mib", "vm.max_vcpus"]);
    }

    #[test]
    fn kernel_arguments_with_a_line_break_are_refused() {
        let mut config = Config::default();
        config.vm.kernel_args = "quiet\ninit=/bin/sh".into();
        assert_eq!(validate(&config)[0].key, "vm.kernel_args");
    }

    #[test]
    fn a_client_certificate_without_its_key_or_over_plain_http_is_refused() {
        let mut config = Config::default();
        let endpoints = vec![
            EndpointConfig {
                host: "a".into(),
                client_cert_file: "/cert.pem".into(),
                ..EndpointConfig::default()
            },
            EndpointConfig {
                host: "b".into(),
                plain_http: true,
                ca_file: "ca.pem".into(),
                ..EndpointConfig::default()
            },
        ];
        config.registry.mirrors.insert("a".into(), endpoints);
        let keys: Vec<String> = validate(&config).into_iter().map(|p| p.key).collect();
        let mirror = "registry.mirrors.\"a\"";
        let ca = format!("{mirror}[1].ca_file");
        assert_eq!(keys, [format!("{mirror}[0]"), ca.clone(), ca]);
    }

    #[test]
    fn a_pinned_image_is_a_reference() {
        let mut config = Config::default();
        config.registry.pinned = vec!["busybox".into(), "a//b".into()];
        let problems = validate(&config);
        assert_eq!(problems.len(), 1);
        assert_eq!(problems[0].key, "registry.pinned[1]");
    }

    #[test]
    fn metrics_need_an_address_and_a_port_or_nothing() {
        let mut config = Config::default();
        for (address, good) in [("", true), ("[::1]:9476", true), ("localhost:9476", false)] {
            config.metrics.address = address.into();
            assert_eq!(validate(&config).is_empty(), good, "{address:?}");
        }
    }

    #[test]
    fn authority_is_host_and_port_alone() {
        for good in [
            "docker.io",
            "127.0.0.1:5000",
            "[::1]:5000",
            "localhost",
            "[::1]",
        ] {
            assert!(is_authority(good), "{good}");
        }
        for bad in [
            "", "http://a", "a/b", "user@a", "a:99999", "a:", "a:0", "a b", ":5000",
        ] {
            assert!(!is_authority(bad), "{bad}");
        }
    }
}
