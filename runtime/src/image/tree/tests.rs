//! What layers do to one another, told by the paths that are left.

use super::{InodeId, Kind, Tree, TreeError};
use crate::image::layer::{Change, Record};
use crate::image::limits::{MAX_DEPTH, MAX_TREE_BYTES};
use crate::image::tar::Timestamp;

fn record(path: &str, change: Change) -> Record {
    Record {
        path: path.as_bytes().to_vec(),
        change,
        mode: 0o700,
        uid: 1,
        gid: 2,
        mtime: Timestamp {
            seconds: 3,
            nanoseconds: 4,
        },
        xattrs: Vec::new(),
    }
}

fn file(path: &str) -> Record {
    record(path, Change::File { size: 1, block: 0 })
}

fn directory(path: &str) -> Record {
    record(path, Change::Directory)
}

fn symlink(path: &str, target: &str) -> Record {
    record(path, Change::Symlink(target.as_bytes().to_vec()))
}

fn hard_link(path: &str, target: &str) -> Record {
    record(path, Change::HardLink(target.as_bytes().to_vec()))
}

fn whiteout(path: &str) -> Record {
    record(path, Change::Whiteout)
}

fn opaque(path: &str) -> Record {
    record(path, Change::Opaque)
}

fn apply(layers: Vec<Vec<Record>>) -> Result<Tree, TreeError> {
    let mut tree = Tree::new();
    for (number, layer) in (0..).zip(layers) {
        for record in layer {
            tree.apply(number, record)?;
        }
    }
    Ok(tree)
}

/// All paths, directories with a slash at their end, files with the layer of their data.
fn paths(tree: &Tree) -> Vec<String> {
    let mut found = Vec::new();
    let mut pending = vec![(InodeId::ROOT, String::new())];
    while let Some((id, path)) = pending.pop() {
        match &tree.inode(id).kind {
            Kind::Directory(children) => {
                if !path.is_empty() {
                    found.push(format!("{path}/"));
                }
                for (name, link) in children {
                    let name = String::from_utf8_lossy(name);
                    let slash = if path.is_empty() { "" } else { "/" };
                    pending.push((link.inode, format!("{path}{slash}{name}")));
                }
            }
            Kind::File { layer, .. } => found.push(format!("{path} {layer}")),
            Kind::Symlink(target) => {
                found.push(format!("{path} -> {}", String::from_utf8_lossy(target)));
            }
            _ => found.push(path),
        }
    }
    found.sort();
    found
}

fn tree_of(layers: Vec<Vec<Record>>) -> Vec<String> {
    paths(&apply(layers).expect("good layers"))
}

#[test]
fn a_whiteout_hides_what_is_below_and_not_what_is_beside() {
    let base = vec![
        directory("a"),
        file("a/x"),
        file("a/y"),
        directory("b"),
        file("b/z"),
    ];
    assert_eq!(
        tree_of(vec![base.clone(), vec![whiteout("a/x"), whiteout("b")]]),
        ["a/", "a/y 0"]
    );
    // What is not there is not missed.
    let nothing = vec![
        whiteout("c"),
        whiteout("c/d"),
        whiteout("a/x/below"),
        opaque("c"),
    ];
    assert_eq!(tree_of(vec![base, nothing]).len(), 5);
}

#[test]
fn a_whiteout_never_hides_its_own_layer_wherever_it_stands() {
    let base = vec![directory("a"), file("a/x"), file("a/y")];
    for own in [
        vec![whiteout("a"), directory("a"), file("a/new")],
        vec![directory("a"), file("a/new"), whiteout("a")],
        vec![directory("a"), file("a/new"), opaque("a")],
        vec![directory("a"), opaque("a"), file("a/new")],
    ] {
        assert_eq!(
            tree_of(vec![base.clone(), own.clone()]),
            ["a/", "a/new 1"],
            "{own:?}"
        );
    }
}

#[test]
fn an_opaque_directory_hides_at_every_depth() {
    let base = vec![file("a/b/c/old"), file("a/b/other"), file("a/top")];
    let upper = vec![file("a/b/c/new"), opaque("a")];
    assert_eq!(
        tree_of(vec![base, upper]),
        ["a/", "a/b/", "a/b/c/", "a/b/c/new 1"]
    );
}

#[test]
fn an_opaque_root_hides_everything_below() {
    let base = vec![file("a"), directory("b")];
    assert_eq!(tree_of(vec![base, vec![opaque(""), file("c")]]), ["c 1"]);
}

#[test]
fn kinds_replace_one_another_and_directories_merge() {
    let base = vec![file("f"), directory("d"), file("d/x"), symlink("s", "d")];
    let upper = vec![
        directory("f"),
        file("f/in"),
        file("d"),
        record("s", Change::Fifo),
    ];
    assert_eq!(
        tree_of(vec![base.clone(), upper]),
        ["d 1", "f/", "f/in 1", "s"]
    );
    let tree = apply(vec![base, vec![directory("d")]]).expect("good layers");
    assert_eq!(paths(&tree), ["d/", "d/x 0", "f 0", "s -> d"]);
}

#[test]
fn the_root_has_the_metadata_of_its_entry() {
    let tree = apply(vec![vec![directory("")]]).expect("a good layer");
    assert_eq!(tree.inode(InodeId::ROOT).mode, 0o700);
    assert!(apply(vec![vec![file("")]]).is_err());
    assert!(apply(vec![vec![symlink("", "/elsewhere")]]).is_err());
    assert!(apply(vec![vec![whiteout("")]]).is_err());
}

#[test]
fn missing_parents_are_made() {
    let tree = apply(vec![vec![file("a/b/c")]]).expect("a good layer");
    assert_eq!(paths(&tree), ["a/", "a/b/", "a/b/c 0"]);
}

#[test]
fn symbolic_links_on_the_way_are_followed_inside_the_tree() {
    let base = vec![
        directory("usr"),
        directory("usr/lib"),
        symlink("lib", "usr/lib"),
        symlink("absolute", "/usr"),
        symlink("up", "../../../usr"),
        symlink("dangling", "not/there"),
    ];
    let upper = vec![
        file("lib/one"),
        file("absolute/two"),
        file("up/lib/three"),
        file("dangling/four"),
        whiteout("lib/nothing"),
    ];
    let tree = tree_of(vec![base, upper]);
    for path in [
        "usr/lib/one 1",
        "usr/two 1",
        "usr/lib/three 1",
        "not/there/four 1",
        "lib -> usr/lib",
    ] {
        assert!(tree.iter().any(|found| found == path), "{path}: {tree:?}");
    }
}

#[test]
fn a_symbolic_link_itself_is_replaced_and_not_followed() {
    let base = vec![directory("usr"), symlink("lib", "usr")];
    let upper = vec![directory("lib"), file("lib/x")];
    assert_eq!(tree_of(vec![base, upper]), ["lib/", "lib/x 1", "usr/"]);
}

#[test]
fn loops_of_symbolic_links_are_refused() {
    for links in [
        vec![symlink("a", "a")],
        vec![symlink("a", "b"), symlink("b", "/a")],
        vec![symlink("a", "a/a/a")],
    ] {
        assert!(apply(vec![links, vec![file("a/x")]]).is_err());
    }
}

#[test]
fn something_below_a_file_is_refused() {
    assert!(apply(vec![vec![file("a"), file("a/b")]]).is_err());
    assert!(apply(vec![vec![file("a")], vec![directory("a/b")]]).is_err());
}

#[test]
fn hard_links_share_an_inode_across_layers_until_one_is_replaced() {
    let base = vec![file("a"), hard_link("b", "a")];
    let tree = apply(vec![base, vec![hard_link("c", "b"), file("a")]]).expect("good layers");
    assert_eq!(paths(&tree), ["a 1", "b 0", "c 0"]);
    let root = tree.children(InodeId::ROOT).expect("a directory");
    let inode = |name: &str| root[name.as_bytes()].inode;
    assert_eq!(inode("b"), inode("c"));
    assert_ne!(inode("a"), inode("b"));
}

#[test]
fn hard_links_to_nothing_a_directory_or_themselves() {
    assert!(apply(vec![vec![hard_link("a", "b")]]).is_err());
    assert!(apply(vec![vec![hard_link("a", "a")]]).is_err());
    assert!(apply(vec![vec![directory("d"), hard_link("a", "d")]]).is_err());
    assert!(apply(vec![vec![hard_link("a", "")]]).is_err());
    assert_eq!(tree_of(vec![vec![file("a"), hard_link("a", "a")]]), ["a 0"]);
}

#[test]
fn depth_is_bounded_although_symbolic_links_could_make_more_of_it() {
    let deep = "d/".repeat(MAX_DEPTH) + "f";
    apply(vec![vec![file(&deep)]]).expect("as deep as it may be");
    let deeper = "d/".repeat(MAX_DEPTH + 1) + "f";
    assert!(apply(vec![vec![file(&deeper)]]).is_err());
    let more = vec![
        file(&deep),
        symlink("s", "d/".repeat(MAX_DEPTH).as_str()),
        file("s/d/d/f"),
    ];
    assert!(apply(vec![more]).is_err());
}

#[test]
fn memory_is_bounded_whatever_layers_say() {
    let target = "t".repeat(4000);
    let mut tree = Tree::new();
    let mut bytes = 0;
    let error = loop {
        // The same name over and over: what is replaced counts as well.
        match tree.apply(0, symlink("s", &target)) {
            Ok(()) => bytes += target.len() as u64,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, TreeError::TooLarge), "{error}");
    assert!(bytes <= MAX_TREE_BYTES);
}
