//! `requests.log`, the one file of versions before segments: taken in once, then put aside.
//!
//! ```text
//!  JSON of the record  \t  8 hex digits: CRC32C of the JSON  \n
//!
//!  requests.log ─▶ appended as closed entries of boot 0, core 0, by line number ─▶ requests.log.imported
//! ```
//!
//! An import that is cut off is done again at the next start, and takes no line twice: its entries have numbers.

use crate::{
    disk::Disk,
    log::{Log, LogError},
    recover::Recovery,
};
use appliance_types::{Entry, Record, Stage};
use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader, Read},
    path::Path,
};

const FILE: &str = "requests.log";
const IMPORTED: &str = "requests.log.imported";
/// Longest line of that version.
const LINE_BYTES_MAX: u64 = 2048;
/// Entries appended together.
const BATCH_ENTRIES: usize = 256;
/// Most offsets of corrupt lines that are reported one by one.
const OFFSETS_MAX: usize = 16;

/// Takes the file in, where there is one.
pub(crate) fn import<D: Disk>(folder: &Path, log: &mut Log<D>, recovery: &mut Recovery) -> Result<(), LogError> {
    let path = folder.join(FILE);
    let failed = |action| {
        let path = path.clone();
        move |source| LogError::Io { action, path, source }
    };
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("open")(error)),
    };
    let mut lines = Lines { reader: BufReader::new(file), offset: 0, number: 0 };
    loop {
        let batch = lines.batch(&mut recovery.not_imported).map_err(failed("read"))?;
        if batch.is_empty() {
            break;
        }
        recovery.imported += batch.len() as u64;
        log.append(&batch)?;
    }
    fs::rename(&path, folder.join(IMPORTED)).map_err(failed("rename"))?;
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed("sync the folder of"))
}

struct Lines<R> {
    reader: BufReader<R>,
    offset: u64,
    number: u64,
}

impl<R: Read> Lines<R> {
    fn batch(&mut self, corrupt: &mut Vec<u64>) -> io::Result<Vec<Entry>> {
        let mut batch = Vec::new();
        while batch.len() < BATCH_ENTRIES {
            let mut line = Vec::new();
            let length = self.reader.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line)?;
            if length == 0 {
                break;
            }
            let (offset, sequence) = (self.offset, self.number);
            self.offset += length as u64;
            self.number += 1;
            match decode(&line) {
                Some(record) => batch.push(Entry { boot: 0, core: 0, sequence, stage: Stage::Closed, record }),
                None if corrupt.len() < OFFSETS_MAX => corrupt.push(offset),
                None => {}
            }
        }
        Ok(batch)
    }
}

fn decode(line: &[u8]) -> Option<Record> {
    let (rest, digits) = line.strip_suffix(b"\n")?.split_last_chunk::<8>()?;
    let json = rest.strip_suffix(b"\t")?;
    let sum = u32::from_str_radix(str::from_utf8(digits).ok()?, 16).ok()?;
    if crc32c::crc32c(json) != sum {
        return None;
    }
    serde_json::from_slice(json).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{reader, testing::record};

    fn line(number: u64) -> Vec<u8> {
        let mut line = serde_json::to_vec(&record(number)).unwrap();
        let sum = crc32c::crc32c(&line);
        line.extend_from_slice(format!("\t{sum:08x}\n").as_bytes());
        line
    }

    #[test]
    fn the_old_file_is_taken_in_once() {
        let folder = tempfile::tempdir().unwrap();
        let numbers = || reader::records(folder.path()).unwrap().map(|r| r.unwrap().ended_unix_ms).collect::<Vec<_>>();
        let mut bytes: Vec<u8> = (0..600).flat_map(line).collect();
        let corrupt_at = bytes.len() as u64;
        bytes.extend_from_slice(b"what is no record\n");
        bytes.extend(line(600));
        fs::write(folder.path().join(FILE), &bytes).unwrap();
        let (log, recovery) = Log::open(folder.path(), 1).unwrap();
        assert_eq!((recovery.imported, recovery.not_imported), (601, vec![corrupt_at]));
        assert_eq!(numbers(), (0..=600).collect::<Vec<_>>());
        drop(log);
        assert_eq!(fs::read(folder.path().join(IMPORTED)).unwrap(), bytes, "kept as it was");
        // As if the first import had been cut off before the file was put aside.
        fs::rename(folder.path().join(IMPORTED), folder.path().join(FILE)).unwrap();
        drop(Log::open(folder.path(), 1).unwrap());
        assert_eq!(numbers(), (0..=600).collect::<Vec<_>>());
        assert!(!folder.path().join(FILE).exists());
    }
}
