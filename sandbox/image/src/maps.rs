//! The mappings of a process, as `/proc/PID/smaps` tells them. Pure: text in, values out.
//!
//! ```text
//!  7f00a000-7f00c000 rw-p 00002000 fd:01 1234    /usr/bin/thing      one head line a mapping
//!  Size:                  8 kB                                       fields, of which one matters here:
//!  VmFlags: rd wr mr mw me ac sd
//! ```

use std::ops::Range;

/// One mapping.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Mapping {
    /// Its addresses.
    pub(crate) range: Range<u64>,
    /// It may be read.
    pub(crate) read: bool,
    /// It may be written.
    pub(crate) write: bool,
    /// It may be executed.
    pub(crate) execute: bool,
    /// Writes reach the file.
    pub(crate) shared: bool,
    /// Where in its file it begins.
    pub(crate) offset: u64,
    /// Its file has this inode; 0 for none.
    pub(crate) inode: u64,
    /// The file's path, or a name in brackets, or nothing.
    pub(crate) name: String,
    /// The kernel's two-letter flags; empty where the text is of `/proc/PID/maps`.
    pub(crate) flags: Vec<[u8; 2]>,
}

impl Mapping {
    /// Has a flag of `VmFlags`.
    pub(crate) fn has(&self, flag: &[u8; 2]) -> bool {
        self.flags.contains(flag)
    }

    /// Its length.
    pub(crate) fn bytes(&self) -> u64 {
        self.range.end - self.range.start
    }

    /// The kernel's own pages, the same in every process: the vDSO and its data.
    pub(crate) fn is_vdso(&self) -> bool {
        self.name == "[vdso]" || self.name.starts_with("[vvar")
    }

    /// The page above all addresses of a process, which nobody can move.
    pub(crate) fn is_vsyscall(&self) -> bool {
        self.name == "[vsyscall]"
    }
}

/// Reads `/proc/PID/smaps` or `/proc/PID/maps`; the line that makes no sense otherwise.
pub(crate) fn parse(text: &str) -> Result<Vec<Mapping>, &str> {
    let mut mappings = Vec::<Mapping>::new();
    for line in text.lines() {
        let first = line.split(' ').next().unwrap_or_default();
        if !first.ends_with(':') {
            mappings.push(head(line).ok_or(line)?);
        } else if first == "VmFlags:" {
            let flags = line.split_whitespace().skip(1).filter_map(|flag| flag.as_bytes().try_into().ok());
            mappings.last_mut().ok_or(line)?.flags = flags.collect();
        }
    }
    Ok(mappings)
}

fn head(line: &str) -> Option<Mapping> {
    let mut fields = line.splitn(6, ' ');
    let mut next = || fields.next();
    let (start, end) = next()?.split_once('-')?;
    let permissions: [u8; 4] = next()?.as_bytes().try_into().ok()?;
    let offset = hexadecimal(next()?)?;
    let _device = next()?;
    let inode = next()?.parse().ok()?;
    Some(Mapping {
        range: hexadecimal(start)?..hexadecimal(end)?,
        read: permissions[0] == b'r',
        write: permissions[1] == b'w',
        execute: permissions[2] == b'x',
        shared: permissions[3] == b's',
        offset,
        inode,
        name: next().unwrap_or_default().trim_start().to_owned(),
        flags: Vec::new(),
    })
}

fn hexadecimal(text: &str) -> Option<u64> {
    u64::from_str_radix(text, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
00400000-00452000 r-xp 00001000 08:02 173521      /usr/bin/a program
Size:                328 kB
VmFlags: rd ex mr mw me sd
7ffc1000-7ffc3000 rw-p 00000000 00:00 0                          [stack]
THPeligible:           0
VmFlags: rd wr mr mw me gd ac
7f00a000-7f00c000 rw-s 00002000 fd:01 7
";

    #[test]
    fn heads_and_flags_are_read() {
        let read = parse(TEXT).unwrap();
        assert_eq!(read.len(), 3);
        assert_eq!((read[0].range.clone(), read[0].offset, read[0].inode), (0x400000..0x452000, 0x1000, 173521));
        assert!(read[0].read && read[0].execute && !read[0].write && !read[0].shared);
        assert_eq!(read[0].name, "/usr/bin/a program");
        assert!(read[1].has(b"gd") && !read[0].has(b"gd"));
        assert_eq!((read[1].name.as_str(), read[1].bytes()), ("[stack]", 0x2000));
        assert!(read[2].shared && read[2].name.is_empty() && read[2].flags.is_empty());
    }

    #[test]
    fn nonsense_is_named() {
        for bad in ["zz-zz rw-p 0 0 0", "1000-2000 rw-", "VmFlags: rd", "1000-2000 rw-p 0 0:0"] {
            assert_eq!(parse(bad), Err(bad));
        }
    }

    #[test]
    fn our_own_mappings_are_read() {
        let own = parse(&std::fs::read_to_string("/proc/self/smaps").unwrap()).unwrap().len();
        assert!(own > 5);
    }
}
