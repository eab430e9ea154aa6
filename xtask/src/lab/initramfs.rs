//! A run's initramfs: busybox, the modules to load, the two halves of PID 1, and the job as shell
//! scripts. Written anew each time; it is small.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use isopod_guest_image::cpio::Archive;

use super::Job;
use super::kernel::Kernel;
use super::shell::quote;

const BUSYBOX: &str = "/bin/busybox";

/// The archive's bytes. `end` is what the lab writes after the command's output.
pub(super) fn build(kernel: &Kernel, job: &Job, end: &str) -> Result<Vec<u8>> {
    let mut archive = Archive::new();
    for folder in [
        "bin",
        "dev",
        "proc",
        "sys",
        "lower",
        "upper",
        "new",
        "lab",
        "lab/modules",
    ] {
        archive.directory(folder, 0o755);
    }
    archive.character_device("dev/console", 0o600, 5, 1);
    archive.file("bin/busybox", 0o755, &read(Path::new(BUSYBOX))?)?;
    archive.file("init", 0o755, include_bytes!("first.sh"))?;
    archive.file("lab/second.sh", 0o755, include_bytes!("second.sh"))?;
    archive.file(
        "lab/settings.sh",
        0o644,
        settings(kernel, job, end).as_bytes(),
    )?;
    archive.file("lab/command.sh", 0o644, command(job).as_bytes())?;
    let mut order = String::new();
    for module in &kernel.loaded {
        let name = module
            .file_name()
            .context("a module has a name")?
            .to_string_lossy();
        archive.file(&format!("lab/modules/{name}"), 0o644, &read(module)?)?;
        writeln!(order, "{name}")?;
    }
    archive.file("lab/order", 0o644, order.as_bytes())?;
    Ok(archive.finish())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("reading {}", path.display()))
}

/// What `second.sh` needs to know.
fn settings(kernel: &Kernel, job: &Job, end: &str) -> String {
    [
        ("RELEASE", kernel.release.as_str()),
        ("MODULES", &kernel.modules.display().to_string()),
        ("EXCHANGE", if job.exchange.is_some() { "1" } else { "" }),
        (
            "SHELL_WANTED",
            if job.command.is_empty() { "1" } else { "" },
        ),
        ("END", end),
    ]
    .iter()
    .fold(String::new(), |script, (name, value)| {
        format!("{script}{name}={}\n", quote(value))
    })
}

/// A script that becomes the command.
fn command(job: &Job) -> String {
    let own = |name: &str, default: &str| {
        (
            name.to_owned(),
            std::env::var(name).unwrap_or_else(|_| default.to_owned()),
        )
    };
    let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let base = [
        own("PATH", path),
        own("HOME", "/root"),
        own("TERM", "dumb"),
        ("LANG".to_owned(), "C.UTF-8".to_owned()),
        ("ISOPOD_LAB".to_owned(), "1".to_owned()),
    ];
    let mut words = vec!["exec".to_owned(), "env".to_owned(), "-i".to_owned()];
    for (name, value) in base.iter().chain(&job.env) {
        words.push(quote(&format!("{name}={value}")));
    }
    let shell = ["/bin/bash".to_owned(), "-i".to_owned()];
    let command = if job.command.is_empty() {
        &shell[..]
    } else {
        &job.command
    };
    words.extend(command.iter().map(|word| quote(word)));
    format!(
        "cd {} || exit 126\n{}\n",
        quote(&job.folder.display().to_string()),
        words.join(" ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn the_script_runs_the_command_in_its_folder_with_only_the_given_variables() {
        let mut job = Job::new(vec![
            "sh".into(),
            "-c".into(),
            r#"pwd; echo "$1|$WORD|$SECRET"; exit 3"#.into(),
            "sh".into(),
            "it's $HOME".into(),
        ])
        .unwrap();
        job.folder = "/usr".into();
        job.env = vec![("WORD".into(), "a 'b' $c".into())];
        let output = Command::new("sh")
            .args(["-c", &command(&job)])
            .env("SECRET", "leaked")
            .output()
            .unwrap();
        assert_eq!(
            String::from_utf8(output.stdout).unwrap(),
            "/usr\nit's $HOME|a 'b' $c|\n"
        );
        assert_eq!(output.status.code(), Some(3));
    }
}
