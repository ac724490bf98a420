//! Capture and restore ask the device for its part, each when it can give it.

use crate::harness::{How, Subject};
use sandbox_image::{Data, Device, DeviceError, RestoreError, park};
use sandbox_kernel::pidfd::Pid;
use sandbox_snapshot::image::{Accelerator, DeviceState};
use std::{cell::RefCell, fs, os::fd::AsFd};

/// A device that notes what it is asked and by whom the process is then traced, and resumes what it has suspended.
#[derive(Debug, Default)]
struct Noted {
    asked: RefCell<Vec<(&'static str, Pid, String)>>,
    is_broken: bool,
}

impl Noted {
    fn note(&self, what: &'static str, process: Pid) {
        let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
        let tracer = status.lines().find_map(|line| line.strip_prefix("TracerPid:\t")).unwrap().to_owned();
        self.asked.borrow_mut().push((what, process, tracer));
    }

    fn asked(&self) -> Vec<(&'static str, Pid, String)> {
        self.asked.take()
    }
}

impl Device for Noted {
    fn identity(&self) -> Vec<Accelerator> {
        Vec::new()
    }

    fn suspend(&self, process: Pid) -> Result<DeviceState, DeviceError> {
        self.note("suspend", process);
        if self.is_broken { Err(DeviceError("broken".into())) } else { Ok(DeviceState(vec![1, 2, 3])) }
    }

    fn resume(&self, process: Pid, state: &DeviceState) -> Result<(), DeviceError> {
        self.note("resume", process);
        assert_eq!(state.0, [1, 2, 3]);
        if self.is_broken { Err(DeviceError("broken".into())) } else { Ok(()) }
    }
}

fn untraced(what: &'static str, process: Pid) -> (&'static str, Pid, String) {
    (what, process, "0".into())
}

#[test]
fn it_is_asked_before_the_stop_and_after_the_release() {
    let (mut subject, device) = (Subject::start(), Noted::default());
    let held = subject.capture_from(&device).unwrap();
    assert_eq!(device.asked(), [untraced("suspend", subject.pid())]);
    assert_eq!(held.image().device.0, [1, 2, 3]);
    held.resume().unwrap();
    assert_eq!(device.asked(), [untraced("resume", subject.pid())]);
    drop(subject.capture_from(&device).unwrap());
    assert_eq!(device.asked(), [untraced("suspend", subject.pid()), untraced("resume", subject.pid())]);
    subject.line.ask_all();
}

#[test]
fn what_it_cannot_suspend_is_not_captured_and_goes_on() {
    let mut subject = Subject::start();
    let error = subject.capture_from(&Noted { is_broken: true, ..Noted::default() }).unwrap_err();
    assert_eq!(error.to_string(), "device: broken");
    subject.line.ask_all();
}

#[test]
fn it_takes_a_restored_process_back() {
    let (subject, device) = (Subject::start(), Noted::default());
    let parked = park(&subject.capture_from(&device).unwrap(), &()).unwrap();
    device.asked();
    let how = How { device: &device, ..How::default() };
    let mut restored = subject.restore_as(&parked.image, Data::Shared(parked.data.as_fd()), &how).unwrap();
    assert_eq!(device.asked(), [untraced("resume", restored.child.pid())]);
    restored.line.ask_all();
    restored.end();
}

#[test]
fn what_it_does_not_take_back_is_gone() {
    let (subject, broken) = (Subject::start(), Noted { is_broken: true, ..Noted::default() });
    let parked = park(&subject.capture_from(&Noted::default()).unwrap(), &()).unwrap();
    let restore = |how: &How<'_>| subject.restore_as(&parked.image, Data::Shared(parked.data.as_fd()), how).err();
    let refused = restore(&How { device: &broken, ..How::default() }).unwrap();
    assert!(matches!(&refused, RestoreError::Device(DeviceError(why)) if why == "broken"), "{refused}");
    let [(_, process, _)] = &broken.asked()[..] else { panic!("asked once") };
    assert!(!fs::exists(format!("/proc/{process}")).unwrap());
    let refused = restore(&How::default()).unwrap();
    assert_eq!(refused.to_string(), "device: the image has 3 bytes for one, and there is none");
}
