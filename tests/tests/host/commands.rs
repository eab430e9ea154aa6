//! `isopod images`, `pull`, `rmi` and `image import | export`, as people type them.

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use isopod_tests::node::{self, Images, Node, Options, REGISTRY, image};
use isopod_tests::process::Child;
use isopod_tests::tampered::{Fault, Tampered};
use isopod_tests::wait::{LIMIT, wait_for};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

fn isopod(node: &Node, arguments: &[&str]) -> Result<Output> {
    let output = node.isopod()?.args(arguments).stdin(Stdio::null()).output();
    output.context("running isopod")
}

/// Standard output of a command that succeeds.
fn succeeds(node: &Node, arguments: &[&str]) -> Result<String> {
    let output = isopod(node, arguments)?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "isopod {arguments:?}: {error}");
    Ok(String::from_utf8(output.stdout)?)
}

/// Standard error of a command that fails.
fn fails(node: &Node, arguments: &[&str]) -> Result<String> {
    let output = isopod(node, arguments)?;
    ensure!(!output.status.success(), "isopod {arguments:?} succeeded");
    Ok(String::from_utf8(output.stderr)?)
}

#[test]
fn an_image_is_pulled_listed_and_removed_by_hand() -> Result<()> {
    node::run(Options::host(), |node| {
        let output = isopod(node, &["pull", &image("nginx")])?;
        let progress = String::from_utf8(output.stderr)?;
        assert!(output.status.success(), "{progress}");
        assert!(progress.contains(": Pull complete "), "{progress}");
        let id = String::from_utf8(output.stdout)?.trim().to_owned();
        assert_eq!(node.cri().list_images()?[0].id, id);

        let again = isopod(node, &["pull", &image("nginx")])?;
        let progress = String::from_utf8(again.stderr)?;
        assert!(progress.contains(": Already exists"), "{progress}");
        assert!(!progress.contains("complete"), "{progress}");

        let table = succeeds(node, &["images"])?;
        let row = table.lines().nth(1).context("no line for the image")?;
        let cells: Vec<&str> = row.split_whitespace().collect();
        let name = format!("{REGISTRY}/nginx");
        let short = id.strip_prefix("sha256:").context("no digest")?;
        assert_eq!(cells[..3], [name.as_str(), "1", &short[..13]]);
        assert!(cells[3].ends_with("MB"), "{row}");
        assert_eq!(succeeds(node, &["images", "-q", "--no-trunc"])?.trim(), id);
        // The same answer as crictl's, field by field.
        let ours: serde_json::Value =
            serde_json::from_str(&succeeds(node, &["images", "-o", "json"])?)?;
        let theirs = node.crictl()?.json(&["images"])?;
        assert_eq!(ours["images"][0]["size"], theirs["images"][0]["size"]);
        assert_eq!(
            ours["images"][0]["repoTags"],
            theirs["images"][0]["repoTags"]
        );
        assert_eq!(ours["images"][0]["id"], theirs["images"][0]["id"]);

        let removed = succeeds(node, &["rmi", &image("nginx")])?;
        assert_eq!(removed, format!("Deleted: {}\n", image("nginx")));
        let error = fails(node, &["rmi", &image("nginx")])?;
        assert!(error.contains("no such image"), "{error}");
        assert_eq!(succeeds(node, &["images", "-q"])?, "");
        Ok(())
    })
}

#[test]
fn an_image_that_cannot_be_pulled_says_why() -> Result<()> {
    node::run(Options::host(), |node| {
        let name = format!("{REGISTRY}/busybox:none");
        let error = fails(node, &["pull", &name])?;
        assert!(
            error.contains(&name) && error.contains("NotFound"),
            "{error}"
        );
        let error = fails(node, &["pull", "a//b"])?;
        assert!(error.contains("InvalidArgument"), "{error}");
        Ok(())
    })
}

#[test]
fn a_pull_that_is_interrupted_ends_in_the_daemon_too() -> Result<()> {
    let registry = Tampered::busybox(Fault::Stalled)?;
    node::run(
        Options::host().images(Images::Endpoint(registry.host())),
        |node| {
            let mut pull = node
                .isopod()?
                .args(["pull", &image("busybox")])
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()?;
            wait_for("the layer to be asked for", LIMIT, || {
                (registry.layer_requests() > 0).then_some(())
            })?;
            pull.kill()?;
            pull.wait()?;
            wait_for("the pull to be given up", LIMIT, || {
                node.daemon_log().contains("given up").then_some(())
            })
        },
    )
}

#[test]
fn images_leave_one_node_as_an_archive_and_enter_another() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let archive = folder.path().join("images.tar");
    let archive = archive.to_str().context("a path in UTF-8")?;
    let layout = folder.path().join("layout");
    let names = [image("busybox"), image("nginx"), image("layers")];
    let ids = |node: &Node| -> Result<Vec<String>> {
        let images = node.cri().list_images()?;
        Ok(images.into_iter().map(|image| image.id).collect())
    };
    let mut before = Vec::new();
    node::run(Options::host(), |node| {
        for name in &names {
            node.cri().pull(name)?;
        }
        before = ids(node)?;
        let [first, second, third] = &names;
        succeeds(
            node,
            &["image", "export", "-o", archive, first, second, third],
        )?;
        let layout = layout.to_str().context("a path in UTF-8")?;
        succeeds(node, &["image", "export", "--folder", "-o", layout, first])?;
        let error = fails(node, &["image", "export", "--folder", "-o", layout, first])?;
        assert!(error.contains(layout), "{error}");
        let error = fails(node, &["image", "export", "-o", archive, "nothing"])?;
        assert!(error.contains("nothing"), "{error}");
        Ok(())
    })?;
    node::run(Options::host().images(Images::None), |node| {
        let text = succeeds(node, &["image", "import", archive])?;
        for name in &names {
            assert!(text.contains(&format!("Imported: {name}\n")), "{text}");
        }
        assert_eq!(ids(node)?, before);
        for name in &names {
            let found = node.cri().image_status(name)?;
            assert_eq!(found.context("not there")?.repo_tags, [name.as_str()]);
        }
        // From the folder, which other tools read too.
        let inspected = Command::new("skopeo")
            .args(["inspect", "--raw"])
            .arg(format!("oci:{}:1", layout.display()))
            .output()?;
        assert!(inspected.status.success(), "{inspected:?}");
        succeeds(node, &["rmi", &names[0]])?;
        let path = layout.to_str().context("a path in UTF-8")?;
        succeeds(node, &["image", "import", path])?;
        assert_eq!(ids(node)?, before);

        // Through a pipe, both ways, and compressed in between.
        let piped = node
            .isopod()?
            .args(["image", "export", &names[0]])
            .stdout(Stdio::piped())
            .spawn()?
            .stdout
            .context("a pipe")?;
        let packed = Command::new("gzip").arg("-c").stdin(piped).output()?;
        let file = folder.path().join("one.tar.gz");
        fs::write(&file, packed.stdout)?;
        succeeds(node, &["rmi", &names[0]])?;
        let output = node
            .isopod()?
            .args(["image", "import", "--name", "some.test/other:2", "-"])
            .stdin(fs::File::open(&file)?)
            .output()?;
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{error}");
        let found = node.cri().image_status("some.test/other:2")?;
        assert!(before.contains(&found.context("not there")?.id));
        Ok(())
    })
}

/// Names of what is in a folder, sorted.
fn names(folder: &Path) -> Result<Vec<OsString>> {
    let entries = fs::read_dir(folder)?.map(|entry| Ok(entry?.file_name()));
    let mut names = entries.collect::<Result<Vec<_>>>()?;
    names.sort_unstable();
    Ok(names)
}

/// A command that waits for a daemon which stands still, and `folder` when it has put something there.
fn waiting(node: &Node, folder: &Path, arguments: &[&str]) -> Result<Child> {
    let before = names(folder)?;
    let child = node
        .isopod()?
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let child = Child::new(child);
    wait_for("the command to make something", LIMIT, || {
        (names(folder).ok()? != before).then_some(())
    })?;
    Ok(child)
}

#[test]
fn an_import_that_is_killed_leaves_nothing_for_the_next_daemon() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let archive = folder.path().join("image.tar");
    let archive = archive.to_str().context("a path in UTF-8")?;
    node::run(Options::host(), |node| {
        node.cri().pull(&image("busybox"))?;
        succeeds(node, &["image", "export", "-o", archive, &image("busybox")])?;
        let socket = node.socket();
        let beside = socket.parent().context("a socket in a folder")?;
        let before = names(beside)?;

        // Whoever can clean up does.
        let import = || {
            kill(Pid::from_raw(node.daemon_pid()?), Signal::SIGSTOP)?;
            waiting(node, beside, &["image", "import", archive])
        };
        let mut ended = import()?;
        ensure!(!ended.terminate(LIMIT)?.success(), "it was not interrupted");
        assert_eq!(names(beside)?, before);

        let mut killed = import()?;
        killed.kill();
        assert_ne!(names(beside)?, before);
        node.kill_daemon();
        node.start_daemon()?;
        assert_eq!(names(beside)?, before);

        // And so does one whose daemon goes.
        let mut forsaken = import()?;
        node.kill_daemon();
        wait_for("the import to end", LIMIT, || {
            forsaken.exited().ok().flatten()
        })?;
        node.start_daemon()?;
        assert_eq!(names(beside)?, before);
        succeeds(node, &["image", "import", archive]).map(drop)
    })
}

#[test]
fn an_export_that_is_killed_leaves_no_file() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let archive = folder.path().join("image.tar");
    let archive = archive.to_str().context("a path in UTF-8")?;
    node::run(Options::host(), |node| {
        let name = image("nginx");
        node.cri().pull(&name)?;
        for delay in (0..20).map(|step| Duration::from_millis(step * 3)) {
            let export = node
                .isopod()?
                .args(["image", "export", "-o", archive, &name])
                .spawn()?;
            let mut export = Child::new(export);
            std::thread::sleep(delay);
            export.kill();
            let mut left = names(folder.path())?;
            // It was complete, then.
            left.retain(|name| name != "image.tar");
            assert!(left.is_empty(), "{left:?}");
        }
        Ok(())
    })
}
