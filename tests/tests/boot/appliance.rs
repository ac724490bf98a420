//! A machine that boots the image, as QEMU has it: its disk, its console, and its ports.

use images_builder::{
    disk,
    qemu::{DiskKind, Machine, Running},
};
use std::{
    fs::{self, File, OpenOptions},
    net::TcpListener,
    path::{Path, PathBuf},
    process::Command,
    thread::sleep,
    time::{Duration, Instant},
};
use tests::{Run, tree, write_log::copy_part};

/// Of a box that never was: keys have a checksum, so it was made by one.
pub(crate) const ADMIN_KEY: &str = "ember-aoKMRGKujeTqhUn_VdHW_Y_GOjkWSCrNl1dkx6blgQtSabnU";
/// By emulation everything takes ten times as long, and what computes a hundred times. `EMBER_TEST_PATIENCE` says another.
const PATIENCE: Duration = Duration::from_secs(400);
const MEMORY: u64 = 2 << 30;
const PAUSE: Duration = Duration::from_millis(500);

/// How a machine is made.
pub(crate) struct Setup<'a> {
    pub(crate) disk: DiskKind,
    pub(crate) nic: &'a str,
    pub(crate) machine_toml: &'a str,
    /// Length of its disk, at least the image's.
    pub(crate) disk_bytes: u64,
    /// A UKI in place of the image's.
    pub(crate) uki: Option<Vec<u8>>,
}

/// What few machines have.
#[derive(Default)]
pub(crate) struct Special<'a> {
    /// Its disk, in place of the image that was built; with it no `machine.toml` is put there unless it says something.
    pub(crate) image: Option<&'a Path>,
    /// Whether each write to its disk is recorded, from [`START`] on, in [`WRITES`].
    pub(crate) is_recorded: bool,
    /// What its firmware knows of Secure Boot.
    pub(crate) secure_boot: Option<&'a Path>,
}

/// The disk of a machine that is recorded, as it was before it was turned on.
pub(crate) const START: &str = "start.img";
/// What was written to it since.
pub(crate) const WRITES: &str = "writes";

/// A machine that is on. Dropped, it is cut off from its power.
pub(crate) struct Appliance {
    folder: tempfile::TempDir,
    port: u16,
    telemetry_port: u16,
    running: Running,
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// The image that `make image` built.
pub(crate) fn built() -> PathBuf {
    let image = tree::root().join("target/image/ember.img");
    assert!(image.exists(), "{} is not there: run `make image`", image.display());
    image
}

impl Appliance {
    /// Turns a machine on.
    pub(crate) fn boot(setup: &Setup) -> Self {
        Self::boot_special(setup, &Special::default())
    }

    /// Turns a machine on that has what few have.
    pub(crate) fn boot_special(setup: &Setup, special: &Special) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (image, console) = (folder.path().join("ember.img"), folder.path().join("console"));
        copy(&special.image.map_or_else(built, Path::to_owned), &image);
        let file = OpenOptions::new().write(true).open(&image).unwrap();
        file.set_len(setup.disk_bytes.max(file.metadata().unwrap().len())).unwrap();
        if !setup.machine_toml.is_empty() {
            put(&image, "machine.toml", setup.machine_toml.as_bytes());
        }
        if let Some(uki) = &setup.uki {
            put(&image, disk::FIRST_SLOT, uki);
        }
        if special.is_recorded {
            copy(&image, &folder.path().join(START));
        }
        let (port, telemetry_port) = (free_port(), free_port());
        let machine = Machine {
            image,
            port,
            telemetry_port: Some(telemetry_port),
            // What loads and what is captured are several times a model that is not tiny.
            memory: if std::env::var_os("EMBER_TEST_MODEL").is_some() { 2 * MEMORY } else { MEMORY },
            // With more, QEMU 7.2's emulation lets one processor run into what another is patching: an int3 in the kernel.
            cpus: 1,
            disk: setup.disk,
            nic: setup.nic.to_owned(),
            write: true,
            kvm: std::env::var_os("EMBER_TEST_KVM").is_some(),
            log: special.is_recorded.then(|| folder.path().join(WRITES)),
            secure_boot: special.secure_boot.map(Path::to_owned),
        };
        let running = machine.start(File::create(console).unwrap().into()).unwrap();
        Self { folder, port, telemetry_port, running }
    }

    /// Cuts it off from its power; the folder with all of its files.
    pub(crate) fn cut_off(self) -> tempfile::TempDir {
        drop(self.running);
        self.folder
    }

    /// A file of the test's, beside the disk.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// What the console has said so far.
    pub(crate) fn said(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.path("console")).unwrap()).into_owned()
    }

    /// Waits until the console has said `text` `times` times.
    #[track_caller]
    pub(crate) fn says(&mut self, text: &str, times: usize) {
        self.until(&format!("the console says {text:?} {times} times"), |machine| {
            (machine.said().matches(text).count() >= times).then_some(())
        });
    }

    /// What `look` gives once it gives something, while the machine is on.
    #[track_caller]
    pub(crate) fn until<T>(&mut self, what: &str, mut look: impl FnMut(&Self) -> Option<T>) -> T {
        let until = Instant::now() + patience();
        loop {
            if let Some(found) = look(self) {
                return found;
            }
            let is_over = Instant::now() >= until || self.running.is_off();
            assert!(!is_over, "{what}: never; the console:\n{}", self.said());
            sleep(PAUSE);
        }
    }

    /// Status and body of what a path answers. `None` while nobody answers.
    pub(crate) fn get(&self, path: &str, key: Option<&str>) -> Option<(u16, String)> {
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--insecure", "--max-time", "60", "--write-out", "\n%{http_code}"]);
        if let Some(key) = key {
            curl.args(["--header", &format!("authorization: Bearer {key}")]);
        }
        let output = curl.arg(format!("https://127.0.0.1:{}{path}", self.port)).output().expect("curl");
        let text = String::from_utf8(output.stdout).unwrap();
        let (body, status) = text.rsplit_once('\n')?;
        status.parse().ok().filter(|status| *status != 0).map(|status| (status, body.to_owned()))
    }

    /// A file of the data partition, as a reader of its disk finds it: the journal is replayed on a copy.
    pub(crate) fn read_data(&self, path: &str) -> Option<String> {
        let image = self.path("ember.img");
        let slices = disk::partitions(&File::open(&image).unwrap()).ok()?;
        let (copy, data) = (self.path("data"), slices.iter().find(|slice| slice.name == disk::DATA)?);
        disk::copy_out(&image, data, &copy).unwrap();
        let tool = |program: &str, arguments: &[&str]| {
            let mut command = Command::new(program);
            command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").args(arguments).arg(&copy);
            command.output().expect("a program of e2fsprogs")
        };
        tool("e2fsck", &["-fy"]);
        let output = tool("debugfs", &["-R", &format!("cat {path}")]);
        String::from_utf8(output.stdout).ok().filter(|text| !text.is_empty())
    }

    /// `ember`, as its operator runs it from another machine.
    pub(crate) fn ember(&self, arguments: &[&str]) -> Run {
        let key = self.path("admin.key");
        fs::write(&key, ADMIN_KEY).unwrap();
        let mut command = Command::new(tree::program("ember"));
        command.args(["--server", &format!("https://127.0.0.1:{}", self.port), "--key-file"]).arg(key);
        run(command.arg("--ca").arg(self.path("ca.pem")).args(arguments))
    }

    /// `ember fleet`, as its fleet runs it.
    pub(crate) fn fleet(&self, arguments: &[&str]) -> Run {
        let mut command = Command::new(tree::program("ember"));
        run(command.arg("fleet").args(arguments).env("EMBER_FLEET", self.path("fleet")))
    }

    /// Where a fleet reaches it.
    pub(crate) fn telemetry_url(&self) -> String {
        format!("https://127.0.0.1:{}", self.telemetry_port)
    }
}

fn patience() -> Duration {
    let said = std::env::var("EMBER_TEST_PATIENCE").ok();
    said.map_or(PATIENCE, |text| Duration::from_secs(text.parse().expect("EMBER_TEST_PATIENCE is a number of seconds")))
}

fn copy(from: &Path, to: &Path) {
    let from = File::open(from).unwrap();
    copy_part(&from, 0..from.metadata().unwrap().len(), to).unwrap();
}

/// To its end, however long that takes: by emulation it may be minutes.
fn run(command: &mut Command) -> Run {
    let output = command.output().expect("ember");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("programs print UTF-8");
    Run { code: output.status.code().unwrap_or(-1), stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// Puts a file onto the boot partition.
fn put(image: &Path, name: &str, bytes: &[u8]) {
    let file = image.with_extension("put");
    fs::write(&file, bytes).unwrap();
    let (volume, to) = (format!("{}@@1M", image.display()), format!("::{name}"));
    let status = Command::new("mcopy").args(["-o", "-i", &volume]).arg(&file).arg(to).status().expect("mtools");
    assert!(status.success());
}
