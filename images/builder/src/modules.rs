//! Kernel modules: those that are wanted, what they need, and which hardware each is for.
//!
//! There is no modprobe on the appliance, nor the tables that depmod makes, so both are made here, from what the modules
//! say of themselves (section `.modinfo`):
//!
//! ```text
//!  modules/order    a line a module, after all that it needs:   ahci libahci libata scsi_mod …
//!                   (its name, then what must be loaded before)
//!  modules/alias    a line an alias:   pci:v*d*sv*sd*bc01sc06i01* ahci
//! ```
//!
//! Names are the kernel's own, with `_`. Modules go in decompressed: the signature at a module's end stays, and the
//! initramfs as a whole compresses better.

use crate::ImageError;
use object::{Object, ObjectSection};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Cursor,
    path::{Path, PathBuf},
    slice::from_ref,
};

/// Modules at most, needs included.
const MODULES_MAX: usize = 512;

/// A module that goes into the image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// Its name.
    pub name: String,
    /// Its decompressed file.
    pub bytes: Vec<u8>,
    /// All that must be loaded before it, in order.
    pub needs: Vec<String>,
    /// Patterns of the hardware, file systems and others that it is for.
    pub aliases: Vec<String>,
}

/// What a module says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Info {
    /// `depends=`, and what `softdep=` wants before.
    needs: Vec<String>,
    /// Of these, those without which it works as well.
    soft: BTreeSet<String>,
    aliases: Vec<String>,
}

/// The modules below `folder` (`lib/modules/RELEASE`) that `wanted` names, and what they need; each after what it needs.
///
/// # Errors
/// [`ImageError::Module`] for one that is neither there nor built into the kernel, or cannot be read.
pub fn select(folder: &Path, wanted: &[String]) -> Result<Vec<Module>, ImageError> {
    let files = files(folder)?;
    let builtin = builtin(folder)?;
    let mut selection = Selection { files, builtin, done: BTreeMap::new(), order: Vec::new() };
    for name in wanted {
        selection.add(&canonical(name), &mut Vec::new())?;
    }
    Ok(selection.order)
}

/// The text of `modules/order`.
pub fn order(modules: &[Module]) -> String {
    modules.iter().map(|m| [from_ref(&m.name), m.needs.as_slice()].concat().join(" ") + "\n").collect()
}

/// The text of `modules/alias`.
pub fn aliases(modules: &[Module]) -> String {
    let lines: BTreeSet<_> =
        modules.iter().flat_map(|m| m.aliases.iter().map(|alias| format!("{alias} {}\n", m.name))).collect();
    lines.into_iter().collect()
}

struct Selection {
    files: BTreeMap<String, PathBuf>,
    builtin: BTreeSet<String>,
    /// What each needs before itself.
    done: BTreeMap<String, Vec<String>>,
    order: Vec<Module>,
}

impl Selection {
    /// Adds a module after what it needs. `above` are those that are being added for it.
    fn add(&mut self, name: &str, above: &mut Vec<String>) -> Result<Vec<String>, ImageError> {
        let bad = |reason: &str| ImageError::Module { module: name.to_owned(), reason: reason.to_owned() };
        if self.builtin.contains(name) {
            return Ok(Vec::new());
        }
        if let Some(needs) = self.done.get(name) {
            return Ok([needs.as_slice(), &[name.to_owned()]].concat());
        }
        if above.iter().any(|n| n == name) {
            return Err(bad("it needs itself"));
        }
        if self.order.len() + above.len() >= MODULES_MAX {
            return Err(bad("there are too many"));
        }
        let path = self.files.get(name).ok_or_else(|| bad("this kernel has none of that name"))?;
        let bytes = decompressed(path).map_err(|reason| bad(&reason))?;
        let info = info(&bytes).map_err(|reason| bad(&reason))?;
        above.push(name.to_owned());
        let mut needs: Vec<String> = Vec::new();
        for need in &info.needs {
            if info.soft.contains(need) && !self.is_known(need) {
                continue;
            }
            for one in self.add(need, above)? {
                if !needs.contains(&one) {
                    needs.push(one);
                }
            }
        }
        above.pop();
        self.done.insert(name.to_owned(), needs.clone());
        self.order.push(Module { name: name.to_owned(), bytes, needs: needs.clone(), aliases: info.aliases });
        needs.push(name.to_owned());
        Ok(needs)
    }

    fn is_known(&self, name: &str) -> bool {
        self.files.contains_key(name) || self.builtin.contains(name)
    }
}

/// As the kernel calls it, whatever its file is called.
fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

/// A module's name by its file's, `xhci-pci.ko.xz` → `xhci_pci`.
fn name_of(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    let stem = name.strip_suffix(".ko.xz").or_else(|| name.strip_suffix(".ko"))?;
    Some(canonical(stem))
}

fn files(folder: &Path) -> Result<BTreeMap<String, PathBuf>, ImageError> {
    let (mut files, mut folders) = (BTreeMap::new(), vec![folder.join("kernel")]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).map_err(ImageError::at(&folder))? {
            let path = entry.map_err(ImageError::at(&folder))?.path();
            if path.is_dir() {
                folders.push(path);
            } else if let Some(name) = name_of(&path) {
                files.insert(name, path);
            }
        }
    }
    Ok(files)
}

fn builtin(folder: &Path) -> Result<BTreeSet<String>, ImageError> {
    let path = folder.join("modules.builtin");
    let text = fs::read_to_string(&path).map_err(ImageError::at(&path))?;
    Ok(text.lines().filter_map(|line| name_of(Path::new(line))).collect())
}

fn decompressed(path: &Path) -> Result<Vec<u8>, String> {
    let bytes = fs::read(path).map_err(|error| error.to_string())?;
    if path.extension().is_none_or(|e| e != "xz") {
        return Ok(bytes);
    }
    let mut module = Vec::with_capacity(bytes.len() * 4);
    lzma_rs::xz_decompress(&mut Cursor::new(bytes), &mut module).map_err(|error| format!("{error:?}"))?;
    Ok(module)
}

fn info(module: &[u8]) -> Result<Info, String> {
    let file = object::File::parse(module).map_err(|error| error.to_string())?;
    let section = file.section_by_name(".modinfo").ok_or("it has no section .modinfo")?;
    let data = section.data().map_err(|error| error.to_string())?;
    Ok(read_info(data))
}

/// Reads `key=value` strings, each ended by NUL.
fn read_info(data: &[u8]) -> Info {
    let mut info = Info::default();
    for entry in data.split(|byte| *byte == 0).filter_map(|entry| str::from_utf8(entry).ok()) {
        match entry.split_once('=') {
            Some(("depends", names)) => {
                info.needs.extend(names.split(',').filter(|n| !n.is_empty()).map(canonical));
            }
            Some(("softdep", text)) => {
                let before = text.split_whitespace().skip_while(|w| *w != "pre:").skip(1);
                for name in before.take_while(|w| *w != "post:").map(canonical) {
                    info.soft.insert(name.clone());
                    info.needs.push(name);
                }
            }
            Some(("alias", pattern)) => info.aliases.push(pattern.to_owned()),
            _ => {}
        }
    }
    info
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modinfo_reads() {
        let data = b"license=GPL\0depends=mbcache,jbd2\0softdep=pre: crc32c post: later\0\0alias=fs-ext4\0alias=ext3\0";
        let info = read_info(data);
        assert_eq!(info.needs, ["mbcache", "jbd2", "crc32c"]);
        assert_eq!(info.soft, BTreeSet::from(["crc32c".to_owned()]));
        assert_eq!(info.aliases, ["fs-ext4", "ext3"]);
        assert_eq!(read_info(b"depends=\0"), Info::default());
    }

    #[test]
    fn names_are_the_kernel_s() {
        assert_eq!(name_of(Path::new("kernel/drivers/xhci-pci.ko.xz")), Some("xhci_pci".to_owned()));
        assert_eq!(name_of(Path::new("kernel/drivers/virtio.ko")), Some("virtio".to_owned()));
        assert_eq!(name_of(Path::new("modules.order")), None);
    }

    fn module(name: &str, needs: &[&str], aliases: &[&str]) -> Module {
        let own = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect();
        Module { name: name.to_owned(), bytes: Vec::new(), needs: own(needs), aliases: own(aliases) }
    }

    #[test]
    fn the_tables_have_a_line_a_module_and_a_line_an_alias() {
        let modules = [module("libahci", &[], &[]), module("ahci", &["libahci"], &["pci:b*", "pci:a*"])];
        assert_eq!(order(&modules), "libahci\nahci libahci\n");
        assert_eq!(aliases(&modules), "pci:a* ahci\npci:b* ahci\n");
    }

    #[test]
    fn what_a_kernel_lacks_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("kernel")).unwrap();
        fs::write(folder.path().join("modules.builtin"), "kernel/fs/ext4/ext4.ko\n").unwrap();
        assert_eq!(select(folder.path(), &["ext4".to_owned()]).unwrap(), []);
        let error = select(folder.path(), &["nvme".to_owned()]).unwrap_err();
        assert_eq!(error.to_string(), "kernel module nvme: this kernel has none of that name");
    }
}
