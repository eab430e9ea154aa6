//! QEMU's command line, and the run itself.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};
use std::{env, process};

use anyhow::{Context, Result, bail};

use super::Lab;
use super::host::Host;
use crate::command;

/// Size of the disk behind `/var/lib/isopod`; it is sparse.
const DISK_BYTES: u64 = 32 << 30;

/// Lines of the lab's console that are shown when it fails.
const CONSOLE_LINES: usize = 40;

/// How often a running lab is looked at. The end of the command ends QEMU.
const POLL: Duration = Duration::from_millis(50);

/// How a command in the lab ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// Its exit status.
    pub(crate) status: u8,
}

/// A lab's own folder, removed when it is over.
#[derive(Debug)]
struct Folder(PathBuf);

impl Folder {
    fn new() -> Result<Self> {
        sweep()?;
        let path = env::temp_dir().join(format!("isopod-lab-{}", process::id()));
        fs::create_dir_all(path.join("share/exchange"))
            .with_context(|| format!("making {}", path.display()))?;
        Ok(Self(path))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("lab: removing {}: {error}", self.0.display());
        }
    }
}

/// Removes the folders of labs that were killed.
fn sweep() -> Result<()> {
    for entry in fs::read_dir(env::temp_dir()).context("listing the folder of temporary files")? {
        let entry = entry?;
        let name = entry.file_name();
        let pid = name
            .to_str()
            .and_then(|name| name.strip_prefix("isopod-lab-"));
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            fs::remove_dir_all(entry.path())
                .with_context(|| format!("removing {}", entry.path().display()))?;
        }
    }
    Ok(())
}

/// Starts QEMU and waits for the command in it.
pub(super) fn run(lab: &Lab, host: &Host, initramfs: &Path) -> Result<Outcome> {
    let folder = Folder::new()?;
    write_share(lab, host, &folder)?;
    let disk = File::create(folder.path("disk")).context("making the lab's disk")?;
    disk.set_len(DISK_BYTES).context("sizing the lab's disk")?;
    command::output(
        Command::new("mkfs.ext4")
            .args(["-q", "-F", "-O", "^has_journal"])
            .arg(folder.path("disk")),
    )?;
    let mut child = qemu(lab, host, initramfs, &folder)
        .spawn()
        .context("starting qemu-system-x86_64: install the package qemu-system-x86")?;
    let copies = (!lab.shell).then(|| copy_output(&mut child)).transpose()?;
    let ended = wait(&mut child, lab.timeout);
    for copy in copies.into_iter().flatten() {
        if copy.join().is_err() {
            eprintln!("lab: output was lost");
        }
    }
    ended
        .and_then(|()| outcome(&folder))
        .with_context(|| console_tail(&folder))
}

/// What the second stage reads: the command as a script, where the modules are.
fn write_share(lab: &Lab, host: &Host, folder: &Folder) -> Result<()> {
    let mut script = String::new();
    for (name, value) in &lab.envs {
        writeln!(script, "export {name}={}", quote(value))?;
    }
    let cwd = env::current_dir().context("finding the current folder")?;
    let home = env::var("HOME").unwrap_or_else(|_| "/root".into());
    let path = env::var("PATH").unwrap_or_default();
    writeln!(script, "export HOME={} PATH={}", quote(&home), quote(&path))?;
    writeln!(script, "cd {} || exit 125", quote(&cwd.to_string_lossy()))?;
    if lab.exchange.is_some() {
        fs::write(folder.path("share/has-exchange"), "").context("writing the share")?;
    }
    if lab.shell {
        script.push_str("export TERM=xterm PS1='lab:\\w# '\nexec bash --norc -i\n");
        fs::write(folder.path("share/shell"), "").context("writing the share")?;
    } else {
        let words: Vec<String> = lab.command.iter().map(|word| quote(word)).collect();
        writeln!(script, "exec {}", words.join(" "))?;
    }
    fs::write(folder.path("share/command"), script).context("writing the share")?;
    fs::write(
        folder.path("share/modules"),
        host.modules.as_os_str().as_encoded_bytes(),
    )
    .context("writing the share")
}

/// One word for a POSIX shell.
fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

fn qemu(lab: &Lab, host: &Host, initramfs: &Path, folder: &Folder) -> Command {
    // setpriv: QEMU dies with us, whatever ends us.
    let mut qemu = Command::new("setpriv");
    qemu.args([
        "--pdeathsig",
        "KILL",
        "qemu-system-x86_64",
        "-M",
        "q35",
        "-cpu",
        "max,+svm",
    ]);
    if lab.icount {
        qemu.args([
            "-accel",
            "tcg,thread=single",
            "-smp",
            "1",
            "-icount",
            "shift=1,sleep=off",
        ]);
    } else {
        qemu.args(["-accel", "tcg,thread=multi", "-smp", &lab.cpus.to_string()]);
    }
    qemu.args(["-m", &lab.memory_mib.to_string()]);
    qemu.args([
        "-display",
        "none",
        "-monitor",
        "none",
        "-no-reboot",
        "-nic",
        "none",
    ]);
    qemu.arg("-kernel")
        .arg(&host.kernel)
        .arg("-initrd")
        .arg(initramfs);
    qemu.args([
        "-append",
        "console=ttyS0 loglevel=4 reboot=t panic=-1 oops=panic",
    ]);
    qemu.arg("-serial")
        .arg(format!("file:{}", folder.path("console.log").display()));
    qemu.args([
        "-virtfs",
        "local,path=/,mount_tag=hostroot,security_model=none,readonly=on,multidevs=remap",
    ]);
    let share = folder.path("share");
    qemu.arg("-virtfs").arg(format!(
        "local,path={},mount_tag=lab,security_model=none,multidevs=remap",
        share.display()
    ));
    if let Some(exchange) = &lab.exchange {
        qemu.arg("-virtfs").arg(format!(
            "local,path={},mount_tag=exchange,security_model=none,multidevs=remap",
            exchange.display()
        ));
    }
    qemu.arg("-drive").arg(format!(
        "file={},if=none,id=disk,format=raw,cache=unsafe,discard=unmap",
        folder.path("disk").display()
    ));
    qemu.args(["-device", "virtio-blk-pci,drive=disk,serial=lab"]);
    qemu.args([
        "-device",
        "virtio-rng-pci",
        "-device",
        "virtio-serial-pci,max_ports=8",
    ]);
    ports(&mut qemu, lab, folder);
    qemu
}

/// The ways out: stdout, stderr and exit status, or a terminal.
fn ports(qemu: &mut Command, lab: &Lab, folder: &Folder) {
    if lab.shell {
        qemu.args(["-chardev", "stdio,id=shell,signal=off"]);
        qemu.args(["-device", "virtconsole,chardev=shell"]);
    } else {
        qemu.args(["-chardev", "file,id=stdout,path=/proc/self/fd/1"]);
        qemu.args(["-device", "virtserialport,chardev=stdout,name=lab.stdout"]);
        qemu.args(["-chardev", "file,id=stderr,path=/proc/self/fd/2"]);
        qemu.args(["-device", "virtserialport,chardev=stderr,name=lab.stderr"]);
        qemu.stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
    }
    let status = folder.path("status");
    qemu.arg("-chardev")
        .arg(format!("file,id=status,path={}", status.display()));
    qemu.args(["-device", "virtserialport,chardev=status,name=lab.status"]);
}

/// Threads that pass the command's output on as it comes.
fn copy_output(child: &mut Child) -> Result<Vec<thread::JoinHandle<()>>> {
    let stdout = child.stdout.take().context("QEMU's stdout is a pipe")?;
    let stderr = child.stderr.take().context("QEMU's stderr is a pipe")?;
    let out = thread::Builder::new()
        .name("lab-stdout".into())
        .spawn(|| copy(stdout, io::stdout()))?;
    let err = thread::Builder::new()
        .name("lab-stderr".into())
        .spawn(|| copy(stderr, io::stderr()))?;
    Ok(vec![out, err])
}

fn copy(mut from: impl Read, mut to: impl Write) {
    let mut buffer = [0; 8192];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        // Our own reader may have gone; the lab goes on to its end.
        let _ = to.write_all(&buffer[..length]).and_then(|()| to.flush());
    }
}

fn wait(child: &mut Child, timeout: Duration) -> Result<()> {
    let deadline = Instant::now() + timeout;
    loop {
        if let Some(status) = child.try_wait().context("waiting for QEMU")? {
            if !status.success() {
                bail!("QEMU failed: {status}");
            }
            return Ok(());
        }
        if Instant::now() >= deadline {
            child.kill().context("ending QEMU")?;
            child.wait().context("waiting for QEMU")?;
            bail!("the lab was ended after {} s", timeout.as_secs());
        }
        thread::sleep(POLL);
    }
}

fn outcome(folder: &Folder) -> Result<Outcome> {
    let text = fs::read_to_string(folder.path("status")).context("reading the command's status")?;
    let status = text
        .trim()
        .parse()
        .with_context(|| format!("the lab ended without the command's status ({text:?})"))?;
    Ok(Outcome { status })
}

fn console_tail(folder: &Folder) -> String {
    let bytes = fs::read(folder.path("console.log")).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    let tail = &lines[lines.len().saturating_sub(CONSOLE_LINES)..];
    format!(
        "the lab failed; its console ended with:\n{}\n",
        tail.join("\n")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quote_keeps_spaces_and_quotes_in_one_word() {
        assert_eq!(quote("it's a word"), r"'it'\''s a word'");
        assert_eq!(quote(""), "''");
    }
}
