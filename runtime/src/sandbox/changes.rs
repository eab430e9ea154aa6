//! Changes of volumes on the host, which the guests' own watches do not see.
//!
//! One inotify instance of the daemon watches every volume that no container of its sandbox writes
//! to (ConfigMaps, Secrets, projected volumes): each volume's folder, or the file that it is. What
//! happens there is sent to the agent, which replays it. A volume that the sandbox itself writes to
//! is not watched: what its containers do, their kernel has told of.
//!
//! ```text
//!  kubelet ──> file system ── inotify ──> read() ── by volume ──> tell() ── ReplayChanges ──> agent
//!                                        one thread             a task for each volume
//! ```
//!
//! Changes deeper in a volume and those that happen while no daemon runs are seen by whoever looks,
//! and raise no event.

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use isopod_proto::agent::{Change, ChangeKind, ReplayChangesRequest};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use tokio::sync::mpsc;

use crate::chain::chain;
use crate::id::SandboxId;
use crate::vm::Vm;

/// What is told. Who only reads changes nothing.
const EVENTS: WatchFlags = WatchFlags::CREATE
    .union(WatchFlags::DELETE)
    .union(WatchFlags::MOVED_FROM)
    .union(WatchFlags::MOVED_TO)
    .union(WatchFlags::MODIFY)
    .union(WatchFlags::CLOSE_WRITE)
    .union(WatchFlags::ATTRIB);

/// Room for events that are read at once.
const BUFFER: usize = 64 * 1024;

/// Batches that a guest may be behind before it is told of no more.
const BATCHES_MAX: usize = 64;

/// A volume of a sandbox.
type Key = (SandboxId, String);

/// Who is told of what.
#[derive(Debug)]
pub(crate) struct Changes {
    table: Arc<Mutex<Table>>,
}

#[derive(Debug, Default)]
struct Table {
    inotify: Option<Arc<OwnedFd>>,
    by_watch: BTreeMap<i32, Vec<Told>>,
}

#[derive(Debug)]
struct Told {
    volume: Key,
    changes: mpsc::Sender<Vec<Change>>,
}

fn lock(table: &Mutex<Table>) -> MutexGuard<'_, Table> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Changes {
    /// Starts to read what happens. Without it, if the kernel refuses, guests are told of nothing.
    pub(super) fn start() -> Self {
        let table = Arc::new(Mutex::new(Table::default()));
        match begin(&table) {
            Ok(inotify) => lock(&table).inotify = Some(inotify),
            Err(error) => tracing::warn!(%error, "changes of volumes raise no events in guests"),
        }
        Self { table }
    }

    /// Tells the guest of what changes in the folder or file behind `fd`, until it is
    /// [forgotten](Self::forget) or the machine ends.
    ///
    /// # Errors
    ///
    /// When the kernel has no more watches.
    pub(super) fn watch(
        &self,
        fd: BorrowedFd<'_>,
        sandbox: &SandboxId,
        volume: &str,
        vm: &Arc<Vm>,
    ) -> io::Result<()> {
        let mut table = lock(&self.table);
        let Some(inotify) = &table.inotify else {
            return Err(io::ErrorKind::Unsupported.into());
        };
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        let watch = inotify::add_watch(&**inotify, path, EVENTS)?;
        let (changes, receiver) = mpsc::channel(BATCHES_MAX);
        let volume = (sandbox.clone(), volume.to_owned());
        tokio::spawn(tell(
            Arc::clone(vm),
            volume.clone(),
            receiver,
            Arc::downgrade(&self.table),
        ));
        let told = table.by_watch.entry(watch).or_default();
        told.retain(|told| told.volume != volume);
        told.push(Told { volume, changes });
        Ok(())
    }

    /// Tells of a volume no more. Idempotent.
    pub(super) fn forget(&self, sandbox: &SandboxId, volume: &str) {
        lock(&self.table).forget(&(sandbox.clone(), volume.to_owned()));
    }
}

impl Table {
    fn forget(&mut self, volume: &Key) {
        let Some(inotify) = &self.inotify else { return };
        self.by_watch.retain(|watch, told| {
            told.retain(|told| told.volume != *volume);
            if told.is_empty() {
                // The kernel may have taken it away already.
                let _gone = inotify::remove_watch(&**inotify, *watch);
            }
            !told.is_empty()
        });
    }

    fn send(&mut self, batches: Batches) {
        for (watch, changes) in batches.0 {
            for told in self.by_watch.get(&watch).into_iter().flatten() {
                if told.changes.try_send(changes.clone()).is_err() {
                    let (sandbox_id, volume) = &told.volume;
                    tracing::warn!(%sandbox_id, volume, "a guest is not told of changes: it is behind");
                }
            }
        }
    }
}

fn begin(table: &Arc<Mutex<Table>>) -> io::Result<Arc<OwnedFd>> {
    let inotify = Arc::new(inotify::init(CreateFlags::CLOEXEC)?);
    let (ours, weak) = (Arc::clone(&inotify), Arc::downgrade(table));
    std::thread::Builder::new()
        .name("changes".to_owned())
        .spawn(move || read(&ours, &weak))?;
    Ok(inotify)
}

/// Reads what happens, for as long as somebody wants to know: on a thread of its own, which waits in
/// the kernel.
fn read(inotify: &OwnedFd, table: &Weak<Mutex<Table>>) {
    let mut buffer = vec![MaybeUninit::uninit(); BUFFER];
    let mut reader = Reader::new(inotify, &mut buffer);
    loop {
        let mut batches = Batches::default();
        let mut moved = None;
        loop {
            match reader.next() {
                Ok(event) => batches.add(&event, &mut moved),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => {
                    tracing::error!(%error, "changes of volumes are told no more");
                    return;
                }
            }
            if reader.is_buffer_empty() {
                break;
            }
        }
        batches.moved_away(&mut moved);
        let Some(table) = table.upgrade() else { return };
        lock(&table).send(batches);
    }
}

/// Sends one volume's changes to its guest.
async fn tell(
    vm: Arc<Vm>,
    volume: Key,
    mut changes: mpsc::Receiver<Vec<Change>>,
    table: Weak<Mutex<Table>>,
) {
    loop {
        let batch = tokio::select! {
            batch = changes.recv() => batch,
            _end = vm.ended() => None,
        };
        let Some(changes) = batch else { break };
        let request = ReplayChangesRequest {
            volume: volume.1.clone(),
            changes,
            ..Default::default()
        };
        if let Err(error) = vm.replay_changes(&request).await {
            let error = chain(&error);
            tracing::warn!(sandbox_id = %volume.0, error, "a guest was not told of changes");
        }
    }
    // Closed: whoever comes after has the name now, and is not to be forgotten.
    if !changes.is_closed()
        && let Some(table) = table.upgrade()
    {
        lock(&table).forget(&volume);
    }
}

/// Changes by watch, in order.
#[derive(Debug, Default, PartialEq)]
struct Batches(BTreeMap<i32, Vec<Change>>);

/// The first half of a move.
#[derive(Debug)]
struct Moved {
    watch: i32,
    cookie: u32,
    name: Vec<u8>,
}

impl Batches {
    fn add(&mut self, event: &inotify::Event<'_>, moved: &mut Option<Moved>) {
        let name = event.file_name().map(CStr::to_bytes).unwrap_or_default();
        self.note(event.wd(), event.events(), event.cookie(), name, moved);
    }

    fn note(
        &mut self,
        watch: i32,
        events: ReadFlags,
        cookie: u32,
        name: &[u8],
        moved: &mut Option<Moved>,
    ) {
        if events.contains(ReadFlags::QUEUE_OVERFLOW) {
            tracing::warn!("more changes of volumes than the kernel keeps: some are not told of");
            return;
        }
        if events.contains(ReadFlags::MOVED_TO) {
            let other = moved.take_if(|half| half.cookie == cookie);
            let from = match other {
                Some(half) if half.watch == watch => half.name,
                Some(half) => {
                    self.push(half.watch, ChangeKind::CHANGE_KIND_REMOVED, &half.name, &[]);
                    Vec::new()
                }
                None => Vec::new(),
            };
            self.moved_away(moved);
            self.push(watch, ChangeKind::CHANGE_KIND_MOVED, name, &from);
            return;
        }
        self.moved_away(moved);
        if events.contains(ReadFlags::MOVED_FROM) {
            let name = name.to_vec();
            *moved = Some(Moved {
                watch,
                cookie,
                name,
            });
            return;
        }
        for (event, kind) in [
            (ReadFlags::CREATE, ChangeKind::CHANGE_KIND_CREATED),
            (ReadFlags::DELETE, ChangeKind::CHANGE_KIND_REMOVED),
            (ReadFlags::MODIFY, ChangeKind::CHANGE_KIND_WRITTEN),
            (ReadFlags::CLOSE_WRITE, ChangeKind::CHANGE_KIND_CLOSED),
            (ReadFlags::ATTRIB, ChangeKind::CHANGE_KIND_ATTRIBUTES),
        ] {
            if events.contains(event) {
                self.push(watch, kind, name, &[]);
            }
        }
    }

    /// What went and did not come again has left.
    fn moved_away(&mut self, moved: &mut Option<Moved>) {
        if let Some(half) = moved.take() {
            self.push(half.watch, ChangeKind::CHANGE_KIND_REMOVED, &half.name, &[]);
        }
    }

    fn push(&mut self, watch: i32, kind: ChangeKind, name: &[u8], from: &[u8]) {
        self.0.entry(watch).or_default().push(Change {
            kind: kind.into(),
            name: name.to_vec(),
            from: from.to_vec(),
            ..Default::default()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rename_in_a_folder_is_one_change_and_others_are_halves() {
        let mut batches = Batches::default();
        let mut moved = None;
        let mut note = |watch, events, cookie, name: &str| {
            batches.note(watch, events, cookie, name.as_bytes(), &mut moved);
        };
        note(1, ReadFlags::CREATE, 0, "..data_tmp");
        note(1, ReadFlags::MOVED_FROM, 7, "..data_tmp");
        note(1, ReadFlags::MOVED_TO, 7, "..data");
        note(1, ReadFlags::MOVED_FROM, 8, "left");
        note(2, ReadFlags::MOVED_TO, 8, "came");
        note(2, ReadFlags::MOVED_FROM, 9, "gone");
        batches.moved_away(&mut moved);
        let told = |watch: i32| -> Vec<(ChangeKind, String, String)> {
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
            let changes = batches.0[&watch].iter();
            changes
                .map(|one| {
                    (
                        one.kind.enum_value_or_default(),
                        text(&one.name),
                        text(&one.from),
                    )
                })
                .collect()
        };
        let change = |kind, name: &str, from: &str| (kind, name.to_owned(), from.to_owned());
        assert_eq!(
            told(1),
            [
                change(ChangeKind::CHANGE_KIND_CREATED, "..data_tmp", ""),
                change(ChangeKind::CHANGE_KIND_MOVED, "..data", "..data_tmp"),
                change(ChangeKind::CHANGE_KIND_REMOVED, "left", ""),
            ]
        );
        assert_eq!(
            told(2),
            [
                change(ChangeKind::CHANGE_KIND_MOVED, "came", ""),
                change(ChangeKind::CHANGE_KIND_REMOVED, "gone", ""),
            ]
        );
    }
}
