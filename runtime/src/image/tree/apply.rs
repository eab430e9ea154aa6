//! One record of a layer, applied.

use std::borrow::Cow;

use super::{
    Inode, InodeId, Kind, Link, MAX_DEPTH, MAX_ENTRIES, MAX_SYMLINKS, Tree, TreeError, refuse,
};
use crate::image::layer::{Change, Record};

/// What happens when a directory on the way is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Missing {
    /// It is made, and what is on the way belongs to the present layer from now on.
    Create,
    /// The path leads nowhere.
    Nowhere,
}

impl Tree {
    /// Applies the next record of the `layer`th layer, counted from 0, the lowest.
    ///
    /// # Errors
    /// The tree is then good for nothing.
    pub(crate) fn apply(&mut self, layer: u8, record: Record) -> Result<(), TreeError> {
        self.entries += 1;
        if self.entries > MAX_ENTRIES {
            return Err(TreeError::TooMany);
        }
        if self.layer != layer {
            self.layer = layer;
            self.last_parent = None;
        }
        match record.change {
            Change::Whiteout => self.apply_whiteout(&record.path),
            Change::Opaque => self.apply_opaque(&record.path),
            Change::HardLink(ref target) => self.apply_hard_link(&record.path, target),
            _ => self.apply_inode(record),
        }
    }

    fn apply_whiteout(&mut self, path: &[u8]) -> Result<(), TreeError> {
        let Some((directory, name)) = split(path) else {
            return Err(refuse(path, "hides the root"));
        };
        let Some(parent) = self.resolve(path, directory, Missing::Nowhere)? else {
            return Ok(());
        };
        let layer = self.layer;
        let Some(link) = self
            .children(parent)
            .and_then(|children| children.get(name))
            .copied()
        else {
            return Ok(());
        };
        if link.layer == layer {
            // The same layer has something here: what it has stays, what is below it goes.
            self.hide_below(link.inode);
        } else {
            self.unlink(parent, name);
        }
        Ok(())
    }

    fn apply_opaque(&mut self, path: &[u8]) -> Result<(), TreeError> {
        if let Some(directory) = self.resolve(path, path, Missing::Nowhere)? {
            self.hide_below(directory);
        }
        Ok(())
    }

    fn apply_hard_link(&mut self, path: &[u8], target: &[u8]) -> Result<(), TreeError> {
        let Some((target_directory, target_name)) = split(target) else {
            return Err(refuse(path, "is a hard link to the root"));
        };
        let inode = self
            .resolve(path, target_directory, Missing::Nowhere)?
            .and_then(|parent| self.children(parent)?.get(target_name))
            .map(|link| link.inode)
            .ok_or_else(|| refuse(path, "is a hard link to what does not exist"))?;
        if self.children(inode).is_some() {
            return Err(refuse(path, "is a hard link to a directory"));
        }
        let Some((directory, name)) = split(path) else {
            return Err(refuse(path, "would replace the root"));
        };
        let parent = self.resolve_parent(path, directory)?;
        self.charge(super::ENTRY_COST)?;
        self.link(parent, name, inode)
    }

    fn apply_inode(&mut self, record: Record) -> Result<(), TreeError> {
        let Record {
            path,
            change,
            mode,
            uid,
            gid,
            mtime,
            xattrs,
        } = record;
        let cost = xattrs
            .iter()
            .map(|(name, value)| name.len() + value.len() + 64);
        self.charge(cost.sum::<usize>() as u64)?;
        let xattrs = self.xattrs.intern(xattrs);
        let kind = match change {
            Change::Directory => Kind::Directory(super::Children::new()),
            Change::File { size, block } => Kind::File {
                size,
                layer: self.layer,
                block,
            },
            Change::Symlink(target) => {
                self.charge(target.len() as u64)?;
                Kind::Symlink(target.into())
            }
            Change::CharDevice(number) => Kind::CharDevice(number),
            Change::BlockDevice(number) => Kind::BlockDevice(number),
            Change::Fifo => Kind::Fifo,
            Change::HardLink(_) | Change::Whiteout | Change::Opaque => {
                unreachable!("these make no inode and are applied elsewhere")
            }
        };
        let is_directory = matches!(kind, Kind::Directory(_));
        let new = Inode {
            mode,
            uid,
            gid,
            mtime,
            xattrs,
            kind,
        };
        let Some((directory, name)) = split(&path) else {
            if !is_directory {
                return Err(refuse(&path, "would replace the root"));
            }
            self.set_metadata(InodeId::ROOT, &new);
            return Ok(());
        };
        let parent = self.resolve_parent(&path, directory)?;
        if is_directory && let Some(existing) = self.directory_at(parent, name) {
            self.set_metadata(existing, &new);
            return Ok(());
        }
        let inode = self.add(new)?;
        self.link(parent, name, inode)
    }

    /// The directory of this name, now touched by the present layer.
    fn directory_at(&mut self, parent: InodeId, name: &[u8]) -> Option<InodeId> {
        let inode = self.children(parent)?.get(name)?.inode;
        self.children(inode)?;
        let layer = self.layer;
        self.children_mut(parent)?.get_mut(name)?.layer = layer;
        Some(inode)
    }

    /// Everything but the contents.
    fn set_metadata(&mut self, directory: InodeId, new: &Inode) {
        let inode = &mut self.inodes[directory.index()];
        (inode.mode, inode.uid, inode.gid) = (new.mode, new.uid, new.gid);
        (inode.mtime, inode.xattrs) = (new.mtime, new.xattrs);
    }

    /// Gives `inode` a name, which may have been another's.
    fn link(&mut self, parent: InodeId, name: &[u8], inode: InodeId) -> Result<(), TreeError> {
        self.charge(name.len() as u64)?;
        let link = Link {
            inode,
            layer: self.layer,
        };
        let replaced = self
            .children_mut(parent)
            .expect("resolve leads to directories")
            .insert(name.into(), link);
        if replaced.is_some() {
            self.last_parent = None;
        }
        Ok(())
    }

    fn unlink(&mut self, parent: InodeId, name: &[u8]) {
        self.last_parent = None;
        if let Some(children) = self.children_mut(parent) {
            children.remove(name);
        }
    }

    /// Removes everything below `top` that the present layer has not touched.
    fn hide_below(&mut self, top: InodeId) {
        self.last_parent = None;
        let layer = self.layer;
        let mut pending = vec![top];
        while let Some(directory) = pending.pop() {
            if let Some(children) = self.children_mut(directory) {
                children.retain(|_, link| link.layer == layer);
                pending.extend(children.values().map(|link| link.inode));
            }
        }
    }

    /// The directory that the entry at `path` goes into, made if it is not there.
    fn resolve_parent(&mut self, path: &[u8], directory: &[u8]) -> Result<InodeId, TreeError> {
        if let Some((last, inode)) = &self.last_parent
            && **last == *directory
        {
            return Ok(*inode);
        }
        let inode = self
            .resolve(path, directory, Missing::Create)?
            .expect("Missing::Create always leads somewhere");
        self.last_parent = Some((directory.into(), inode));
        Ok(inode)
    }

    /// Walks from the root to `directory`, following symbolic links; `path` is the entry on whose
    /// behalf, for messages.
    fn resolve(
        &mut self,
        path: &[u8],
        directory: &[u8],
        missing: Missing,
    ) -> Result<Option<InodeId>, TreeError> {
        let layer = self.layer;
        // The directories from the root to here, for `..` in symbolic links.
        let mut stack = vec![InodeId::ROOT];
        let mut way = Cow::Borrowed(directory);
        let mut at = 0;
        let mut links = 0;
        loop {
            let Some((name, after)) = first_component(&way[at..]) else {
                return Ok(stack.last().copied());
            };
            at = way.len() - after.len();
            let here = *stack.last().expect("the root stays");
            if name == b".." {
                if stack.len() > 1 {
                    stack.pop();
                }
                continue;
            }
            if stack.len() > MAX_DEPTH {
                return Err(refuse(path, "is too many directories deep"));
            }
            let next = self
                .children(here)
                .and_then(|children| children.get(name))
                .copied();
            let next = match (next, missing) {
                (Some(link), _) => link.inode,
                (None, Missing::Nowhere) => return Ok(None),
                (None, Missing::Create) => {
                    let inode = self.add(Inode::implicit_directory())?;
                    self.link(here, name, inode)?;
                    inode
                }
            };
            match &self.inode(next).kind {
                Kind::Directory(_) => {
                    if missing == Missing::Create
                        && let Some(link) = self
                            .children_mut(here)
                            .and_then(|children| children.get_mut(name))
                    {
                        link.layer = layer;
                    }
                    stack.push(next);
                }
                Kind::Symlink(target) => {
                    links += 1;
                    if links > MAX_SYMLINKS {
                        return Err(refuse(path, "has too many symbolic links on its way"));
                    }
                    if target.starts_with(b"/") {
                        stack.truncate(1);
                    }
                    way = Cow::Owned([target, b"/".as_slice(), after].concat());
                    at = 0;
                }
                _ if missing == Missing::Nowhere => return Ok(None),
                _ => return Err(refuse(path, "is below something that is not a directory")),
            }
        }
    }
}

/// The first component that means something, and what follows it.
fn first_component(path: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut rest = path;
    while !rest.is_empty() {
        let end = rest
            .iter()
            .position(|&byte| byte == b'/')
            .unwrap_or(rest.len());
        let (name, after) = rest.split_at(end);
        rest = after.strip_prefix(b"/").unwrap_or(after);
        if !matches!(name, b"" | b".") {
            return Some((name, rest));
        }
    }
    None
}

/// The directory and the name in it; `None` for the root.
fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    match path.iter().rposition(|&byte| byte == b'/') {
        Some(slash) => Some((&path[..slash], &path[slash + 1..])),
        None if path.is_empty() => None,
        None => Some((b"", path)),
    }
}
