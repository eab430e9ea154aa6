//! Containers' logs.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write as _;
use std::sync::{Arc, Mutex};

use isopod_proto::stream::Kind;
use tokio::sync::{mpsc, watch};

use super::{Output, lock};

/// A container's log and whether all of it is written.
pub(super) struct Log {
    pub(super) file: Arc<Mutex<Option<File>>>,
    pub(super) ended: watch::Receiver<bool>,
}

/// Writes whole lines in the CRI's format.
pub(super) async fn write_log(
    mut output: mpsc::Receiver<Output>,
    file: Arc<Mutex<Option<File>>>,
    ended: watch::Sender<bool>,
) {
    let mut rest: HashMap<u8, Vec<u8>> = HashMap::new();
    while let Some((kind, bytes)) = output.recv().await {
        let line = rest.entry(kind as u8).or_default();
        line.extend(bytes);
        while let Some(end) = line.iter().position(|&byte| byte == b'\n') {
            let text: Vec<u8> = line.drain(..=end).collect();
            let name = if kind == Kind::Stdout {
                "stdout"
            } else {
                "stderr"
            };
            let mut record = format!("2026-01-01T00:00:00.000000000Z {name} F ").into_bytes();
            record.extend(text);
            if let Some(file) = lock(&file).as_mut() {
                file.write_all(&record).expect("the log can be written");
            }
        }
    }
    ended.send_replace(true);
}
