//! What is there when the first vCPU starts: in guest RAM the kernel, an initramfs and the tables of
//! the PVH boot protocol; beside it the agent's image.
//!
//! Called once, by the machine's builder on the control thread, before any vCPU exists.

pub(crate) mod command_line;
pub(crate) mod image;
pub(crate) mod initramfs;
pub(crate) mod kernel;
pub(crate) mod pvh;
