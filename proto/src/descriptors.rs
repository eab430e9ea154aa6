//! How file descriptors reach a VMM.
//!
//! At start, by inheritance in the way of systemd's socket activation (`sd_listen_fds(3)`): they
//! begin at 3, `LISTEN_FDS` counts them and `LISTEN_FDNAMES` names them, separated by colons.
//!
//! Later, through the descriptor socket, a `SOCK_SEQPACKET` unix socket. One message carries one
//! descriptor (`SCM_RIGHTS`) and its name as the payload; the VMM answers one message: empty when it
//! has taken the descriptor, otherwise a sentence that says why not. A name stands for one
//! descriptor until a request takes it.

/// The listening socket of the VMM's control service.
pub const CONTROL: &str = "control";
/// The listening descriptor socket.
pub const DESCRIPTORS: &str = "descriptors";
/// The listening socket of the hybrid vsock (`CONNECT <port>\n`).
pub const VSOCK: &str = "vsock";
/// `/dev/kvm`, open for reading and writing.
pub const KVM: &str = "kvm";
/// The guest kernel, an uncompressed ELF `vmlinux`.
pub const KERNEL: &str = "kernel";
/// The agent's image, an EROFS file system with `/init`, which the guest reads in place.
pub const AGENT_IMAGE: &str = "agent-image";
/// An initramfs in its place, an uncompressed cpio archive.
pub const INITRAMFS: &str = "initramfs";
/// Where the debug console writes.
pub const CONSOLE: &str = "console";

/// Longest name, in bytes.
pub const NAME_MAX: usize = 96;

/// Most descriptors that wait in a VMM to be taken.
pub const WAITING_MAX: usize = 512;
