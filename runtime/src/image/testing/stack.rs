//! Random stacks of layers, as builders make them: every layer says something about a path at most
//! once, and nothing that cannot be.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use isopod_tests::images::layer::Entry;

/// Names that sort before `.`, between, and after everything; one that is no UTF-8.
const NAMES: [&[u8]; 6] = [b"-first", b"a", b"b", b"b.c", b"z", b"\xff\xfe"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Directory,
    File,
    Other,
}

/// What the layers so far amount to, and the random numbers.
struct Maker {
    state: u64,
    tree: BTreeMap<Vec<u8>, Kind>,
    /// Paths that the present layer has spoken of.
    touched: BTreeSet<Vec<u8>>,
}

/// Up to five layers; the same seed gives the same stack.
pub(in crate::image) fn stack(seed: u64) -> Vec<Vec<Entry>> {
    let mut maker = Maker {
        state: seed | 1,
        tree: BTreeMap::from([(Vec::new(), Kind::Directory)]),
        touched: BTreeSet::new(),
    };
    (0..=maker.below(5)).map(|_| maker.layer()).collect()
}

fn below(path: &[u8], directory: &[u8]) -> bool {
    directory.is_empty()
        || (path.starts_with(directory) && path.get(directory.len()) == Some(&b'/'))
}

impl Maker {
    /// xorshift64*, as Vigna has it.
    fn next(&mut self) -> u64 {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        self.state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() >> 33).expect("31 bits") % limit
    }

    fn layer(&mut self) -> Vec<Entry> {
        self.touched.clear();
        let mut entries = Vec::new();
        for _ in 0..self.below(40) {
            self.step(&mut entries);
        }
        entries
    }

    fn step(&mut self, entries: &mut Vec<Entry>) {
        let directories: Vec<_> = self
            .tree
            .iter()
            .filter(|(_, kind)| **kind == Kind::Directory)
            .collect();
        let directories: Vec<Vec<u8>> = directories
            .into_iter()
            .map(|(path, _)| path.clone())
            .collect();
        let parent = directories[self.below(directories.len())].clone();
        let name = NAMES[self.below(NAMES.len())];
        let path = if parent.is_empty() {
            name.to_vec()
        } else {
            [&parent, &b"/"[..], name].concat()
        };
        let spoken_of = |touched: &BTreeSet<Vec<u8>>| {
            touched
                .iter()
                .any(|other| *other == path || below(other, &path))
        };
        if spoken_of(&self.touched) || path.len() > 40 {
            return;
        }
        let name = OsStr::from_bytes(&path).to_owned();
        let choice = self.below(16);
        let (entry, kind) = match choice {
            0..5 => (Entry::directory(&name), Kind::Directory),
            5..10 => {
                let length = [0, 1, 4095, 4096, 4097, 20_000][self.below(6)];
                let byte = self.next().to_le_bytes()[3];
                (Entry::file(&name, vec![byte; length]), Kind::File)
            }
            10 => {
                let target = ["a", "../b", "/z/a", "nowhere"][self.below(4)];
                (Entry::symlink(&name, target), Kind::Other)
            }
            11 => (Entry::fifo(&name), Kind::Other),
            12 => (Entry::character(&name, 1, 300), Kind::Other),
            13 => return self.hard_link(&path, entries),
            _ => {
                if self.tree.contains_key(&path) {
                    entries.push(Entry::whiteout(&name));
                    self.put(&path, None);
                }
                return;
            }
        };
        let replaces_directory = self.tree.get(&path) == Some(&Kind::Directory);
        entries.push(self.dressed(entry, kind));
        if kind == Kind::Directory && replaces_directory {
            self.touched.insert(path.clone());
            if self.below(3) == 0 {
                entries.push(Entry::opaque(&name));
                self.tree.retain(|other, _| !below(other, &path));
            }
        } else {
            self.put(&path, Some(kind));
        }
    }

    /// Random metadata. Attributes of `user.` are only for files and directories.
    fn dressed(&mut self, entry: Entry, kind: Kind) -> Entry {
        let mut entry = entry
            .mode([0o644, 0o755, 0o4711, 0o1777, 0][self.below(5)])
            .owner(
                [0, 1000, 70_000][self.below(3)],
                [0, 65_535, 65_536][self.below(3)],
            )
            .mtime([0, 1_000_000_000, 1_600_000_000][self.below(3)]);
        if self.below(4) == 0 {
            entry = entry.mtime_nanos(u32::try_from(self.below(1_000_000_000)).expect("small"));
        }
        if kind != Kind::Other {
            for name in ["user.one", "user.two"] {
                if self.below(4) == 0 {
                    entry = entry.xattr(name, vec![b'v'; 1 + self.below(3) * 700]);
                }
            }
        }
        entry
    }

    fn hard_link(&mut self, path: &[u8], entries: &mut Vec<Entry>) {
        let files = self
            .tree
            .iter()
            .filter(|(file, kind)| **kind == Kind::File && *file != path && !below(file, path));
        let files: Vec<Vec<u8>> = files.map(|(file, _)| file.clone()).collect();
        if files.is_empty() {
            return;
        }
        let target = &files[self.below(files.len())];
        entries.push(Entry::hard_link(
            OsStr::from_bytes(path),
            OsStr::from_bytes(target),
        ));
        self.put(path, Some(Kind::File));
    }

    fn put(&mut self, path: &[u8], kind: Option<Kind>) {
        self.tree
            .retain(|other, _| other != path && !below(other, path));
        self.tree.extend(kind.map(|kind| (path.to_vec(), kind)));
        self.touched.insert(path.to_vec());
    }
}
