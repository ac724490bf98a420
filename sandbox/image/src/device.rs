//! The device of a runner, as capture and restore need it: what has to leave an accelerator before a process can be
//! captured, and what has to come back before a restored one is of use.
//!
//! ```text
//!  runs, at rest ──suspend──▶ runs, all it has is memory ──Held::capture()──▶ captured ──detach, resume──▶ runs
//!                                    │                         │
//!                                    └────── DeviceState ──────┴──▶ Image ──▶ Restore::run(): child ──resume──▶ of use
//! ```
//! An image holds memory, registers and what the kernel remembers, and none of what a driver keeps for a process. So the
//! device's part of a process is moved into its memory first and captured with it; what the device needs besides to
//! find it again is the [`DeviceState`], which the snapshot carries in a section of its own.
//!
//! Invariants: a suspended process has nothing on the device, and no mapping or descriptor of it; whoever is suspended is
//! resumed or killed. Left out: any accelerator. [`NoDevice`] is the one device so far, for runners that compute on cores;
//! `docs/design/gpu.md` has the plan for others.

use nix::sys::signal::{Signal, kill};
use sandbox_kernel::pidfd::Pid;
use sandbox_snapshot::image::{Accelerator, DeviceState};
use std::fmt;

/// What a capture and a restore ask of a device. A runner has one; that of a runner which computes on cores is
/// [`NoDevice`], whatever the machine has.
pub trait Device: fmt::Debug {
    /// The accelerators that a runner sees: a part of the identity of its snapshots, empty for none.
    fn identity(&self) -> Vec<Accelerator>;

    /// Moves what a process has on the device into its memory, and lets the device go. The process runs, with nothing
    /// under way; it must not use the device until it is resumed. The state is empty only if the identity is.
    ///
    /// # Errors
    /// It was not suspended, and goes on as before or has ended.
    fn suspend(&self, process: Pid) -> Result<DeviceState, DeviceError>;

    /// Takes a process back onto the device: the suspended one, or one restored from its image. It runs meanwhile.
    ///
    /// # Errors
    /// There is no such device, no room on it, or it fails. The process is of no use then.
    fn resume(&self, process: Pid, state: &DeviceState) -> Result<(), DeviceError>;
}

/// What went wrong with a device, in the device's words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("device: {0}")]
pub struct DeviceError(pub String);

/// No device: all that a runner has is in its memory.
#[derive(Clone, Copy, Debug)]
pub struct NoDevice;

impl Device for NoDevice {
    fn identity(&self) -> Vec<Accelerator> {
        Vec::new()
    }

    fn suspend(&self, _: Pid) -> Result<DeviceState, DeviceError> {
        Ok(DeviceState::default())
    }

    fn resume(&self, _: Pid, state: &DeviceState) -> Result<(), DeviceError> {
        match state.0.len() {
            0 => Ok(()),
            bytes => Err(DeviceError(format!("the image has {bytes} bytes for one, and there is none"))),
        }
    }
}

/// A process off its device; resumed when this is dropped, and killed if it cannot be: it would wait for ever.
#[derive(Debug)]
pub(crate) struct Suspended<'a> {
    device: &'a dyn Device,
    process: Pid,
    state: Option<DeviceState>,
}

impl<'a> Suspended<'a> {
    /// Suspends a process.
    pub(crate) fn new(device: &'a dyn Device, process: Pid) -> Result<Self, DeviceError> {
        Ok(Self { device, process, state: Some(device.suspend(process)?) })
    }

    /// What its image must hold for the device.
    pub(crate) fn state(&self) -> DeviceState {
        self.state.clone().unwrap_or_default()
    }

    /// Resumes it, and tells whether that went well.
    pub(crate) fn end(mut self) -> Result<(), DeviceError> {
        self.resume()
    }

    fn resume(&mut self) -> Result<(), DeviceError> {
        let Some(state) = self.state.take() else { return Ok(()) };
        let resumed = self.device.resume(self.process, &state);
        if resumed.is_err() {
            // What has ended by itself needs no killing.
            let _ = kill(self.process, Signal::SIGKILL);
        }
        resumed
    }
}

impl Drop for Suspended<'_> {
    fn drop(&mut self) {
        // The process is dead if this fails, which whoever waits for it sees.
        let _ = self.resume();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        cell::RefCell,
        os::unix::process::ExitStatusExt,
        process::{Child, Command},
    };

    /// A device that notes what it is asked, and resumes unless it is broken.
    #[derive(Debug, Default)]
    struct Noted {
        asked: RefCell<Vec<&'static str>>,
        is_broken: bool,
    }

    impl Device for Noted {
        fn identity(&self) -> Vec<Accelerator> {
            Vec::new()
        }

        fn suspend(&self, _: Pid) -> Result<DeviceState, DeviceError> {
            self.asked.borrow_mut().push("suspend");
            Ok(DeviceState(vec![7]))
        }

        fn resume(&self, _: Pid, state: &DeviceState) -> Result<(), DeviceError> {
            self.asked.borrow_mut().push("resume");
            assert_eq!(state.0, [7]);
            if self.is_broken { Err(DeviceError("broken".into())) } else { Ok(()) }
        }
    }

    fn sleeper() -> (Child, Pid) {
        let child = Command::new("sleep").arg("60").spawn().unwrap();
        let pid = Pid::from_raw(child.id() as i32);
        (child, pid)
    }

    #[test]
    fn no_device_has_nothing_to_move() {
        assert!(NoDevice.identity().is_empty());
        let state = NoDevice.suspend(Pid::this()).unwrap();
        assert_eq!(state, DeviceState::default());
        assert_eq!(NoDevice.resume(Pid::this(), &state), Ok(()));
    }

    #[test]
    fn no_device_refuses_what_was_on_one() {
        let error = NoDevice.resume(Pid::this(), &DeviceState(vec![1, 2])).unwrap_err();
        assert_eq!(error.to_string(), "device: the image has 2 bytes for one, and there is none");
    }

    #[test]
    fn who_is_suspended_is_resumed_once() {
        let device = Noted::default();
        let suspended = Suspended::new(&device, Pid::this()).unwrap();
        assert_eq!(suspended.state().0, [7]);
        assert_eq!(suspended.end(), Ok(()));
        drop(Suspended::new(&device, Pid::this()).unwrap());
        assert_eq!(*device.asked.borrow(), ["suspend", "resume", "suspend", "resume"]);
    }

    #[test]
    fn who_cannot_be_resumed_is_killed() {
        let device = Noted { is_broken: true, ..Noted::default() };
        let (mut child, pid) = sleeper();
        assert!(Suspended::new(&device, pid).unwrap().end().is_err());
        assert_eq!(child.wait().unwrap().signal(), Some(Signal::SIGKILL as i32));
        assert_eq!(*device.asked.borrow(), ["suspend", "resume"]);
    }
}
