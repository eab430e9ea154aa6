//! A daemon that is killed at any moment of a pull leaves whole things and nothing else.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use isopod_tests::node::{self, Node, Options, image};

/// How often the daemon is killed in each test.
const KILLS: u32 = 60;

/// Random numbers that are the same in every run: xorshift64*, as Vigna has it.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: Duration) -> Duration {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let micros = u64::try_from(limit.as_micros())
            .expect("a short time")
            .max(1);
        Duration::from_micros((self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 20) % micros)
    }
}

/// Every file of the image store, by path.
fn files(root: &Path) -> Result<BTreeMap<PathBuf, Vec<u8>>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(root)?.to_owned();
                found.insert(name, fs::read(&path)?);
            }
        }
    }
    Ok(found)
}

fn store(node: &Node) -> PathBuf {
    node.root_dir().join("images")
}

/// What is there is, byte for byte, what a pull without accidents makes.
fn is_part_of(now: &BTreeMap<PathBuf, Vec<u8>>, whole: &BTreeMap<PathBuf, Vec<u8>>) -> Result<()> {
    for (path, contents) in now {
        if path == Path::new("names.json") {
            continue;
        }
        let expected = whole.get(path);
        let expected = expected.with_context(|| format!("{} is garbage", path.display()))?;
        ensure!(contents == expected, "{} is another one", path.display());
        // A folder is published with all of its files.
        let folder = path.parent().context("a file in a folder")?;
        for other in whole.keys().filter(|other| other.parent() == Some(folder)) {
            ensure!(now.contains_key(other), "{} is missing", other.display());
        }
    }
    Ok(())
}

/// Kills the daemon somewhere in a pull, many times; `after` looks at each next daemon.
fn kill_many_times(
    node: &Node,
    mut after: impl FnMut(&BTreeMap<PathBuf, Vec<u8>>) -> Result<()>,
) -> Result<()> {
    let cri = node.cri();
    let begun = Instant::now();
    cri.pull(&image("nginx"))?;
    let took = begun.elapsed();
    let whole = files(&store(node))?;
    let complete = cri.list_images()?;
    cri.remove_image(&image("nginx"))?;

    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut finished = 0;
    for kill in 0..KILLS {
        std::thread::scope(|scope| {
            let pull = scope.spawn(|| node.cri().pull(&image("nginx")));
            std::thread::sleep(random.below(took + took / 4));
            node.kill_daemon();
            // Whether it was in time does not matter here.
            let _ = pull.join();
        });
        node.start_daemon()
            .with_context(|| format!("after kill {kill}"))?;
        let now = files(&store(node))?;
        is_part_of(&now, &whole).with_context(|| format!("after kill {kill}"))?;
        let images = cri.list_images()?;
        if images.is_empty() {
            after(&now).with_context(|| format!("after kill {kill}"))?;
        } else {
            ensure!(images == complete, "after kill {kill}: {images:?}");
            finished += 1;
            cri.remove_image(&image("nginx"))?;
        }
    }
    // Else the times were chosen badly, and nothing was tested.
    ensure!(
        (1..KILLS).contains(&finished),
        "{finished} of {KILLS} pulls were finished before the daemon was killed"
    );
    cri.pull(&image("nginx"))?;
    ensure!(
        cri.list_images()? == complete,
        "not the same image any more"
    );
    ensure!(files(&store(node))? == whole, "not the same files any more");
    Ok(())
}

#[test]
fn a_daemon_that_is_killed_in_the_middle_of_a_pull_leaves_whole_layers_or_none() -> Result<()> {
    node::run(Options::host(), |node| {
        let mut with_layers = 0;
        kill_many_times(node, |left| {
            with_layers += usize::from(left.keys().any(|path| path.starts_with("layers")));
            Ok(())
        })?;
        ensure!(with_layers > 0, "no kill left a layer for the next try");
        Ok(())
    })
}

#[test]
fn a_daemon_that_keeps_no_layers_leaves_nothing_when_it_is_killed() -> Result<()> {
    node::run(Options::host().registry("keep_layers_ms", 0), |node| {
        kill_many_times(node, |left| {
            let garbage = left.keys().find(|path| *path != Path::new("names.json"));
            ensure!(garbage.is_none(), "{garbage:?} is left");
            Ok(())
        })
    })
}
