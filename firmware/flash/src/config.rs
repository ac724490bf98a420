//! `machine.toml`, put into the root of the boot partition that was just written.

use fatfs::{FileSystem, FsOptions};
use fscommon::{BufStream, StreamSlice};
use std::{
    fs::File,
    io::{self, Read, Write},
};

const NAME: &str = "machine.toml";

/// Writes `text` onto the volume between `from` and `to`, and reads it back.
pub(crate) fn inject(disk: &File, (from, to): (u64, u64), text: &str) -> io::Result<()> {
    {
        let volume = volume(disk, from, to)?;
        let mut file = volume.root_dir().create_file(NAME)?;
        file.truncate()?;
        file.write_all(text.as_bytes())?;
        file.flush()?;
        drop(file);
        volume.unmount()?;
    }
    disk.sync_all()?;
    let mut found = String::new();
    volume(disk, from, to)?.root_dir().open_file(NAME)?.read_to_string(&mut found)?;
    if found == text { Ok(()) } else { Err(io::Error::other("what is read back is not what was written")) }
}

fn volume(disk: &File, from: u64, to: u64) -> io::Result<FileSystem<BufStream<StreamSlice<&File>>>> {
    FileSystem::new(BufStream::new(StreamSlice::new(disk, from, to)?), FsOptions::new())
}
