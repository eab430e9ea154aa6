//! Builds the guest's kernel from Debian's `linux-source` package.
//!
//! ```text
//! tarball ──> unpack ──> patches ──> make allnoconfig with kernel.config ──> check every line took
//!                                                                                     │
//!              cache/kernel/<key>/{vmlinux, System.map, config} <── strip <── make vmlinux
//! ```
//!
//! Nothing of the machine enters the image: user, host, date and build number are fixed, and the
//! build runs inside the source tree, so that compiled-in file names are relative. The key is a
//! digest of the source, the patches, the fragment's options, this recipe and the compiler's and linker's
//! versions.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::cache::{Cache, CacheError, Key, failed};
use crate::fragment::{Fragment, FragmentError, KERNEL_CONFIG};

/// Debian's package with the source; its tarball is `/usr/src/<package>.tar.xz`.
pub const SOURCE_PACKAGE: &str = "linux-source-6.12";

/// Bumped when the steps below change, so that older results are not taken for new ones.
const RECIPE: &str = "1";

/// What is changed in the source, by the names of the files: each says why at its head. They make a start
/// shorter and nothing else. One that a later source has no place for is left out.
const PATCHES: [(&str, &str); 2] = [
    (
        "x86-return-sites.patch",
        include_str!("../patches/x86-return-sites.patch"),
    ),
    (
        "spin-unlock-calls.patch",
        include_str!("../patches/spin-unlock-calls.patch"),
    ),
];

/// What would otherwise say who built the image, where and when.
const FIXED: [(&str, &str); 4] = [
    ("KBUILD_BUILD_TIMESTAMP", "Thu Jan  1 00:00:00 UTC 1970"),
    ("KBUILD_BUILD_USER", "isopod"),
    ("KBUILD_BUILD_HOST", "isopod"),
    ("KBUILD_BUILD_VERSION", "1"),
];

/// How many lines of a failed step's output an error shows.
const ERROR_LINES: usize = 30;

/// Why there is no kernel.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The cache failed.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// The fragment, or what Kconfig made of it.
    #[error(transparent)]
    Fragment(#[from] FragmentError),
    /// A program could not be started.
    #[error("running {program}")]
    Run {
        /// Its name.
        program: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A program failed.
    #[error("{program} failed ({status}), its last lines:\n{tail}")]
    Failed {
        /// Its name.
        program: String,
        /// How it ended.
        status: std::process::ExitStatus,
        /// The end of its output.
        tail: String,
    },
    /// The fragment names an option that this kernel does not have.
    #[error("this kernel has no option {}", .0.join(", "))]
    Unknown(Vec<String>),
}

/// A step of the build has begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Unpacking the source.
    Unpack,
    /// A patch does not fit the source, and is left out.
    LeftOut(&'static str),
    /// Writing `.config` and checking it.
    Configure,
    /// Compiling.
    Compile,
}

/// Where a build finds its source and puts its result.
#[derive(Debug)]
pub struct KernelBuild {
    /// `linux-source-*.tar.xz`.
    pub tarball: PathBuf,
    /// The source package's version.
    pub source_version: String,
    /// How many compilers run at once.
    pub jobs: usize,
}

/// The files of a built kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// The ELF image that the VMM loads.
    pub vmlinux: PathBuf,
    /// Its symbols, to read a guest's oops with.
    pub system_map: PathBuf,
    /// The complete configuration.
    pub config: PathBuf,
}

impl KernelBuild {
    /// The result's key in the cache.
    ///
    /// # Errors
    ///
    /// When the compiler or linker does not run.
    pub fn key(&self) -> Result<String, KernelError> {
        Ok(Key::default()
            .input("recipe", RECIPE)
            .input("source", &self.source_version)
            .input("patches", PATCHES.map(|(_, text)| text).concat())
            .input("options", Fragment::parse(KERNEL_CONFIG)?.to_string())
            .input("compiler", version_line("gcc")?)
            .input("linker", version_line("ld")?)
            .name())
    }

    /// Builds the kernel, or finds it in the cache; `progress` hears of each step.
    ///
    /// # Errors
    ///
    /// [`KernelError`]; nothing is published then.
    pub fn build(
        &self,
        cache: &Cache,
        mut progress: impl FnMut(Step),
    ) -> Result<Kernel, KernelError> {
        let key = self.key()?;
        let entry = cache
            .get_or_make::<KernelError>("kernel", &key, |draft| self.make(draft, &mut progress))?;
        Ok(Kernel {
            vmlinux: entry.join("vmlinux"),
            system_map: entry.join("System.map"),
            config: entry.join("config"),
        })
    }

    /// Fills `draft` with the result; the source tree lives in it while it is needed.
    fn make(&self, draft: &Path, progress: &mut impl FnMut(Step)) -> Result<(), KernelError> {
        let fragment = Fragment::parse(KERNEL_CONFIG)?;
        let tree = draft.join("tree");

        progress(Step::Unpack);
        fs::create_dir(&tree).map_err(failed("creating", &tree))?;
        let mut tar = Command::new("tar");
        tar.args(["--extract", "--strip-components=1", "--file"]);
        run(tar.arg(&self.tarball).arg("-C").arg(&tree), draft)?;
        for (name, text) in PATCHES {
            if !patch(&tree, text, draft)? {
                progress(Step::LeftOut(name));
            }
        }

        progress(Step::Configure);
        let asked = draft.join("fragment");
        fs::write(&asked, fragment.to_string()).map_err(failed("writing", &asked))?;
        let mut all_no = make(&tree);
        all_no.arg("allnoconfig").env("KCONFIG_ALLCONFIG", &asked);
        run(&mut all_no, draft)?;
        check_names(&fragment, &tree)?;
        let dot_config = tree.join(".config");
        let config = fs::read_to_string(&dot_config).map_err(failed("reading", &dot_config))?;
        fragment.check(&config)?;

        progress(Step::Compile);
        run(
            make(&tree).arg(format!("-j{}", self.jobs)).arg("vmlinux"),
            draft,
        )?;

        let vmlinux = draft.join("vmlinux");
        let mut strip = Command::new("strip");
        strip.arg("--strip-all").arg("-o").arg(&vmlinux);
        run(strip.arg(tree.join("vmlinux")), draft)?;
        for (from, to) in [("System.map", "System.map"), (".config", "config")] {
            let to = draft.join(to);
            fs::copy(tree.join(from), &to).map_err(failed("copying", &to))?;
        }
        fs::remove_dir_all(&tree).map_err(failed("removing", &tree))?;
        for scaffold in [asked, draft.join("log")] {
            fs::remove_file(&scaffold).map_err(failed("removing", &scaffold))?;
        }
        Ok(())
    }
}

/// Changes the source as a patch says, if that has a place for all of it; otherwise nothing of it.
fn patch(tree: &Path, text: &str, draft: &Path) -> Result<bool, KernelError> {
    let file = draft.join("patch");
    fs::write(&file, text).map_err(failed("writing", &file))?;
    let apply = |more: &[&str]| {
        let mut patch = Command::new("patch");
        // Without fuzz: lines much alike are in other places, too.
        patch.args(["--strip=1", "--batch", "--forward", "--fuzz=0"]);
        patch.args(more);
        patch.arg("--directory").arg(tree).arg("--input").arg(&file);
        run(&mut patch, draft)
    };
    let fits = match apply(&["--dry-run"]) {
        Ok(()) => true,
        Err(KernelError::Failed { .. }) => false,
        Err(error) => return Err(error),
    };
    if fits {
        apply(&["--no-backup-if-mismatch"])?;
    }
    fs::remove_file(&file).map_err(failed("removing", &file))?;
    Ok(fits)
}

/// `make` in the source tree, without what the caller's environment would change.
fn make(tree: &Path) -> Command {
    let mut command = Command::new("make");
    command.arg("--directory").arg(tree).envs(FIXED);
    command.env("LC_ALL", "C").env("TZ", "UTC");
    for name in [
        "MAKEFLAGS",
        "MFLAGS",
        "MAKELEVEL",
        "ARCH",
        "CROSS_COMPILE",
        "KCFLAGS",
    ] {
        command.env_remove(name);
    }
    command
}

/// Runs a step with its output in `draft/log`; an error quotes the end of it.
fn run(command: &mut Command, draft: &Path) -> Result<(), KernelError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let path = draft.join("log");
    let log = File::create(&path).map_err(failed("creating", &path))?;
    let errors = log.try_clone().map_err(failed("duplicating", &path))?;
    let status = command
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(errors)
        .status()
        .map_err(|source| KernelError::Run {
            program: program.clone(),
            source,
        })?;
    if status.success() {
        return Ok(());
    }
    let output = fs::read(&path).map_err(failed("reading", &path))?;
    Err(KernelError::Failed {
        program,
        status,
        tail: last_lines(&output, ERROR_LINES),
    })
}

/// The last lines of a program's output.
fn last_lines(output: &[u8], count: usize) -> String {
    let text = String::from_utf8_lossy(output);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

/// Refuses names that no Kconfig file defines: a `=n` line with a typing error would otherwise pass.
fn check_names(fragment: &Fragment, tree: &Path) -> Result<(), KernelError> {
    let mut grep = Command::new("grep");
    grep.args(["--recursive", "--no-filename", "--only-matching", "-E"]);
    grep.args(["--include=Kconfig*", r"^\s*(menu)?config [A-Za-z0-9_]+"]);
    let output = grep.arg(tree).output().map_err(|source| KernelError::Run {
        program: "grep".to_owned(),
        source,
    })?;
    let text = String::from_utf8_lossy(&output.stdout);
    let known: std::collections::BTreeSet<&str> = text
        .lines()
        .filter_map(|line| line.split_whitespace().last())
        .collect();
    let unknown: Vec<String> = fragment
        .options()
        .map(|(name, _)| name)
        .filter(|name| !known.contains(name.trim_start_matches("CONFIG_")))
        .map(str::to_owned)
        .collect();
    if unknown.is_empty() {
        Ok(())
    } else {
        Err(KernelError::Unknown(unknown))
    }
}

/// The first line of `program --version`.
fn version_line(program: &str) -> Result<String, KernelError> {
    let output = Command::new(program)
        .arg("--version")
        .env("LC_ALL", "C")
        .output()
        .map_err(|source| KernelError::Run {
            program: program.to_owned(),
            source,
        })?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn build(source_version: &str) -> KernelBuild {
        KernelBuild {
            tarball: "/nonexistent.tar.xz".into(),
            source_version: source_version.to_owned(),
            jobs: 1,
        }
    }

    #[test]
    fn another_source_version_is_another_kernel() {
        assert_eq!(build("1").key().unwrap(), build("1").key().unwrap());
        assert_ne!(build("1").key().unwrap(), build("2").key().unwrap());
    }

    #[test]
    fn a_missing_source_fails_with_the_programs_own_words_and_publishes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path());
        let kernel = build("1");
        let error = kernel.build(&cache, |_| {}).unwrap_err();
        assert!(matches!(&error, KernelError::Failed { program, .. } if program == "tar"));
        assert!(error.to_string().contains("nonexistent"), "{error}");
        assert!(!cache.entry("kernel", &kernel.key().unwrap()).exists());
    }

    #[test]
    fn a_patch_is_applied_as_a_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let tree = folder.path().join("tree");
        fs::create_dir(&tree).unwrap();
        for name in ["a", "b"] {
            fs::write(tree.join(name), "one\ntwo\nthree\n").unwrap();
        }
        let of = |name: &str, before: &str| {
            format!("--- a/{name}\n+++ b/{name}\n@@ -1,3 +1,3 @@\n one\n-{before}\n+2\n three\n")
        };
        let read = |name: &str| fs::read_to_string(tree.join(name)).unwrap();
        let unfit = format!("Why.\n\n{}{}", of("a", "two"), of("b", "zwei"));
        assert!(!patch(&tree, &unfit, folder.path()).unwrap());
        assert_eq!(read("a"), "one\ntwo\nthree\n");
        assert!(patch(&tree, &of("a", "two"), folder.path()).unwrap());
        assert_eq!(read("a"), "one\n2\nthree\n");
        assert_eq!(
            fs::read_dir(&tree).unwrap().count(),
            2,
            "nothing beside them"
        );
    }

    #[test]
    fn an_option_that_no_kconfig_defines_is_named() {
        let tree = tempfile::tempdir().unwrap();
        fs::create_dir(tree.path().join("mm")).unwrap();
        fs::write(
            tree.path().join("mm/Kconfig"),
            "menuconfig A\n\tbool\n\nconfig B\n",
        )
        .unwrap();
        let fragment = Fragment::parse("## why\nCONFIG_A=y\nCONFIG_B=n\nCONFIG_TYPO=n\n").unwrap();
        let error = check_names(&fragment, tree.path()).unwrap_err();
        assert!(matches!(error, KernelError::Unknown(names) if names == ["CONFIG_TYPO"]));
    }
}
