//! `Export`: an OCI archive, as it is written.

use std::io::{self, Write};

use bytes::{Bytes, BytesMut};
use futures_util::Stream;
use isopod_proto::images::{ExportPart, ExportRequest};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use crate::image::{ImageStore, chain};

/// Bytes in one message, far below gRPC's 4 MiB.
const PART: usize = 1 << 20;

/// Parts that wait for a slow reader before the writer does.
const QUEUE: usize = 4;

type Part = Result<ExportPart, Status>;

/// Writes on a blocking thread, which ends when nobody reads the parts any longer.
pub(super) fn export(
    store: &ImageStore,
    request: &ExportRequest,
) -> Result<impl Stream<Item = Part> + Send + use<>, Status> {
    if request.images.is_empty() {
        return Err(Status::invalid_argument("images: none was given"));
    }
    let export = store.export(&request.images)?;
    let (sender, parts) = mpsc::channel(QUEUE);
    tokio::task::spawn_blocking(move || {
        let mut output = Parts {
            sender,
            part: BytesMut::with_capacity(PART),
        };
        if let Err(error) = export.write(&mut output)
            && !output.sender.is_closed()
        {
            tracing::error!(error = chain(&error), "not exported");
            let _ = output.sender.blocking_send(Err(error.into()));
        }
    });
    Ok(ReceiverStream::new(parts))
}

/// Cuts what is written into messages.
struct Parts {
    sender: mpsc::Sender<Part>,
    part: BytesMut,
}

impl Parts {
    fn send(&mut self) -> io::Result<()> {
        let data: Bytes = self.part.split().freeze();
        self.part.reserve(PART);
        let part = ExportPart { data: data.into() };
        let gone = |_gone| io::Error::from(io::ErrorKind::BrokenPipe);
        self.sender.blocking_send(Ok(part)).map_err(gone)
    }
}

impl Write for Parts {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let length = data.len().min(PART - self.part.len());
        self.part.extend_from_slice(&data[..length]);
        if self.part.len() == PART {
            self.send()?;
        }
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        match self.part.is_empty() {
            true => Ok(()),
            false => self.send(),
        }
    }
}
