//! What can go wrong with a request, and the one table from that to ttrpc's codes.

use std::error::Error as _;
use std::fmt::Write as _;

use ttrpc::Code;

use crate::descriptors::DescriptorError;
use crate::log::LogError;
use crate::machine::build::BuildError;
use crate::machine::growth::GrowthError;
use crate::machine::windows::WindowError;
use crate::machine::{AddError, VolumesError};
use crate::virtio::pmem::{self, MappingError};
use crate::virtio::{blk, fs, net, vsock};

/// A request failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ControlError {
    /// `Start` may be called once.
    #[error("the machine was started before")]
    AlreadyStarted,
    /// There is no machine that runs or is paused.
    #[error("the machine does not run")]
    NotRunning,
    /// Not a serial number.
    #[error("a disk's serial is 1 to 20 characters of [A-Za-z0-9._-]")]
    Serial,
    /// None or too many.
    #[error("disk {0} has no extents or too many")]
    Extents(String),
    /// A descriptor could not be duplicated.
    #[error("duplicating a descriptor")]
    Duplicate(#[source] std::io::Error),
    /// A named descriptor.
    #[error(transparent)]
    Descriptor(#[from] DescriptorError),
    /// A disk's contents.
    #[error(transparent)]
    DiskContents(#[from] blk::DiskError),
    /// A disk as memory that is writable, or too early.
    #[error("disk {0} as persistent memory is read-only and added while the machine runs")]
    Pmem(String),
    /// A disk's contents as memory.
    #[error(transparent)]
    Mapping(#[from] pmem::MappingError),
    /// The place of a disk as memory.
    #[error(transparent)]
    Window(#[from] WindowError),
    /// A network interface's parts.
    #[error(transparent)]
    Nic(#[from] net::NicError),
    /// Not six bytes, or an MTU that does not fit.
    #[error("a network interface has a MAC of 6 bytes and an MTU of at most 65535")]
    NicForm,
    /// A volume.
    #[error(transparent)]
    Volume(#[from] fs::VolumeError),
    /// The device that volumes are in.
    #[error(transparent)]
    VolumesDevice(#[from] VolumesError),
    /// A device's place.
    #[error(transparent)]
    Add(#[from] AddError),
    /// Another size of the guest.
    #[error(transparent)]
    Growth(#[from] GrowthError),
    /// The vsock device.
    #[error(transparent)]
    Vsock(#[from] vsock::VsockError),
    /// Building the machine.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// A container's log.
    #[error(transparent)]
    Log(#[from] LogError),
}

impl ControlError {
    fn code(&self) -> Code {
        match self {
            Self::AlreadyStarted | Self::NotRunning => Code::FAILED_PRECONDITION,
            Self::Serial
            | Self::Extents(_)
            | Self::DiskContents(_)
            | Self::Pmem(_)
            | Self::Mapping(MappingError::Pages { .. } | MappingError::Size(_))
            | Self::Nic(_)
            | Self::NicForm => Code::INVALID_ARGUMENT,
            Self::Volume(error) => volume_code(error),
            Self::Duplicate(_)
            | Self::Vsock(_)
            | Self::Mapping(MappingError::Map { .. })
            | Self::Window(WindowError::Slot(_)) => Code::INTERNAL,
            Self::Window(WindowError::Full(_)) => Code::RESOURCE_EXHAUSTED,
            Self::VolumesDevice(VolumesError::Add(error)) => add_code(error),
            Self::VolumesDevice(VolumesError::Server(_)) => Code::INTERNAL,
            Self::Descriptor(error) => descriptor_code(error),
            Self::Add(error) => add_code(error),
            Self::Growth(error) => growth_code(error),
            Self::Build(error) => build_code(error),
            Self::Log(error) => log_code(error),
        }
    }
}

fn descriptor_code(error: &DescriptorError) -> Code {
    match error {
        DescriptorError::Unknown(_) => Code::NOT_FOUND,
        DescriptorError::Exists(_) => Code::ALREADY_EXISTS,
        DescriptorError::Full => Code::RESOURCE_EXHAUSTED,
        DescriptorError::Name => Code::INVALID_ARGUMENT,
    }
}

fn volume_code(error: &fs::VolumeError) -> Code {
    match error {
        fs::VolumeError::Name(_) | fs::VolumeError::Kind(_) => Code::INVALID_ARGUMENT,
        fs::VolumeError::Full => Code::RESOURCE_EXHAUSTED,
        fs::VolumeError::File { .. } => Code::INTERNAL,
    }
}

fn add_code(error: &AddError) -> Code {
    match error {
        AddError::DiskExists(_) | AddError::NicExists(_) => Code::ALREADY_EXISTS,
        AddError::Bus(_) => Code::RESOURCE_EXHAUSTED,
    }
}

fn growth_code(error: &GrowthError) -> Code {
    match error {
        GrowthError::Size(..) => Code::INVALID_ARGUMENT,
        GrowthError::Add(error) => add_code(error),
        // Of addresses, of this process or of slots.
        GrowthError::Memory(_) | GrowthError::Kvm(_) => Code::RESOURCE_EXHAUSTED,
    }
}

fn build_code(error: &BuildError) -> Code {
    match error {
        BuildError::Vcpus(_) | BuildError::Memory(_) | BuildError::CommandLine(_) => {
            Code::INVALID_ARGUMENT
        }
        // The files and the host are not what they have to be.
        BuildError::Kernel(_)
        | BuildError::Initramfs(_)
        | BuildError::Image(_)
        | BuildError::Kvm(_) => Code::FAILED_PRECONDITION,
        BuildError::Tables(_)
        | BuildError::Bus(_)
        | BuildError::Registers(_)
        | BuildError::Threads(_) => Code::INTERNAL,
        BuildError::Disk(error) => add_code(error),
    }
}

fn log_code(error: &LogError) -> Code {
    match error {
        LogError::Exists(_) => Code::ALREADY_EXISTS,
        LogError::Unknown(_) => Code::NOT_FOUND,
        LogError::InvalidId(_) => Code::INVALID_ARGUMENT,
        LogError::TooMany => Code::RESOURCE_EXHAUSTED,
        LogError::Closed(_) => Code::ABORTED,
        LogError::Stream { .. } => Code::UNAVAILABLE,
        LogError::File { .. } | LogError::Thread { .. } => Code::INTERNAL,
    }
}

/// The message with its causes, for a caller that sees nothing else.
impl From<ControlError> for ttrpc::Error {
    fn from(error: ControlError) -> Self {
        let code = error.code();
        let mut text = error.to_string();
        let mut cause = error.source();
        while let Some(inner) = cause {
            // Writing to a string does not fail.
            let _ = write!(text, ": {inner}");
            cause = inner.source();
        }
        Self::RpcStatus(ttrpc::get_status(code, text))
    }
}
