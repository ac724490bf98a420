//! What `/proc/PID` tells of a process besides its mappings. The parsers are pure.

use crate::error::{CaptureError, Result};
use std::fs;

/// Addresses that the kernel keeps for a process, as `/proc/PID/stat` tells them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) code: (u64, u64),
    pub(crate) data: (u64, u64),
    pub(crate) brk_start: u64,
    pub(crate) stack_start: u64,
    pub(crate) arguments: (u64, u64),
    pub(crate) environment: (u64, u64),
}

/// What `/proc/PID/status` tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Status {
    pub(crate) threads: u64,
    pub(crate) seccomp: u64,
    pub(crate) signals_ignored: u64,
    pub(crate) signals_caught: u64,
    pub(crate) signals_pending: u64,
}

/// Reads a file of `/proc/PID`.
pub(crate) fn read(pid: i32, name: &str) -> Result<Vec<u8>, CaptureError> {
    let path = format!("/proc/{pid}/{name}");
    fs::read(&path).map_err(|error| CaptureError::Read { path, error })
}

/// Reads a file of `/proc/PID` that is text.
pub(crate) fn read_text(pid: i32, name: &str) -> Result<String, CaptureError> {
    let path = format!("/proc/{pid}/{name}");
    fs::read_to_string(&path).map_err(|error| CaptureError::Read { path, error })
}

/// Parses `/proc/PID/stat`.
pub(crate) fn layout(stat: &str) -> Option<Layout> {
    // The name before the last bracket may hold anything. After it, the first field is number 3 of proc(5).
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    Some(Layout {
        code: (field(26)?, field(27)?),
        stack_start: field(28)?,
        data: (field(45)?, field(46)?),
        brk_start: field(47)?,
        arguments: (field(48)?, field(49)?),
        environment: (field(50)?, field(51)?),
    })
}

/// Parses `/proc/PID/status`.
pub(crate) fn status(text: &str) -> Option<Status> {
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.map(str::trim)
    };
    let signals = |name: &str| u64::from_str_radix(field(name)?, 16).ok();
    Some(Status {
        threads: field("Threads")?.parse().ok()?,
        seccomp: field("Seccomp")?.parse().ok()?,
        signals_ignored: signals("SigIgn")?,
        signals_caught: signals("SigCgt")?,
        signals_pending: signals("SigPnd")? | signals("ShdPnd")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_is_read_whatever_the_name() {
        let numbers = (4..=52).map(|n| n.to_string()).collect::<Vec<_>>().join(" ");
        let read = layout(&format!("7 (a) b) S {numbers}\n")).unwrap();
        assert_eq!((read.code, read.stack_start, read.data), ((26, 27), 28, (45, 46)));
        assert_eq!((read.brk_start, read.arguments, read.environment), (47, (48, 49), (50, 51)));
        assert_eq!(layout("7 (a) S 1 2"), None);
    }

    #[test]
    fn status_is_read() {
        let text = "Name:\tThreads: 9\nThreads:\t1\nSigPnd:\t0000000000000001\nShdPnd:\t0000000000000002\n\
                    SigIgn:\t0000000000001000\nSigCgt:\t0000000000000440\nSeccomp:\t2\n";
        let expected =
            Status { threads: 1, seccomp: 2, signals_ignored: 0x1000, signals_caught: 0x440, signals_pending: 3 };
        assert_eq!(status(text), Some(expected));
        assert_eq!(status("Threads:\t1\n"), None);
    }

    #[test]
    fn this_process_is_read() {
        let pid = std::process::id() as i32;
        assert!(layout(&read_text(pid, "stat").unwrap()).unwrap().stack_start > 0);
        assert!(status(&read_text(pid, "status").unwrap()).unwrap().threads > 0);
        assert!(!read(pid, "auxv").unwrap().is_empty());
    }
}
