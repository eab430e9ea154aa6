//! Disks of a guest: virtio block devices and persistent memory on the PCI bus.
//!
//! A disk that was added while the guest ran is found by asking the kernel to look at the bus again
//! (`/sys/bus/pci/rescan`), by its serial number, never by the order in which it appeared. The
//! kernel says when a block device is ready (a *uevent*), so nothing is polled.

use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, socket,
};
use rustix::io::read;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::{Disk, StorageError, blocking, function};
use crate::container::Serial;
use crate::descriptor::watch;

const BLOCK_DEVICES: &str = "/sys/block";
const RESCAN: &str = "/sys/bus/pci/rescan";

/// Prefixes of names: virtio block devices, which say their serial, and persistent memory, whose
/// function on the bus has it as vendor data.
const BLK_PREFIX: &str = "vd";
const PMEM_PREFIX: &str = "pmem";

/// How long a disk may take to appear after the bus was searched.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Netlink multicast group of the kernel's uevents.
const UEVENTS: u32 = 1;

/// Room for one uevent, in bytes (the kernel's `UEVENT_BUFFER_SIZE` is 2048, and a header).
const UEVENT_MAX: usize = 4096;

/// The bus.
#[derive(Debug)]
pub(crate) struct Bus;

impl Bus {
    /// Makes the kernel look for devices that were added. Blocking.
    ///
    /// # Errors
    ///
    /// When there is no such bus.
    pub(crate) fn search() -> io::Result<()> {
        fs::write(RESCAN, "1")
    }

    /// Finds a disk, searching the bus if it is not known yet.
    ///
    /// # Errors
    ///
    /// [`StorageError::NotFound`] when it does not appear in time.
    pub(super) async fn find(&self, serial: &Serial) -> Result<Disk, StorageError> {
        if let Some(disk) = known(serial) {
            return Ok(disk);
        }
        let path = Path::new(BLOCK_DEVICES);
        let uevents = listen().map_err(StorageError::io("listening for devices in", path))?;
        blocking(rescan).await?;
        tokio::time::timeout(TIMEOUT, appears(serial, &uevents))
            .await
            .map_err(|_elapsed| StorageError::NotFound {
                serial: serial.clone(),
            })?
            .map_err(StorageError::io("listening for devices in", path))
    }

    /// Takes the disk's PCI function off the bus.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub(super) async fn detach(&self, disk: &Disk) -> Result<(), StorageError> {
        let Some(name) = disk.node.file_name() else {
            return Ok(());
        };
        let device = Path::new(BLOCK_DEVICES).join(name).join("device");
        blocking(move || {
            let function = match function::behind(&device) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                result => result.map_err(StorageError::io("resolving", &device))?,
            };
            // Not on the PCI bus: this disk cannot come off.
            let Some(function) = function else {
                return Ok(());
            };
            let remove = function.join("remove");
            match fs::write(&remove, "1") {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                result => result.map_err(StorageError::io("detaching a disk through", &remove)),
            }
        })
        .await
    }
}

/// Has the kernel look for what was added to the bus. Blocking.
///
/// # Errors
///
/// When there is no PCI bus.
pub(super) fn rescan() -> Result<(), StorageError> {
    let path = Path::new(RESCAN);
    Bus::search().map_err(StorageError::io("searching the bus through", path))
}

async fn appears(serial: &Serial, uevents: &AsyncFd<OwnedFd>) -> io::Result<Disk> {
    let mut event = [0; UEVENT_MAX];
    loop {
        if let Some(disk) = known(serial) {
            return Ok(disk);
        }
        // What it says does not matter: something has changed.
        match uevents
            .async_io(Interest::READABLE, |fd| Ok(read(fd, &mut event)?))
            .await
        {
            // More events than the socket holds: look again.
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
            result => drop(result?),
        }
    }
}

fn listen() -> io::Result<AsyncFd<OwnedFd>> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let protocol = SockProtocol::NetlinkKObjectUEvent;
    let fd = socket(AddressFamily::Netlink, SockType::Datagram, flags, protocol)?;
    bind(fd.as_raw_fd(), &NetlinkAddr::new(0, UEVENTS))?;
    watch(fd, Interest::READABLE)
}

/// The disk, if the kernel knows it already.
fn known(serial: &Serial) -> Option<Disk> {
    let entries = fs::read_dir(BLOCK_DEVICES).ok()?;
    entries.flatten().find_map(|entry| {
        let name = entry.file_name();
        let text = name.to_str()?;
        let memory = text.starts_with(PMEM_PREFIX);
        let said = if memory {
            let function = function::behind(&entry.path().join("device")).ok()??;
            String::from_utf8(function::vendor_data(&function)?).ok()?
        } else if text.starts_with(BLK_PREFIX) {
            read_serial(&entry.path())?
        } else {
            return None;
        };
        if said != serial.as_str() {
            return None;
        }
        let node = PathBuf::from("/dev").join(name);
        node.exists().then(|| Disk {
            serial: serial.clone(),
            node,
            memory,
        })
    })
}

fn read_serial(device: &Path) -> Option<String> {
    let mut text = String::new();
    // At most 20 bytes (virtio 1.2 section 5.2.6.1); no newline, but some kernels add one.
    fs::File::open(device.join("serial"))
        .ok()?
        .take(64)
        .read_to_string(&mut text)
        .ok()?;
    Some(text.trim_end().to_owned())
}
