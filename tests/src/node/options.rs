//! What a test wants of its node.

use std::path::PathBuf;

use anyhow::Result;
use toml::{Table, Value};

use super::{Node, REGISTRY};
use crate::environment;
use crate::network::{Cni, PLUGINS};

/// Where images come from.
#[derive(Debug, Clone)]
pub enum Images {
    /// No registry answers.
    None,
    /// Debian's docker-registry with the test images.
    Registry,
    /// A registry of the test's own, `host:port`, over plain HTTP.
    Endpoint(String),
}

/// What the daemon's `root_dir` lies on.
#[derive(Debug, Clone, Copy)]
pub enum DataDir {
    /// The machine's file system.
    Large,
    /// A tmpfs of this size, to run out of space.
    Small {
        /// Size in MiB.
        mib: u32,
    },
    /// An ext4 of this size whose disk is in memory: it has a page cache, and nobody waits for it.
    Disk {
        /// Size in MiB.
        mib: u32,
    },
}

/// What a test wants of its node.
#[derive(Debug, Clone)]
pub struct Options {
    kvm: bool,
    pub(super) images: Images,
    pub(super) data: DataDir,
    /// The registries in the names of images that come from there.
    mirrored: Vec<String>,
    kernel: Option<PathBuf>,
    initramfs: Option<PathBuf>,
    /// Keys of the configuration's `[vm]`.
    vm: Table,
    /// Keys of the configuration's `[registry]`.
    registry: Table,
    /// Keys of the configuration's `[cni]`; pods have loopback only unless the test wants more.
    cni: Table,
    /// `[metrics] address`.
    metrics: String,
}

/// How long a guest may take to start, unless the test is about that.
const START_TIMEOUT_MS: i64 = 180_000;

impl Options {
    /// Runs microVMs: skipped where there is no KVM.
    #[must_use]
    pub fn kvm() -> Self {
        Self {
            kvm: true,
            ..Self::host()
        }
    }

    /// Runs no microVM, and so anywhere.
    #[must_use]
    pub fn host() -> Self {
        Self {
            kvm: false,
            images: Images::Registry,
            data: DataDir::Large,
            mirrored: vec![REGISTRY.to_owned()],
            kernel: None,
            initramfs: None,
            vm: Table::new(),
            registry: Table::new(),
            cni: [("enabled".to_owned(), false.into())].into_iter().collect(),
            metrics: String::new(),
        }
    }

    /// Where images come from.
    #[must_use]
    pub fn images(mut self, images: Images) -> Self {
        self.images = images;
        self
    }

    /// The registries that [`Self::images`] stands for, instead of [`REGISTRY`].
    #[must_use]
    pub fn mirrored(mut self, registries: &[&str]) -> Self {
        self.mirrored = registries.iter().map(|&name| name.to_owned()).collect();
        self
    }

    /// What the daemon's `root_dir` lies on.
    #[must_use]
    pub fn data(mut self, data: DataDir) -> Self {
        self.data = data;
        self
    }

    /// Another guest kernel.
    #[must_use]
    pub fn kernel(mut self, path: impl Into<PathBuf>) -> Self {
        self.kernel = Some(path.into());
        self
    }

    /// An initramfs in the place of the agent's image.
    #[must_use]
    pub fn initramfs(mut self, path: impl Into<PathBuf>) -> Self {
        self.initramfs = Some(path.into());
        self
    }

    /// Another value of a key in the configuration's `[vm]`.
    #[must_use]
    pub fn vm(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.vm.insert(key.to_owned(), value.into());
        self
    }

    /// Another value of a key in the configuration's `[registry]`.
    #[must_use]
    pub fn registry(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.registry.insert(key.to_owned(), value.into());
        self
    }

    /// Pods join the network that `cni` configures.
    #[must_use]
    pub fn network(mut self, cni: &Cni) -> Self {
        let text = |path: PathBuf| Value::from(path.display().to_string());
        let plugins = vec![text(cni.plugin_dir()), PLUGINS.into()];
        self.cni.insert("enabled".into(), true.into());
        self.cni
            .insert("config_dirs".into(), vec![text(cni.config_dir())].into());
        self.cni.insert("plugin_dirs".into(), plugins.into());
        // As patient with plugins as with guests: the lab is slow.
        self.cni
            .insert("timeout_ms".into(), START_TIMEOUT_MS.into());
        self
    }

    /// Another value of a key in the configuration's `[cni]`.
    #[must_use]
    pub fn cni(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.cni.insert(key.to_owned(), value.into());
        self
    }

    /// Where the daemon serves its own metrics.
    #[must_use]
    pub fn metrics(mut self, address: &str) -> Self {
        address.clone_into(&mut self.metrics);
        self
    }

    pub(super) fn needs_kvm(&self) -> bool {
        self.kvm
    }

    /// The daemon's configuration file.
    pub(super) fn config(&self, node: &Node, registry: Option<&str>) -> Result<String> {
        let text = |path: PathBuf| Value::from(path.display().to_string());
        let mut vm = Table::new();
        if !self.vm.contains_key("vmm") {
            vm.insert("vmm".into(), text(environment::binary("isopod-vmm")?));
        }
        vm.insert(
            "kernel".into(),
            text(self.file(self.kernel.as_ref(), environment::KERNEL)?),
        );
        match &self.initramfs {
            Some(path) => vm.insert("initramfs".into(), text(path.clone())),
            None => vm.insert(
                "agent_image".into(),
                text(self.file(None, environment::AGENT_IMAGE)?),
            ),
        };
        vm.insert("start_timeout_ms".into(), START_TIMEOUT_MS.into());
        vm.insert("scratch_mib".into(), 2048.into());
        let console = environment::is_set(environment::CONSOLE);
        vm.insert("debug_console".into(), console.into());
        vm.extend(self.vm.clone());

        let mut config = Table::new();
        config.insert("socket".into(), text(node.socket()));
        config.insert("root_dir".into(), text(node.root_dir().to_owned()));
        config.insert("state_dir".into(), text(node.state_dir()));
        config.insert("log_level".into(), "info,isopod=debug".into());
        config.insert("vm".into(), vm.into());
        let mut settings = self.registry.clone();
        config.insert("cni".into(), self.cni.clone().into());
        let mut metrics = Table::new();
        metrics.insert("address".into(), self.metrics.as_str().into());
        config.insert("metrics".into(), metrics.into());
        if let Some(host) = registry {
            let mut endpoint = Table::new();
            endpoint.insert("host".into(), host.into());
            endpoint.insert("plain_http".into(), true.into());
            let endpoints = Value::Array(vec![endpoint.into()]);
            let names = self.mirrored.iter();
            let mirrors: Table = names
                .map(|name| (name.clone(), endpoints.clone()))
                .collect();
            settings.insert("mirrors".into(), mirrors.into());
        }
        config.insert("registry".into(), settings.into());
        Ok(toml::to_string(&config)?)
    }

    /// The test's own file, or the one that was built. A test that boots no guest needs none.
    fn file(&self, own: Option<&PathBuf>, variable: &str) -> Result<PathBuf> {
        match own {
            Some(path) => Ok(path.clone()),
            None if self.kvm => environment::path(variable),
            None => Ok(environment::path(variable).unwrap_or_else(|_| "/nonexistent".into())),
        }
    }
}
