//! Updates of the image that was built: the same kernel and programs as another version, and with faults.

use crate::appliance::built;
use firmware_bundle::{MACHINE, Manifest, minisign::SecretKey, write};
use firmware_slots::Version;
use images_builder::{
    disk,
    initramfs::Tree,
    uki::{self, Parts},
};
use std::fs::File;

/// What is otherwise in an update than in the image.
#[derive(Default)]
pub(crate) struct Fault {
    /// Added to the kernel's command line.
    pub(crate) command_line: &'static str,
    /// Programs beside the image's or in place of them: where, and what.
    pub(crate) programs: Vec<(String, Vec<u8>)>,
}

/// The key whose updates the tests' machines take.
pub(crate) fn key() -> SecretKey {
    SecretKey::from_random([7; 40])
}

/// A file of the image's boot partition.
pub(crate) fn boot_file(path: &str) -> Vec<u8> {
    let image = File::open(built()).unwrap();
    let slices = disk::partitions(&image).unwrap();
    let esp = slices.iter().find(|slice| slice.name == disk::ESP).expect("a boot partition");
    disk::read_boot_file(&image, esp, path).unwrap().unwrap_or_else(|| panic!("{path} is not there"))
}

/// The image as `version`.
pub(crate) fn uki(version: &str, fault: &Fault) -> Vec<u8> {
    let uki = boot_file(disk::FIRST_SLOT);
    let sections = uki::sections(&uki).unwrap();
    let section = |name: &str| sections.iter().find(|section| section.name == name).expect("a section");
    let bytes = |name: &str| section(name).contents(&uki).unwrap();
    let text = |name: &str| String::from_utf8(bytes(name).to_vec()).unwrap();
    let os_release =
        format!("ID=ember\nIMAGE_ID=ember\nNAME=\"Ember\"\nVERSION_ID={version}\nIMAGE_VERSION={version}\n");
    let parts = Parts {
        stub: &stub(&uki, section(".osrel").offset as usize),
        os_release: &os_release,
        command_line: &format!("{} {}", text(".cmdline"), fault.command_line),
        release: &text(".uname"),
        linux: bytes(".linux"),
        initrd: &with_files(bytes(".initrd"), &os_release, fault),
    };
    uki::build(&parts).unwrap()
}

/// The stub again: what lies before the sections that were added, which its headers forget.
fn stub(uki: &[u8], end: usize) -> Vec<u8> {
    let mut stub = uki[..end].to_vec();
    let count = u32::from_le_bytes(*uki[0x3c..].first_chunk().unwrap()) as usize + 6;
    stub[count] -= 5;
    stub
}

/// The kernel unpacks one archive over the other.
fn with_files(initrd: &[u8], os_release: &str, fault: &Fault) -> Vec<u8> {
    let mut tree = Tree::new();
    tree.file("etc/os-release", os_release.as_bytes().to_vec(), false);
    for (path, bytes) in &fault.programs {
        tree.file(path, bytes.clone(), true);
    }
    let mut all = initrd.to_vec();
    all.resize(all.len().next_multiple_of(4), 0);
    all.extend(tree.cpio());
    all
}

/// Makes of a UKI one that firmware does not load: of a subsystem that there is not.
pub(crate) fn spoil(uki: &mut [u8]) {
    let optional = u32::from_le_bytes(*uki[0x3c..].first_chunk().unwrap()) as usize + 24;
    uki[optional + 68..][..2].fill(0xff);
}

/// A bundle of `uki`, which says that it is `version`.
pub(crate) fn bundle(uki: &[u8], version: &str, key: &SecretKey) -> Vec<u8> {
    let manifest = Manifest::of(uki, version.parse().unwrap(), Version([0, 0, 0]), MACHINE);
    let mut bytes = Vec::new();
    write(&mut bytes, uki, &manifest, key).unwrap();
    bytes
}
