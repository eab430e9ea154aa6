//! What lies in guest RAM when the first vCPU starts: kernel, initramfs and the tables of the PVH
//! boot protocol.
//!
//! Called once, by the machine's builder on the control thread, before any vCPU exists.

pub(crate) mod command_line;
pub(crate) mod initramfs;
pub(crate) mod kernel;
pub(crate) mod pvh;
