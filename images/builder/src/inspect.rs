//! What is in an image: read back from its bytes, not from what a build said.

use crate::{
    ImageError,
    disk::{self, Slice},
    uki::{self, Section, UkiError},
};
use std::{fs::File, path::Path};

/// An image's contents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inspection {
    /// Bytes of the disk.
    pub bytes: u64,
    /// Its partitions.
    pub partitions: Vec<Slice>,
    /// The UKIs on its boot partition.
    pub slots: Vec<Slot>,
}

/// A UKI on the boot partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Its file's name, with what boot counting added to it.
    pub file: String,
    /// Its bytes.
    pub bytes: u64,
    /// `IMAGE_VERSION` of its os-release.
    pub version: String,
    /// The kernel's release.
    pub kernel: String,
    /// The kernel's command line.
    pub command_line: String,
    /// Its sections.
    pub sections: Vec<Section>,
}

/// Reads the image at `path`.
///
/// # Errors
/// [`ImageError`] where it is no image of ours, or damaged.
pub fn inspect(path: &Path) -> Result<Inspection, ImageError> {
    let file = File::open(path).map_err(ImageError::at(path))?;
    let bytes = file.metadata().map_err(ImageError::at(path))?.len();
    let partitions = disk::partitions(&file)?;
    let esp = partitions.iter().find(|slice| slice.name == disk::ESP);
    let esp = esp.ok_or_else(|| ImageError::Disk("it has no partition named esp".to_owned()))?;
    let folder = "EFI/Linux";
    let mut slots = Vec::new();
    for name in disk::list_boot_files(&file, esp, folder)? {
        let uki = disk::read_boot_file(&file, esp, &format!("{folder}/{name}"))?.unwrap_or_default();
        slots.push(slot(name, &uki)?);
    }
    Ok(Inspection { bytes, partitions, slots })
}

fn slot(file: String, uki: &[u8]) -> Result<Slot, ImageError> {
    let sections = uki::sections(uki)?;
    let text = |name: &str| {
        let section = sections.iter().find(|section| section.name == name);
        let section = section.ok_or_else(|| UkiError(format!("{file} has no section {name}")))?;
        Ok::<_, ImageError>(String::from_utf8_lossy(section.contents(uki)?).trim_end().to_owned())
    };
    let version = uki::image_version(uki).unwrap_or_else(|| "unknown".to_owned());
    let (kernel, command_line) = (text(".uname")?, text(".cmdline")?);
    Ok(Slot { bytes: uki.len() as u64, version, kernel, command_line, sections, file })
}
