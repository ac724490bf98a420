//! A whole disk, built, read back by other programs, and built again.

use images_builder::{
    bmap::Map,
    data::{DataFile, Source, room_for},
    disk::{self, Contents},
    inspect,
    uki::{self, Parts},
};
use std::{
    fs::{self, File},
    path::Path,
    process::Command,
};

fn uki() -> Vec<u8> {
    let os_release = "ID=ember\nIMAGE_VERSION=0.1.0\n";
    let (linux, initrd) = (vec![1; 3 << 20], vec![2; 2 << 20]);
    let parts = Parts {
        stub: &uki::least_stub(),
        os_release,
        command_line: "quiet",
        release: "6.12.1",
        linux: &linux,
        initrd: &initrd,
    };
    uki::build(&parts).expect("the parts fit")
}

fn write(path: &Path, uki: &[u8]) {
    let contents = Contents { loader: b"loader", uki, esp_bytes: 72 << 20, data_bytes: 32 << 20, data_files: &[] };
    disk::write(path, &contents).expect("the contents fit");
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

#[test]
fn other_programs_find_nothing_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let (image, uki) = (folder.path().join("image"), uki());
    write(&image, &uki);
    let path = image.to_str().unwrap();
    assert!(passes("sgdisk", &["-v", path]).contains("No problems found"));
    let table = passes("sfdisk", &["--json", path]);
    assert!(table.contains("\"name\": \"esp\"") && table.contains("\"name\": \"data\""), "{table}");

    let partitions = disk::partitions(&File::open(&image).unwrap()).unwrap();
    for (slice, check) in partitions.iter().zip([&["fsck.vfat", "-n"], &["e2fsck", "-fn"]]) {
        let part = folder.path().join(&slice.name);
        disk::copy_out(&image, slice, &part).unwrap();
        passes(check[0], &[check[1], part.to_str().unwrap()]);
    }
    let esp = folder.path().join("esp");
    let copied = folder.path().join("copied");
    let (esp, to) = (esp.to_str().unwrap(), copied.to_str().unwrap());
    for loader in disk::LOADERS {
        passes("mcopy", &["-n", "-o", "-i", esp, &format!("::{loader}"), to]);
        assert_eq!(fs::read(&copied).unwrap(), b"loader");
    }
    passes("mcopy", &["-n", "-o", "-i", esp, &format!("::{}", disk::FIRST_SLOT), to]);
    assert_eq!(fs::read(&copied).unwrap(), uki);
}

#[test]
fn the_same_contents_are_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let uki = uki();
    let images = ["first", "second"].map(|name| {
        let path = folder.path().join(name);
        write(&path, &uki);
        Map::of(File::open(path).unwrap()).unwrap()
    });
    assert_eq!(images[0], images[1]);
    assert!(images[0].mapped() * 4096 < 16 << 20, "{} blocks", images[0].mapped());
}

#[test]
fn what_comes_along_is_read_back_by_other_programs_and_is_the_same_twice() {
    let folder = tempfile::tempdir().unwrap();
    let (model, uki) = (folder.path().join("a model's file.gguf"), uki());
    let bytes: Vec<u8> = (0..3 << 20).map(|at: u32| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    fs::write(&model, &bytes).unwrap();
    let files = [
        DataFile { to: "ember/preload/a.toml".to_owned(), from: Source::Bytes(b"name = \"a\"\n".to_vec()) },
        DataFile { to: "ember/models/m.gguf".to_owned(), from: Source::File(model, bytes.len() as u64) },
    ];
    let data_bytes = (32 << 20) + room_for(&files);
    let contents = Contents { loader: b"loader", uki: &uki, esp_bytes: 72 << 20, data_bytes, data_files: &files };
    let [first, second] = ["first", "second"].map(|name| folder.path().join(name));
    disk::write(&first, &contents).unwrap();
    // Times of this machine must not be in it.
    std::thread::sleep(std::time::Duration::from_millis(1100));
    disk::write(&second, &contents).unwrap();
    passes("cmp", &[first.to_str().unwrap(), second.to_str().unwrap()]);

    let slice = disk::partitions(&File::open(&first).unwrap()).unwrap().pop().unwrap();
    let part = folder.path().join("data");
    disk::copy_out(&first, &slice, &part).unwrap();
    let (part, to) = (part.to_str().unwrap(), folder.path().join("read back"));
    passes("e2fsck", &["-fn", part]);
    for (name, expected) in [("ember/preload/a.toml", b"name = \"a\"\n".as_slice()), ("ember/models/m.gguf", &bytes)] {
        passes("debugfs", &["-R", &format!("dump /{name} \"{}\"", to.display()), part]);
        assert!(fs::read(&to).unwrap() == expected, "{name}");
        let stat = passes("debugfs", &["-R", &format!("stat /{name}"), part]);
        assert!(stat.contains("Mode:  0444") && stat.contains("User:     0   Group:     0"), "{stat}");
    }
    // Blocks of it that are zeros count, too.
    let map = Map::with(File::open(&first).unwrap(), &disk::used(&first).unwrap()).unwrap();
    assert!(map.mapped() * 4096 > 11 << 20, "{} blocks", map.mapped());
}

#[test]
fn what_comes_along_and_does_not_fit_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (uki, files) = (uki(), [DataFile { to: "m".to_owned(), from: Source::File("absent".into(), 40 << 20) }]);
    let contents =
        |data_bytes| Contents { loader: b"loader", uki: &uki, esp_bytes: 72 << 20, data_bytes, data_files: &files };
    let refused =
        |data_bytes| disk::write(&folder.path().join("image"), &contents(data_bytes)).unwrap_err().to_string();
    assert_eq!(refused(32 << 20), "disk image: what comes along needs 58 MiB, the data partition has 32");
    let error = refused(64 << 20);
    assert!(error.contains("debugfs failed: do_write_internal: No such file"), "{error}");
}

#[test]
fn an_image_says_what_is_in_it() {
    let folder = tempfile::tempdir().unwrap();
    let (image, uki) = (folder.path().join("image"), uki());
    write(&image, &uki);
    let inspection = inspect(&image).unwrap();
    let names: Vec<_> = inspection.partitions.iter().map(|slice| (slice.name.as_str(), slice.bytes)).collect();
    assert_eq!(names, [("esp", 72 << 20), ("data", 32 << 20)]);
    let [slot] = inspection.slots.as_slice() else { panic!("{:?}", inspection.slots) };
    assert_eq!((slot.file.as_str(), slot.version.as_str(), slot.kernel.as_str()), ("ember-a.efi", "0.1.0", "6.12.1"));
    assert_eq!((slot.command_line.as_str(), slot.bytes), ("quiet", uki.len() as u64));

    let bytes = fs::read(&image).unwrap();
    fs::write(&image, &bytes[..4 << 20]).unwrap();
    assert!(inspect(&image).is_err(), "cut within the boot partition");
    fs::write(&image, b"nothing").unwrap();
    assert!(inspect(&image).is_err());
}

#[test]
fn what_does_not_fit_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let uki = vec![0; 30 << 20];
    let contents =
        Contents { loader: b"loader", uki: &uki, esp_bytes: 72 << 20, data_bytes: 32 << 20, data_files: &[] };
    let error = disk::write(&folder.path().join("image"), &contents).unwrap_err().to_string();
    assert_eq!(error, "disk image: three UKIs need 95 MiB, image.esp is 72 MiB");
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
}
