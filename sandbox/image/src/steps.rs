//! The steps of a restore and when each was done: by this process's clock, and by calls of the child that note it.

use nix::{
    errno::Errno,
    sys::uio::{RemoteIoVec, process_vm_readv},
};
use sandbox_kernel::{
    pidfd::Pid,
    table::{Table, monotonic},
};
use std::{io::IoSliceMut, time::Duration};

/// A step of a restore, named by what has been done by then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The table is made and mapped.
    Prepared,
    /// The child is there, and traced.
    Cloned,
    /// It is where it belongs, and its gate is open.
    Admitted,
    /// It has let all memory go but the table and the vDSO.
    Emptied,
    /// It has mapped the image.
    Mapped,
    /// It has told the kernel what the kernel should know.
    Told,
    /// It is confined, and its descriptors are in their places.
    Placed,
    /// Its memory is mapped ahead of need, if it is to be.
    Touched,
    /// It is sealed and has stopped.
    Stopped,
    /// Its data is written, if any is to be.
    Written,
    /// It has its registers, and runs.
    Going,
    /// What it had on its device is there again.
    Resumed,
}

/// Notes when steps are done.
pub(crate) struct Clock {
    begun: Duration,
    steps: Vec<(Step, Duration)>,
    /// Where in the child's memory a time is noted.
    marks: Vec<(Step, u64)>,
}

impl Clock {
    pub(crate) fn start() -> Self {
        Self { begun: monotonic(), steps: Vec::new(), marks: Vec::new() }
    }

    /// A step is done now.
    pub(crate) fn done(&mut self, step: Step) {
        self.steps.push((step, monotonic().saturating_sub(self.begun)));
    }

    /// Has the child note when a step is done.
    pub(crate) fn mark(&mut self, table: &mut Table, step: Step) {
        self.marks.push((step, table.mark()));
    }

    /// The table is made anew.
    pub(crate) fn forget_marks(&mut self) {
        self.marks.clear();
    }

    /// Collects what a stopped child has noted.
    pub(crate) fn collect(&mut self, child: Pid) -> Result<(), Errno> {
        let remote: Vec<_> = self.marks.iter().map(|(_, at)| RemoteIoVec { base: *at as usize, len: 16 }).collect();
        let mut noted = vec![0; 16 * remote.len()];
        process_vm_readv(child, &mut [IoSliceMut::new(&mut noted)], &remote)?;
        for ((step, _), words) in self.marks.iter().zip(noted.as_chunks::<8>().0.as_chunks::<2>().0) {
            let [seconds, nanoseconds] = words.map(u64::from_ne_bytes);
            let at = Duration::new(seconds, nanoseconds as u32);
            self.steps.push((*step, at.saturating_sub(self.begun)));
        }
        Ok(())
    }

    /// All steps, in the order of time.
    pub(crate) fn steps(mut self) -> Vec<(Step, Duration)> {
        self.steps.sort_by_key(|(_, at)| *at);
        self.steps
    }
}
