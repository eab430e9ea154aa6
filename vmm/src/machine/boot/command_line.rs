//! The kernel's command line.

use crate::machine::build::Root;
use crate::machine::layout::COMMAND_LINE_MAX;

/// What every guest is started with; each argument saves a probe of hardware that this machine
/// does not have, or settles what the kernel would otherwise find out by waiting.
const ALWAYS: &[&str] = &[
    // The host's page cache and scheduler measure time for us: no watchdog compares clocks.
    "tsc=reliable",
    // The boot processor alone; the agent brings up the others as the pod asks for them.
    "maxcpus=1",
    // Which the kernel would take as a reason to take the lock prefixes out of its text, some 7,800 of
    // them, and to put them back with the second processor.
    "noreplace-smp",
    // A panic is an exit, not a hang. The machine reports it through the pvpanic device before.
    "panic=-1",
    // RDRAND and the seed are all the entropy that there is before virtio-rng.
    "random.trust_cpu=on",
    // No legacy hardware to look for by port.
    "pci=noearly",
    "8250.nr_uarts=0",
];

/// What there is to say of an agent's image: the first persistent memory is the root, read in place.
const IMAGE: &[&str] = &[
    "root=/dev/pmem0",
    "rootfstype=erofs",
    "rootflags=dax",
    "ro",
    "init=/init",
    // The memory's driver is not among those that the kernel waits for by itself.
    "rootwait",
];

/// What there is to say of an initramfs: it is mapped from the host's page cache, and freeing it
/// would poison it, and so copy it.
const INITRAMFS: &[&str] = &["retain_initrd"];

/// With a debug console in the place of the silence.
const DEBUG_CONSOLE: &[&str] = &["console=ttyS0", "earlycon=uart8250,io,0x3f8"];

/// The caller's arguments cannot be passed on.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum CommandLineError {
    /// Over what the kernel reads.
    #[error("the kernel command line is {0} bytes long, over the limit of {COMMAND_LINE_MAX}")]
    TooLong(usize),
    /// A byte that would end or garble it.
    #[error("the kernel arguments hold a byte that is not printable ASCII")]
    NotPrintable,
}

/// The command line, without its NUL.
///
/// # Errors
///
/// [`CommandLineError`], when `kernel_args` is too long or not printable ASCII.
pub(crate) fn build(
    root: &Root,
    kernel_args: &str,
    debug_console: bool,
) -> Result<String, CommandLineError> {
    if !kernel_args.bytes().all(|b| (b' '..=b'~').contains(&b)) {
        return Err(CommandLineError::NotPrintable);
    }
    let mut args: Vec<&str> = ALWAYS.to_vec();
    args.extend(match root {
        Root::Image(_) => IMAGE,
        Root::Initramfs(_) => INITRAMFS,
    });
    if debug_console {
        args.retain(|arg| !arg.starts_with("8250."));
        args.extend(DEBUG_CONSOLE);
    }
    if !kernel_args.is_empty() {
        args.push(kernel_args);
    }
    let line = args.join(" ");
    if line.len() > COMMAND_LINE_MAX {
        return Err(CommandLineError::TooLong(line.len()));
    }
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line_of(kernel_args: &str, debug_console: bool) -> Result<String, CommandLineError> {
        let root = Root::Image(tempfile::tempfile().unwrap());
        build(&root, kernel_args, debug_console)
    }

    #[test]
    fn a_root_that_is_memory_is_named_and_an_initramfs_is_kept() {
        let line = line_of("", false).unwrap();
        assert!(line.contains("root=/dev/pmem0") && !line.contains("retain_initrd"));
        let root = Root::Initramfs(tempfile::tempfile().unwrap());
        let line = build(&root, "", false).unwrap();
        assert!(line.contains("retain_initrd") && !line.contains("root="));
    }

    #[test]
    fn the_callers_arguments_come_last_so_that_they_win() {
        let line = line_of("maxcpus=2", false).unwrap();
        assert!(line.ends_with(" maxcpus=2"));
        assert!(line.contains("panic=-1"));
        assert!(!line.contains("console="));
    }

    #[test]
    fn a_debug_console_is_announced_to_the_kernel() {
        let line = line_of("", true).unwrap();
        assert!(line.contains("console=ttyS0"));
        assert!(!line.contains("nr_uarts=0"));
    }

    #[test]
    fn too_long_or_unprintable_arguments_return_error() {
        assert!(matches!(
            line_of(&"x".repeat(COMMAND_LINE_MAX), false),
            Err(CommandLineError::TooLong(_))
        ));
        for args in ["a\0b", "a\nb", "\u{e9}"] {
            assert_eq!(line_of(args, false), Err(CommandLineError::NotPrintable));
        }
    }
}
