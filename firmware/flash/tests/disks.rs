//! Files that stand for disks are flashed, and other programs look at what is there.

use firmware_flash::{FlashError, Guard, Image, Job, Kind, Report, Step, Target, block_map, flash};
use images_builder::{
    bmap::Map,
    disk::{self, Contents},
};
use std::{
    fs::{self, File, OpenOptions},
    io::Write,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
};

const MIB: u64 = 1 << 20;
const IMAGE: u64 = 106 * MIB;

/// An image of ours, with its block map beside it.
fn image(folder: &Path) -> PathBuf {
    let path = folder.join("ember.img");
    let uki: Vec<u8> = (0..6 * MIB as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let contents =
        Contents { loader: b"loader", uki: &uki, esp_bytes: 72 * MIB, data_bytes: 32 * MIB, data_files: &[] };
    disk::write(&path, &contents).expect("the contents fit");
    let used = disk::used(&path).expect("a disk of ours");
    let map = Map::with(File::open(&path).expect("the image"), &used).expect("it is read");
    fs::write(folder.join("ember.img.bmap"), map.xml()).expect("room");
    path
}

/// A disk that was used before: no byte of it is zero.
fn used_disk(folder: &Path, bytes: u64) -> PathBuf {
    let path = folder.join("disk");
    let mut file = File::create(&path).expect("a test's own file");
    let dirt = vec![0xa5; MIB as usize];
    for at in (0..bytes).step_by(dirt.len()) {
        file.write_all(&dirt[..(bytes - at).min(MIB) as usize]).expect("a test's own file");
    }
    path
}

fn job(image: Image, map: Option<Map>, target: &Path) -> Job {
    let target = Target::look(target, Path::new("/"), Guard::On).expect("a test's own file");
    Job { image, map, target, config: None, verify: true }
}

fn quietly(job: Job) -> Result<Report, FlashError> {
    flash(job, |_| {})
}

fn passes(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .output()
        .unwrap_or_else(|error| panic!("{program}, of a Debian package that `make test` installs: {error}"));
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{program}: {text}");
    text
}

/// The partitions' file systems and the table are whole, as other programs see them.
fn is_sound(target: &Path, folder: &Path) {
    let text = passes("sgdisk", &["-v", target.to_str().expect("a test's own file")]);
    assert!(text.contains("No problems found"), "{text}");
    let partitions = disk::partitions(&File::open(target).expect("a test's own file")).expect("a test's own file");
    for (slice, check) in partitions.iter().zip([&["fsck.vfat", "-n"], &["e2fsck", "-fn"]]) {
        let part = folder.join(&slice.name);
        disk::copy_out(target, slice, &part).expect("a test's own file");
        passes(check[0], &[check[1], part.to_str().expect("a test's own file")]);
    }
}

fn same_but_for_the_table(target: &Path, image: &Path) {
    let read = |path: &Path| {
        let mut bytes = vec![0; (IMAGE - 2 * MIB) as usize];
        File::open(path).expect("a test's own file").read_exact_at(&mut bytes, MIB).expect("a test's own file");
        bytes
    };
    assert!(read(target) == read(image), "{} is not the image", target.display());
}

#[test]
fn other_programs_find_the_image_on_a_disk_that_was_used() {
    let folder = tempfile::tempdir().unwrap();
    let image = image(folder.path());
    let map = block_map(&image).unwrap().expect("it lies beside");
    let packed = folder.path().join("ember.img.zst");
    fs::write(&packed, zstd::encode_all(File::open(&image).unwrap(), 1).unwrap()).unwrap();
    let ways = [
        (image.clone(), None),
        (image.clone(), Some(map.clone())),
        (packed.clone(), None),
        (packed.clone(), block_map(&packed).unwrap()),
    ];
    assert_eq!(ways[3].1.as_ref(), Some(&map), "found for a packed image too");
    for (from, map) in ways {
        let target = used_disk(folder.path(), 160 * MIB + 512);
        let report = quietly(job(Image::File(from), map, &target)).unwrap();
        assert_eq!((report.image_bytes, report.target_bytes, report.table_moved), (IMAGE, 160 * MIB + 512, true));
        assert!(report.written < 16 * MIB, "{report:?}");
        is_sound(&target, folder.path());
        same_but_for_the_table(&target, &image);
    }
}

#[test]
fn a_target_of_the_image_s_length_is_the_image() {
    let folder = tempfile::tempdir().unwrap();
    let image = image(folder.path());
    let target = folder.path().join("new");
    let report = quietly(job(Image::File(image.clone()), None, &target)).unwrap();
    assert!(!report.table_moved && fs::read(&target).unwrap() == fs::read(&image).unwrap());
    assert_eq!(fs::metadata(&target).unwrap().len(), IMAGE);
    // What bmaptool writes of the same map is the same.
    let theirs = folder.path().join("theirs");
    let map = folder.path().join("ember.img.bmap");
    let [image, theirs_text, map] = [&image, &theirs, &map].map(|path| path.to_str().unwrap());
    passes("bmaptool", &["copy", "--bmap", map, image, theirs_text]);
    assert!(fs::read(&theirs).unwrap() == fs::read(&target).unwrap());
}

#[test]
fn machine_toml_lies_on_the_boot_partition() {
    let folder = tempfile::tempdir().unwrap();
    let image = image(folder.path());
    let target = used_disk(folder.path(), 128 * MIB);
    let config = "hostname = \"box-1\"\n".to_owned();
    let job = Job { config: Some(config.clone()), ..job(Image::File(image), None, &target) };
    quietly(job).unwrap();
    is_sound(&target, folder.path());
    let esp = folder.path().join("esp");
    assert_eq!(passes("mtype", &["-i", esp.to_str().unwrap(), "::machine.toml"]), config);
    assert!(passes("mdir", &["-b", "-i", esp.to_str().unwrap(), "::EFI/Linux"]).contains("ember-a.efi"));
}

#[test]
fn a_run_that_breaks_off_leaves_a_disk_that_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let image = image(folder.path());
    let map = block_map(&image).unwrap();
    let damaged = folder.path().join("damaged");
    fs::copy(&image, &damaged).unwrap();
    OpenOptions::new().write(true).open(&damaged).unwrap().write_all_at(&[1], 3 * MIB).unwrap();
    let target = used_disk(folder.path(), 128 * MIB);
    // It was one of ours before.
    quietly(job(Image::File(image.clone()), None, &target)).unwrap();
    let error = quietly(job(Image::File(damaged), map, &target)).unwrap_err();
    assert!(error.to_string().contains("are not those of its block map"), "{error}");
    assert!(!error.nothing_written());
    let again = job(Image::File(image), None, &target);
    assert!(again.target.unfinished());
    assert!(disk::partitions(&File::open(&target).unwrap()).is_err(), "it has no table, at its end neither");
    quietly(again).unwrap();
    assert!(!Target::look(&target, Path::new("/"), Guard::On).unwrap().unfinished());
    is_sound(&target, folder.path());
}

#[test]
fn what_is_written_is_counted_up_to_its_end() {
    let folder = tempfile::tempdir().unwrap();
    let image = image(folder.path());
    let map = block_map(&image).unwrap();
    let mapped = map.as_ref().unwrap().mapped() * 4096;
    let (mut written, mut verified) = (Vec::new(), Vec::new());
    let steps = |step| match step {
        Step::Write(done, total) => written.push((done, total)),
        Step::Verify(done, total) => verified.push((done, total)),
        Step::Clear => {}
    };
    flash(job(Image::File(image), map, &folder.path().join("new")), steps).unwrap();
    assert_eq!(written.last(), Some(&(mapped, Some(mapped))));
    assert!(written.is_sorted() && verified.is_sorted());
    let (right, total) = *verified.last().unwrap();
    assert_eq!(right, total);
}

#[test]
fn what_is_no_disk_is_refused_before_the_target_is_touched() {
    let folder = tempfile::tempdir().unwrap();
    let (short, target) = (folder.path().join("short"), used_disk(folder.path(), MIB));
    fs::write(&short, "hello").unwrap();
    let before = fs::read(&target).unwrap();
    let error = quietly(job(Image::File(short), None, &target)).unwrap_err();
    assert_eq!(error.to_string(), "the image: 5 bytes are no disk");
    assert!(quietly(job(Image::File(folder.path().join("none")), None, &target)).unwrap_err().nothing_written());
    assert!(fs::read(&target).unwrap() == before);
    fs::write(folder.path().join("x.bmap"), "<bmap>").unwrap();
    assert!(block_map(&folder.path().join("x")).unwrap_err().to_string().contains("x.bmap: block map: "));
}

/// A block device that is a file; gone with the test.
struct Loop(String);

impl Loop {
    fn of(file: &Path) -> Self {
        Self(passes("losetup", &["--find", "--show", "--partscan", file.to_str().expect("UTF-8")]).trim().to_owned())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("/usr/sbin/losetup").args(["--detach", &self.0]).status();
    }
}

/// A file system that is mounted; gone with the test.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[test]
#[ignore = "takes root and a free loop device: `cargo test --release -p firmware-flash --test disks -- --ignored`"]
fn a_block_device_is_flashed_and_refused_while_it_is_mounted() {
    let folder = tempfile::tempdir().unwrap();
    let image = image(folder.path());
    let backing = used_disk(folder.path(), 160 * MIB);
    let disk = Loop::of(&backing);
    let device = PathBuf::from(&disk.0);
    let look = |path: &Path, guard| Target::look(path, Path::new("/"), guard);
    let report = quietly(job(Image::File(image.clone()), block_map(&image).unwrap(), &device)).unwrap();
    assert_eq!((report.target_bytes, report.table_moved), (160 * MIB, true));
    is_sound(&device, folder.path());
    same_but_for_the_table(&device, &image);

    passes("partx", &["--update", &disk.0]);
    let data = PathBuf::from(format!("{}p2", disk.0));
    let partition = look(&data, Guard::On).unwrap_err().to_string();
    assert!(partition.contains("it is a partition"), "{partition}");
    let at = folder.path().join("mounted");
    fs::create_dir(&at).unwrap();
    passes("mount", &["-t", "ext4", data.to_str().unwrap(), at.to_str().unwrap()]);
    let mounted = Mounted(at);
    let refusal = look(&device, Guard::On).unwrap_err().to_string();
    assert!(refusal.contains("it is mounted") && refusal.contains("mounted)"), "{refusal}");
    let kind = look(&device, Guard::Off).unwrap().kind().clone();
    assert!(matches!(kind, Kind::Disk(disk) if disk.mounts.len() == 1));
    // What sysfs did not say, the kernel does: one that was looked at before it was mounted is not written either.
    drop(mounted);
    let looked_at = job(Image::File(image), None, &device);
    let at = folder.path().join("mounted");
    passes("mount", &["-t", "ext4", "-o", "ro,noload", data.to_str().unwrap(), at.to_str().unwrap()]);
    let mounted = Mounted(at);
    let error = quietly(looked_at).unwrap_err();
    assert!(error.to_string().contains("something on this machine uses it"), "{error}");
    assert!(error.nothing_written());
    drop(mounted);
}

/// bmaptool leaves a device's holes as they are, so the map must name every zero that counts. It empties files first.
#[test]
#[ignore = "takes root and a free loop device: `cargo test --release -p firmware-flash --test disks -- --ignored`"]
fn bmaptool_makes_a_sound_disk_of_one_that_was_used() {
    let folder = tempfile::tempdir().unwrap();
    let image = image(folder.path());
    let disk = Loop::of(&used_disk(folder.path(), IMAGE));
    let map = folder.path().join("ember.img.bmap");
    passes("bmaptool", &["copy", "--bmap", map.to_str().unwrap(), image.to_str().unwrap(), &disk.0]);
    is_sound(Path::new(&disk.0), folder.path());
}
