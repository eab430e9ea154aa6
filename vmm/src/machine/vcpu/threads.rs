//! The threads that run vCPUs, and the orders that they obey.
#![expect(unsafe_code, reason = "a flag in KVM's shared memory")]

use std::io;
use std::ptr::NonNull;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};

use kvm_ioctls::VcpuFd;
use tokio::sync::mpsc::UnboundedSender;
use vmm_sys_util::errno;
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use super::run::{Buses, Next, run_once};
use crate::machine::ending::Ending;
use crate::machine::ports::Ports;
use crate::pci::bus::PciBus;

/// vCPU threads could not be started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VcpuError {
    /// The signal that fetches them.
    #[error("handling the signal that stops vCPUs")]
    Signal(#[source] errno::Error),
    /// A thread.
    #[error("starting the thread of vCPU {id}")]
    Spawn {
        /// Which.
        id: usize,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// What vCPUs are to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Run,
    Hold,
    End,
}

#[derive(Debug)]
struct State {
    order: Order,
    /// Threads that are neither held nor ended.
    active: usize,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed
            .wait(state)
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn set_active(&self, state: &mut State, active: usize) {
        state.active = active;
        self.changed.notify_all();
    }
}

/// The `immediate_exit` flag of a vCPU, for as long as its thread keeps the vCPU.
#[derive(Debug, Default)]
struct ExitFlag(Mutex<Option<NonNull<u8>>>);

// SAFETY: the pointer is used under the mutex only, and taken away (`close`) before what it points
// to is unmapped.
unsafe impl Send for ExitFlag {}
// SAFETY: as above.
unsafe impl Sync for ExitFlag {}

impl ExitFlag {
    fn lock(&self) -> MutexGuard<'_, Option<NonNull<u8>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self, vcpu: &mut VcpuFd) {
        *self.lock() = Some(NonNull::from(&mut vcpu.get_kvm_run().immediate_exit));
    }

    fn close(&self) {
        *self.lock() = None;
    }

    /// The next entry into the guest returns at once.
    fn raise(&self) {
        if let Some(flag) = *self.lock() {
            // SAFETY: it points into the vCPU's shared memory, mapped until `close`; the kernel
            // reads the byte and its thread clears it, at any time.
            unsafe { flag.as_ptr().write_volatile(1) }
        }
    }
}

#[derive(Debug)]
struct VcpuThread {
    handle: JoinHandle<()>,
    flag: Arc<ExitFlag>,
}

/// All vCPUs of a machine. Used by the control thread; dropping it ends them.
#[derive(Debug)]
pub(crate) struct Vcpus {
    shared: Arc<Shared>,
    buses: Buses,
    ended: UnboundedSender<Ending>,
    threads: Vec<VcpuThread>,
}

impl Vcpus {
    /// No vCPU yet. How the guest ends goes to `ended`: the first message counts.
    ///
    /// # Errors
    ///
    /// [`VcpuError::Signal`].
    pub(crate) fn new(
        pci: Arc<PciBus>,
        ports: Arc<Ports>,
        ended: UnboundedSender<Ending>,
    ) -> Result<Self, VcpuError> {
        register_signal_handler(SIGRTMIN(), fetched).map_err(VcpuError::Signal)?;
        Ok(Self {
            shared: Arc::new(Shared {
                state: Mutex::new(State {
                    order: Order::Run,
                    active: 0,
                }),
                changed: Condvar::new(),
            }),
            buses: Buses { pci, ports },
            ended,
            threads: Vec::new(),
        })
    }

    /// Starts the thread of the next vCPU, which begins to run.
    ///
    /// # Errors
    ///
    /// [`VcpuError::Spawn`].
    pub(crate) fn spawn(&mut self, vcpu: VcpuFd) -> Result<(), VcpuError> {
        let id = self.threads.len();
        let flag = Arc::new(ExitFlag::default());
        let body = VcpuBody {
            vcpu,
            buses: self.buses.clone(),
            shared: Arc::clone(&self.shared),
            flag: Arc::clone(&flag),
            ended: self.ended.clone(),
        };
        self.shared.lock().active += 1;
        let spawned = Builder::new()
            .name(format!("vcpu{id}"))
            .spawn(move || body.run());
        match spawned {
            Ok(handle) => {
                self.threads.push(VcpuThread { handle, flag });
                Ok(())
            }
            Err(source) => {
                self.shared.lock().active -= 1;
                Err(VcpuError::Spawn { id, source })
            }
        }
    }

    /// Number of vCPUs.
    pub(crate) fn count(&self) -> usize {
        self.threads.len()
    }

    /// Stops all vCPUs and waits until none is in the guest.
    pub(crate) fn hold(&self) {
        self.order(Order::Hold);
        let mut state = self.shared.lock();
        while state.active > 0 {
            state = self.shared.wait(state);
        }
    }

    /// Lets held vCPUs run.
    pub(crate) fn go(&self) {
        self.shared.lock().order = Order::Run;
        self.shared.changed.notify_all();
    }

    /// Ends all vCPUs for good and waits for their threads.
    pub(crate) fn end(&mut self) {
        self.order(Order::End);
        for thread in self.threads.drain(..) {
            if thread.handle.join().is_err() {
                tracing::error!("a vCPU's thread panicked");
            }
        }
    }

    fn order(&self, order: Order) {
        self.shared.lock().order = order;
        self.shared.changed.notify_all();
        for thread in &self.threads {
            thread.flag.raise();
            // A thread that has ended has nothing to be fetched from.
            let _ = thread.handle.kill(SIGRTMIN());
        }
    }
}

impl Drop for Vcpus {
    fn drop(&mut self) {
        self.end();
    }
}

/// The signal only has to make `KVM_RUN` return.
extern "C" fn fetched(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

/// What a vCPU's thread owns.
struct VcpuBody {
    vcpu: VcpuFd,
    buses: Buses,
    shared: Arc<Shared>,
    flag: Arc<ExitFlag>,
    ended: UnboundedSender<Ending>,
}

impl VcpuBody {
    fn run(mut self) {
        self.flag.open(&mut self.vcpu);
        // The order may have changed before there was a flag to raise.
        let mut go_on = self.obey();
        while go_on {
            go_on = match run_once(&mut self.vcpu, &self.buses) {
                Next::Run => true,
                Next::Interrupted => self.obey(),
                Next::End(ending) => {
                    // Nobody listens once another vCPU's message has been taken.
                    let _ = self.ended.send(ending);
                    false
                }
            };
        }
        self.flag.close();
        let mut state = self.shared.lock();
        let active = state.active - 1;
        self.shared.set_active(&mut state, active);
    }

    /// Waits while vCPUs are held. False: the thread is to end.
    fn obey(&mut self) -> bool {
        self.vcpu.set_kvm_immediate_exit(0);
        let mut state = self.shared.lock();
        if state.order == Order::Hold {
            // Tells the guest's watchdogs that time was lost. Refused while the guest has no clock.
            let _ = self.vcpu.kvmclock_ctrl();
            let active = state.active - 1;
            self.shared.set_active(&mut state, active);
            while state.order == Order::Hold {
                state = self.shared.wait(state);
            }
            state.active += 1;
        }
        state.order == Order::Run
    }
}
