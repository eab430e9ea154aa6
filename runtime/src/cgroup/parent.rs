//! Which cgroup a pod's `cgroup_parent` means.

use std::path::{Component, Path, PathBuf};

use crate::field::FieldError;

/// The field's name.
pub(super) const FIELD: &str = "config.linux.cgroup_parent";
/// Longest parent, in bytes: the kernel shows paths of at most this length.
const LENGTH_MAX: usize = 2048;
/// What a slice's name ends with.
const SLICE: &str = ".slice";

/// Checks a pod's parent.
///
/// # Errors
///
/// [`FieldError`] when it names no cgroup.
pub(crate) fn check_parent(parent: &str) -> Result<(), FieldError> {
    match parent_path(parent) {
        Some(_) => Ok(()),
        None => Err(FieldError::new(
            FIELD,
            "is neither a path without `..` nor the name of a systemd slice",
        )),
    }
}

/// The parent's path below the hierarchy's root; `None` when it names none.
///
/// A last name that ends in `.slice` is systemd's, as the kubelet's systemd driver sends it: each
/// `-` in it goes one slice down (`systemd.slice(5)`), wherever the path before it leads.
pub(super) fn parent_path(parent: &str) -> Option<PathBuf> {
    if parent.len() > LENGTH_MAX || parent.contains('\0') {
        return None;
    }
    let mut path = PathBuf::new();
    for part in Path::new(parent).components() {
        match part {
            Component::Normal(name) => path.push(name),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => return None,
        }
    }
    let last = path.file_name().and_then(|name| name.to_str());
    match last.and_then(|name| name.strip_suffix(SLICE)) {
        Some(slice) => slice_path(slice),
        None => Some(path),
    }
}

/// `a-b` is `a.slice/a-b.slice`, and `-` the root.
fn slice_path(slice: &str) -> Option<PathBuf> {
    if slice == "-" {
        return Some(PathBuf::new());
    }
    if slice.split('-').any(str::is_empty) {
        return None;
    }
    let ends = slice.match_indices('-').map(|(at, _)| at);
    let ends = ends.chain([slice.len()]);
    Some(
        ends.map(|end| format!("{}{SLICE}", &slice[..end]))
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_and_slices_become_paths() {
        for (parent, path) in [
            ("", ""),
            ("/", ""),
            ("/kubepods/burstable/pod1", "kubepods/burstable/pod1"),
            ("kubepods//./pod1/", "kubepods/pod1"),
            ("system.slice", "system.slice"),
            ("-.slice", ""),
            (
                "kubepods-burstable-pod1_2.slice",
                "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice",
            ),
            (
                "/kubepods.slice/kubepods-pod1.slice",
                "kubepods.slice/kubepods-pod1.slice",
            ),
        ] {
            assert_eq!(parent_path(parent), Some(path.into()), "{parent}");
        }
    }

    #[test]
    fn what_names_no_cgroup_is_refused_by_name() {
        let long = "a/".repeat(LENGTH_MAX);
        for parent in [
            "../x",
            "/a/../b",
            "a--b.slice",
            "-a.slice",
            "a-.slice",
            ".slice",
            "a\0b",
            &long,
        ] {
            assert_eq!(check_parent(parent).unwrap_err().field, FIELD, "{parent}");
        }
    }
}
