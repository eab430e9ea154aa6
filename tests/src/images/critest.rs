//! The images that critest runs, under the names that it gives them.
//!
//! They do what critest (cri-tools, `images/` and `pkg/validate/consts.go`) wants of the originals,
//! and are made from Debian's files. A node serves them through its mirror table, for the registries
//! in [`REGISTRIES`]. The image that critest names by digest is the only one that nobody else can make.

use std::path::{Path, PathBuf};

use anyhow::Result;
use serde_json::{Value, json};

use super::layer::{Compression, Entry, LayerWriter};
use super::oci::ImageWriter;
use super::{busybox, cached, elf, nginx};

/// The registries in the images' names.
pub const REGISTRIES: &[&str] = &["registry.k8s.io", "k8s.gcr.io", "gcr.io"];

/// The web server of `httpd`, whose name critest looks for in its log.
const HTTPD: &str = "echo httpd starts; exec httpd -f -h /srv/www";

/// The name that critest's own images have in common.
const OWN: &str = "k8s-staging-cri-tools";

/// Images that differ in one file only, and their names.
const PLAIN: &[(&str, &[&str])] = &[
    ("test-image-1", &["test-image-1:latest"]),
    ("test-image-2", &["test-image-2:latest"]),
    ("test-image-3", &["test-image-3:latest"]),
    ("test-image-latest", &["test-image-latest:latest"]),
    (
        "test-image-tags",
        &[
            "test-image-tags:1",
            "test-image-tags:2",
            "test-image-tags:3",
        ],
    ),
    (
        "test-image-tag",
        &["test-image-tag:test", "test-image-tag:all"],
    ),
];

/// Images that differ in the user of their configuration.
const USERS: &[(&str, &str)] = &[
    ("test-image-user-uid", "1002"),
    ("test-image-user-username", "www-data"),
    ("test-image-user-uid-group", "1003:1004"),
    ("test-image-user-username-group", "www-data:1004"),
];

/// Programs that are not on every Debian machine.
#[derive(Debug, Clone)]
pub struct Programs {
    /// Debian's `busybox`, which cannot be installed beside `busybox-static`. Its shell looks for
    /// every program in `PATH`; the static one's runs its own.
    pub busybox: PathBuf,
    /// `isopod-test-nonewprivs`, which tells its effective user.
    pub nonewprivs: PathBuf,
}

/// The storage folder of a registry with the images, built if the cache does not hold it yet.
///
/// # Errors
/// As for [`super::build`].
pub fn build(cache: &Path, programs: &Programs) -> Result<PathBuf> {
    let own = [programs.busybox.clone(), programs.nonewprivs.clone()];
    let inputs = [busybox::inputs()?, nginx::inputs()?, own.into()];
    cached(cache, &inputs.concat(), |layouts| write(layouts, programs))
}

/// Writes every image into a folder of its own; these, with their names.
fn write(layouts: &Path, programs: &Programs) -> Result<Vec<(PathBuf, String)>> {
    let mut images = Vec::new();
    let mut add = |name: &str, references: &[String]| {
        let layout = layouts.join(name);
        images.extend(
            references
                .iter()
                .map(|reference| (layout.clone(), reference.clone())),
        );
        layout
    };
    let e2e = |name: &str| [format!("e2e-test-images/{name}")];
    let own = |name: &str| format!("{OWN}/{name}");

    let shell = busybox::config(&["sh"]);
    from_busybox(
        &add("busybox", &e2e("busybox:1.29-2")),
        programs,
        &shell,
        &[],
    )?;
    web_server(&add("nginx", &e2e("nginx:1.14-2")))?;
    let pages = [
        Entry::directory("srv"),
        Entry::directory("srv/www"),
        Entry::file("srv/www/index.html", nginx::PAGE),
    ];
    let httpd = busybox::config(&["sh", "-c", HTTPD]);
    from_busybox(
        &add("httpd", &e2e("httpd:2.4.39-4")),
        programs,
        &httpd,
        &pages,
    )?;
    privileges(&add("nonewprivs", &e2e("nonewprivs:1.3")), programs)?;
    let pause = busybox::config(&["/bin/sleep", "infinity"]);
    from_busybox(&add("pause", &["pause:3.9".into()]), programs, &pause, &[])?;
    for (name, references) in PLAIN {
        let references: Vec<_> = references.iter().map(|name| own(name)).collect();
        let file = Entry::file(name, "");
        from_busybox(&add(name, &references), programs, &shell, &[file])?;
    }
    for (name, user) in USERS {
        let layout = add(name, &[own(&format!("{name}:latest"))]);
        from_busybox(&layout, programs, &with_user(&shell, user), &[])?;
    }
    let name = "test-image-predefined-group";
    let files = [
        Entry::file(
            "etc/passwd",
            "root:x:0:0:root:/root:/bin/sh\n\
             default-user:x:1000:1000::/home/app:/bin/sh\n",
        ),
        Entry::file(
            "etc/group",
            "root:x:0:\ndefault-user:x:1000:\n\
             group-defined-in-image:x:50000:default-user\n",
        ),
    ];
    let layout = add(name, &[own(&format!("{name}:latest"))]);
    from_busybox(&layout, programs, &with_user(&shell, "1000"), &files)?;
    Ok(images)
}

fn with_user(config: &Value, user: &str) -> Value {
    let mut config = config.clone();
    config["User"] = json!(user);
    config
}

/// Busybox, and these files in a layer of their own.
fn from_busybox(folder: &Path, programs: &Programs, config: &Value, files: &[Entry]) -> Result<()> {
    let mut image = ImageWriter::new(folder)?;
    image.layer(Compression::Gzip, busybox::base)?;
    image.layer(Compression::Gzip, |layer| like_others(layer, programs))?;
    if !files.is_empty() {
        image.layer(Compression::Gzip, |layer| {
            files.iter().try_for_each(|file| layer.add(file))
        })?;
    }
    image.finish(config).map(drop)
}

/// What other people's busybox has and Debian's has not.
fn like_others(layer: &mut LayerWriter, programs: &Programs) -> Result<()> {
    elf::add_as(layer, &programs.busybox, Path::new("/bin/sh"), 0o755)?;
    let script =
        |path: &str, text: &str| Entry::file(path, format!("#!/bin/sh\n{text}\n")).mode(0o755);
    layer.add(&script("bin/pgrep", "exec pidof \"$@\""))?;
    layer.add(&script("bin/ipcs", "exec cat /proc/sysvipc/shm"))?;
    let nobody = "nobody:x:65534:65534:nobody:/:/bin/false\n";
    layer.add(&Entry::file(
        "etc/passwd",
        format!("{}{nobody}", busybox::PASSWD),
    ))?;
    layer.add(&Entry::file(
        "etc/group",
        format!("{}nobody:x:65534:\n", busybox::GROUP),
    ))
}

/// `nginx:1`, with its process id where the original has it.
fn web_server(folder: &Path) -> Result<()> {
    let mut image = ImageWriter::new(folder)?;
    nginx::layers(&mut image)?;
    image.layer(Compression::Gzip, |layer| {
        layer.add(&Entry::symlink("var/run", "../run"))
    })?;
    image.finish(&nginx::config()).map(drop)
}

/// A program that runs as its owner, root, whoever starts it.
fn privileges(folder: &Path, programs: &Programs) -> Result<()> {
    let mut image = ImageWriter::new(folder)?;
    image.layer(Compression::Gzip, |layer| {
        elf::add_as(layer, &programs.nonewprivs, Path::new("/nnp"), 0o4755)
    })?;
    image.finish(&busybox::config(&["/nnp"])).map(drop)
}
