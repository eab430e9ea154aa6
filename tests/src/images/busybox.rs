//! `busybox:1`: Debian's static busybox with a link for each of its programs.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::layer::{Compression, Entry, LayerWriter, read};
use super::oci::{ImageDigests, ImageWriter};

/// Debian's `busybox-static`.
const BUSYBOX: &str = "/bin/busybox";

/// A user and a group that are not root, for tests that run as somebody.
pub const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\
    www-data:x:33:33:www-data:/var/www:/usr/sbin/nologin\n\
    app:x:1000:1000:app:/home/app:/bin/sh\n";
/// The groups of those users.
pub const GROUP: &str = "root:x:0:\nwww-data:x:33:\napp:x:1000:\nextra:x:2000:app\n";

/// The files of the host that this image is made from.
///
/// # Errors
/// busybox-static is not installed.
pub fn inputs() -> Result<Vec<PathBuf>> {
    let path = PathBuf::from(BUSYBOX);
    ensure!(
        path.exists(),
        "{BUSYBOX} is missing: apt-get install busybox-static"
    );
    Ok(vec![path])
}

/// Writes the image.
///
/// # Errors
/// busybox cannot be read or run; writing failed.
pub fn write(folder: &Path) -> Result<ImageDigests> {
    let mut image = ImageWriter::new(folder)?;
    image.layer(Compression::Gzip, base)?;
    image.finish(&config(&["/bin/sh"]))
}

/// A configuration with this command.
#[must_use]
pub fn config(command: &[&str]) -> Value {
    json!({ "Env": ["PATH=/bin:/usr/bin:/usr/sbin"], "Cmd": command, "WorkingDir": "/" })
}

/// The layer that every test image starts with. As in other people's images there is no `/proc`,
/// `/sys` or `/dev` in it: making mount points is the runtime's work.
///
/// # Errors
/// busybox cannot be read or run; writing failed.
pub fn base(layer: &mut LayerWriter) -> Result<()> {
    for (path, mode) in [
        ("bin", 0o755),
        ("etc", 0o755),
        ("home", 0o755),
        ("home/app", 0o755),
        ("root", 0o700),
        ("run", 0o755),
        ("tmp", 0o1777),
        ("usr", 0o755),
        ("usr/bin", 0o755),
        ("usr/sbin", 0o755),
        ("var", 0o755),
    ] {
        layer.add(&Entry::directory(path).mode(mode))?;
    }
    layer.add(&Entry::file("etc/passwd", PASSWD))?;
    layer.add(&Entry::file("etc/group", GROUP))?;
    layer.add(&Entry::file("bin/busybox", read(Path::new(BUSYBOX))?).mode(0o755))?;
    let output = Command::new(BUSYBOX)
        .arg("--list")
        .output()
        .context("running busybox")?;
    ensure!(output.status.success(), "busybox --list failed");
    let programs = String::from_utf8(output.stdout).context("busybox --list")?;
    for program in programs
        .lines()
        .filter(|name| !name.is_empty() && *name != "busybox")
    {
        layer.add(&Entry::hard_link(format!("bin/{program}"), "bin/busybox").mode(0o755))?;
    }
    Ok(())
}
