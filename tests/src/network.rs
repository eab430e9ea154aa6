//! A network of one test's own: a node whose interfaces, bridges and rules nobody else sees, and
//! configurations for Debian's CNI plugins.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::process::command;

/// Set in the process that a test runs in a second time, inside.
const INSIDE: &str = "ISOPOD_TEST_INSIDE";

/// How libtest's last line begins.
const SUMMARY: &str = "test result: ";

/// Where Debian's plugins are (`containernetworking-plugins`).
pub const PLUGINS: &str = "/usr/lib/cni";

/// Runs a test in a network namespace of its own, in which only loopback is, with its own
/// `/run/netns`. The test binary runs itself once more there, with this test alone.
///
/// # Errors
/// What the test says, or that a namespace cannot be made.
pub fn isolated<F: FnOnce() -> Result<()>>(test: F) -> Result<()> {
    if std::env::var_os(INSIDE).is_some() {
        set_up()?;
        return test();
    }
    // `binary::module::test::{{closure}}`; libtest knows it without the binary.
    let path = std::any::type_name::<F>();
    let name = path.trim_end_matches("::{{closure}}");
    let (_, name) = name.split_once("::").context("a test is in no binary")?;
    let output = command("unshare")
        .args(["--net", "--mount", "--propagation", "private", "--"])
        .arg(std::env::current_exe()?)
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(INSIDE, "1")
        .output()
        .context("running unshare")?;
    let text = String::from_utf8_lossy(&output.stdout);
    // The test's own words come to whoever reads this one's, but not its summary: whoever counts results
    // would find the test in two of them.
    eprint!("{}", String::from_utf8_lossy(&output.stderr));
    for line in text.lines().filter(|line| !line.contains(SUMMARY)) {
        println!("{line}");
    }
    ensure!(output.status.success(), "{name} failed in its own network");
    ensure!(text.contains("1 passed"), "{name} was not found: {text}");
    Ok(())
}

/// Sets up the namespace that this process was started in, as [`isolated`] wants it.
///
/// # Errors
/// The process may not.
pub fn set_up() -> Result<()> {
    run("ip", &["link", "set", "lo", "up"])?;
    fs::create_dir_all("/run/netns")?;
    run("mount", &["-t", "tmpfs", "isopod-test-netns", "/run/netns"])?;
    Ok(())
}

/// Runs a program that must succeed; what it printed.
///
/// # Errors
/// It cannot be run, or fails; the message has its words.
pub fn run(program: &str, arguments: &[&str]) -> Result<String> {
    let output = output(program, arguments)?;
    ensure!(
        output.status.success(),
        "{program} {arguments:?}: {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a program, however it ends.
///
/// # Errors
/// It cannot be run.
pub fn output(program: &str, arguments: &[&str]) -> Result<Output> {
    let search = std::env::var("PATH").unwrap_or_default();
    Command::new(program)
        .args(arguments)
        .env("PATH", format!("{search}:/usr/sbin:/sbin"))
        .output()
        .with_context(|| format!("running {program}"))
}

/// A folder of network configurations and one of plugins, for a node's options.
#[derive(Debug)]
pub struct Cni {
    folder: tempfile::TempDir,
}

impl Cni {
    /// Empty folders.
    ///
    /// # Errors
    /// They cannot be made.
    pub fn new() -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("it-cni-")
            .tempdir_in("/run")?;
        for name in ["net.d", "bin", "ipam"] {
            fs::create_dir(folder.path().join(name))?;
        }
        Ok(Self { folder })
    }

    /// For `cni.config_dirs`.
    #[must_use]
    pub fn config_dir(&self) -> PathBuf {
        self.folder.path().join("net.d")
    }

    /// For `cni.plugin_dirs`, before [`PLUGINS`]: the test's own plugins.
    #[must_use]
    pub fn plugin_dir(&self) -> PathBuf {
        self.folder.path().join("bin")
    }

    /// A folder that the test's own plugins can write to.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Configures a network.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn configure(&self, network: &Value) -> Result<()> {
        let path = self.config_dir().join("10-test.conflist");
        fs::write(path, network.to_string()).context("writing a conflist")
    }

    /// Configures a network of these plugins.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn plugins(&self, plugins: &[Value]) -> Result<()> {
        self.configure(&json!({ "cniVersion": "1.0.0", "name": "pods", "plugins": plugins }))
    }

    /// A bridge of IPv4 and IPv6, with addresses from these ranges.
    #[must_use]
    pub fn bridge(&self, ranges: &[&str]) -> Value {
        let sets: Vec<_> = ranges
            .iter()
            .map(|range| json!([{ "subnet": range }]))
            .collect();
        let mut routes = vec![json!({ "dst": "0.0.0.0/0" })];
        if ranges.iter().any(|range| range.contains(':')) {
            routes.push(json!({ "dst": "::/0" }));
        }
        json!({
            "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false,
            "hairpinMode": true,
            "ipam": {
                "type": "host-local", "ranges": sets, "routes": routes,
                "dataDir": self.folder.path().join("ipam"),
            },
        })
    }

    /// The addresses that host-local has given away.
    #[must_use]
    pub fn leases(&self) -> Vec<String> {
        let entries = fs::read_dir(self.folder.path().join("ipam/pods"));
        let names = entries.into_iter().flatten().flatten();
        names
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .filter(|name| name.parse::<std::net::IpAddr>().is_ok() || name.contains(':'))
            .collect()
    }

    /// A plugin of the test's own, a shell script. `$FOLDER` is [`Self::folder`].
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn script(&self, name: &str, script: &str) -> Result<()> {
        use std::os::unix::fs::PermissionsExt as _;
        let path = self.plugin_dir().join(name);
        let folder = self.folder.path().display();
        fs::write(&path, format!("#!/bin/sh\nFOLDER={folder}\n{script}\n"))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        Ok(())
    }

    /// A file that a plugin wrote to [`Self::folder`]; empty when there is none.
    #[must_use]
    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.folder.path().join(name)).unwrap_or_default()
    }
}
