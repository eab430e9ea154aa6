//! `nginx:1`: Debian's nginx with its libraries over busybox, serving one page on port 80.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::busybox;
use super::elf;
use super::layer::{Compression, Entry, LayerWriter, read};
use super::oci::{ImageDigests, ImageWriter};

/// Debian's `nginx-light`.
const NGINX: &str = "/usr/sbin/nginx";
const MIME_TYPES: &str = "/etc/nginx/mime.types";

/// What the server answers for `/`.
pub const PAGE: &str = "<!doctype html><title>isopod</title><p>served from inside a microVM\n";

/// Logs go to the container's own output, where `crictl logs` finds them.
const CONF: &str = "user www-data;
worker_processes 1;
pid /run/nginx.pid;
error_log /dev/stderr notice;
events { worker_connections 64; }
http {
    include /etc/nginx/mime.types;
    access_log /dev/stdout;
    server {
        listen 80;
        root /srv/www;
    }
}
";

/// The files of the host that this image is made from.
///
/// # Errors
/// nginx-light is not installed, or a library of it is missing.
pub fn inputs() -> Result<Vec<PathBuf>> {
    let nginx = PathBuf::from(NGINX);
    ensure!(
        nginx.exists(),
        "{NGINX} is missing: apt-get install nginx-light"
    );
    let mut inputs = elf::libraries(&nginx)?;
    inputs.extend([nginx, PathBuf::from(MIME_TYPES)]);
    Ok(inputs)
}

/// Writes the image. Its first layer is `busybox:1`'s.
///
/// # Errors
/// A file cannot be read; writing failed.
pub fn write(folder: &Path) -> Result<ImageDigests> {
    let mut image = ImageWriter::new(folder)?;
    layers(&mut image)?;
    image.finish(&config())
}

/// Adds the image's layers.
///
/// # Errors
/// As for [`write`].
pub fn layers(image: &mut ImageWriter) -> Result<()> {
    image.layer(Compression::Gzip, busybox::base)?;
    image.layer(Compression::Zstd, server)
}

/// The image's configuration.
#[must_use]
pub fn config() -> Value {
    let mut config = busybox::config(&["-g", "daemon off;"]);
    config["Entrypoint"] = json!([NGINX]);
    config["ExposedPorts"] = json!({ "80/tcp": {} });
    config["StopSignal"] = json!("SIGQUIT");
    config
}

fn server(layer: &mut LayerWriter) -> Result<()> {
    elf::add(layer, Path::new(NGINX))?;
    for path in [
        "etc/nginx",
        "srv",
        "srv/www",
        "var/lib",
        "var/lib/nginx",
        "var/log",
        "var/log/nginx",
    ] {
        layer.add(&Entry::directory(path))?;
    }
    layer.add(&Entry::file(
        "etc/nginx/mime.types",
        read(Path::new(MIME_TYPES))?,
    ))?;
    layer.add(&Entry::file("etc/nginx/nginx.conf", CONF))?;
    layer.add(&Entry::file("srv/www/index.html", PAGE))
}
