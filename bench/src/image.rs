//! S11 and S11-boot: how much of a disk an image without models takes, and how soon a machine that boots it answers.
//!
//! Size is what a writer writes, by the image's own block map, in MiB. The boot is from power on to the first answer over
//! HTTPS; its peer has the same firmware, boot loader, kernel and disk, and busybox's shell for an initramfs, from power on to
//! its prompt. Both in QEMU, by KVM with `EMBER_TEST_KVM=1`: by emulation what computes is a hundred times slower, and the
//! ratio is of the emulator.

use crate::{
    error::Error,
    figure::{Bar, Context, Figure, Measured, Side, interleave},
    process::run,
};
use images_builder::{
    bmap, debian, disk,
    initramfs::Tree,
    inspect,
    qemu::{DiskKind, Machine},
    uki::{self, Parts},
};
use std::{
    env,
    fs::{self, File},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

/// What `make image` builds.
const IMAGE: &str = "target/image/ember.img";
/// Where it unpacks Debian's packages.
const PACKAGES: &str = "target/image/packages";
const STUB: &str = "usr/lib/systemd/boot/efi/linuxx64.efi.stub";
const BUSYBOX: &str = "bin/busybox";
/// busybox's init does nothing but this.
const INITTAB: &str = "::respawn:/bin/sh\n";
const PROMPT: &str = "/ # ";
const MIB: f64 = (1 << 20) as f64;
const BOOTS: usize = 3;
const PATIENCE: Duration = Duration::from_secs(300);
const PAUSE: Duration = Duration::from_millis(100);

/// S11.
pub(crate) struct ImageSize;

/// S11-boot.
pub(crate) struct Boot;

impl Figure for ImageSize {
    fn name(&self) -> &'static str {
        "S11"
    }

    fn title(&self) -> &'static str {
        "MiB that are written of an image without models"
    }

    fn bar(&self) -> Bar {
        Bar::AtMost(64.0)
    }

    fn is_ready(&self) -> bool {
        Path::new(IMAGE).exists()
    }

    fn measure(&self, _: &Context) -> Result<Measured, Error> {
        let image = Path::new(IMAGE);
        let map = image.with_extension("img.bmap");
        let text = fs::read_to_string(&map).map_err(|source| Error::File { path: map, source })?;
        let blocks = bmap::Map::parse(&text).map_err(Error::setup)?.mapped();
        let ours = Side { label: "ember.img".into(), samples: vec![(blocks * bmap::BLOCK as u64) as f64 / MIB] };
        let peer = Side { label: "1 MiB".into(), samples: vec![1.0] };
        Ok(Measured { notes: parts(image)?, ..Measured::new("MiB", ours, peer) })
    }
}

impl Figure for Boot {
    fn name(&self) -> &'static str {
        "S11-boot"
    }

    fn title(&self) -> &'static str {
        "power on to the first answer ÷ to a shell on the same kernel"
    }

    fn bar(&self) -> Bar {
        Bar::AtMost(2.0)
    }

    fn is_ready(&self) -> bool {
        ImageSize.is_ready()
    }

    fn measure(&self, context: &Context) -> Result<Measured, Error> {
        let folder = tempfile::tempdir().map_err(Error::setup)?;
        let shell = shell_image(folder.path())?;
        let console = folder.path().join("console");
        let ours = || boot(Path::new(IMAGE), Stdio::null(), answers);
        let peer = || {
            let file = File::create(&console).map_err(|source| Error::File { path: console.clone(), source })?;
            boot(&shell, file.into(), |_| Ok(fs::read(&console).is_ok_and(|said| ends_in_prompt(&said))))
        };
        let (ours, peer) = interleave(context.rounds(BOOTS), ours, peer)?;
        let seconds = |side: &[f64]| side.iter().map(|s| format!("{s:.1}")).collect::<Vec<_>>().join(", ");
        let by = if is_kvm() { "KVM" } else { "emulation" };
        let notes = vec![format!("by {by}, seconds: {} to an answer, {} to a shell", seconds(&ours), seconds(&peer))];
        let ours = Side { label: "ember.img, to GET /health over HTTPS".into(), samples: ours };
        let peer = Side { label: "its kernel, to busybox's prompt".into(), samples: peer };
        Ok(Measured { notes, ..Measured::new("s", ours, peer) })
    }
}

fn ends_in_prompt(said: &[u8]) -> bool {
    String::from_utf8_lossy(said).contains(PROMPT)
}

/// The image, with a shell in its slot and nothing else.
fn shell_image(folder: &Path) -> Result<PathBuf, Error> {
    let (image, slot) = (folder.join("shell.img"), folder.join("slot"));
    fs::write(&slot, shell_uki()?).map_err(Error::setup)?;
    fs::copy(IMAGE, &image).map_err(Error::setup)?;
    let mut mcopy = Command::new("mcopy");
    let volume = format!("{}@@1M", image.display());
    mcopy.args(["-o", "-i", &volume]).arg(&slot).arg(format!("::{}", disk::FIRST_SLOT));
    run(mcopy)?;
    Ok(image)
}

fn shell_uki() -> Result<Vec<u8>, Error> {
    let file = File::open(IMAGE).map_err(Error::setup)?;
    let slices = disk::partitions(&file).map_err(Error::setup)?;
    let esp = slices.iter().find(|slice| slice.name == disk::ESP).ok_or_else(|| Error::setup("no boot partition"))?;
    let slot = disk::read_boot_file(&file, esp, disk::FIRST_SLOT).map_err(Error::setup)?.unwrap_or_default();
    let sections = uki::sections(&slot).map_err(Error::setup)?;
    let bytes = |name: &str| {
        let section = sections.iter().find(|section| section.name == name);
        let section = section.ok_or_else(|| Error::Setup(format!("the slot has no section {name}")))?;
        section.contents(&slot).map_err(Error::setup)
    };
    let text = |name: &str| Ok::<_, Error>(String::from_utf8_lossy(bytes(name)?).into_owned());
    let (os_release, command_line, release) = (text(".osrel")?, text(".cmdline")?, text(".uname")?);
    let parts = Parts {
        stub: &packaged("systemd-boot-efi", STUB)?,
        os_release: &os_release,
        command_line: &command_line,
        release: &release,
        linux: bytes(".linux")?,
        initrd: &shell_initramfs()?,
    };
    uki::build(&parts).map_err(Error::setup)
}

fn shell_initramfs() -> Result<Vec<u8>, Error> {
    let busybox = packaged("busybox-static", BUSYBOX)?;
    let mut tree = Tree::new();
    tree.file("init", busybox.clone(), true);
    tree.file("bin/sh", busybox, true);
    tree.file("etc/inittab", INITTAB.into(), false);
    Ok(tree.compressed())
}

/// A file of a Debian package.
fn packaged(package: &str, file: &str) -> Result<Vec<u8>, Error> {
    let path = debian::unpack(package, Path::new(PACKAGES)).map_err(Error::setup)?.root.join(file);
    fs::read(&path).map_err(|source| Error::File { path, source })
}

/// A line for each partition, slot, and section of a slot.
fn parts(image: &Path) -> Result<Vec<String>, Error> {
    let inspection = inspect(image).map_err(Error::setup)?;
    let line = |name: &str, bytes: u64| format!("{name:<28} {:7.2} MiB", bytes as f64 / MIB);
    let mut lines: Vec<_> = inspection.partitions.iter().map(|slice| line(&slice.name, slice.bytes)).collect();
    for slot in &inspection.slots {
        lines.push(line(&format!("{} {}", slot.file, slot.version), slot.bytes));
        lines.extend(slot.sections.iter().map(|section| line(&format!("  {}", section.name), u64::from(section.size))));
    }
    Ok(lines)
}

/// Asked for, not found out: a machine may have the device, and not run this firmware by it.
fn is_kvm() -> bool {
    env::var_os("EMBER_TEST_KVM").is_some()
}

/// Seconds from power on until `is_up`, which hears the port that the image answers on.
fn boot(image: &Path, console: Stdio, is_up: impl Fn(u16) -> Result<bool, Error>) -> Result<f64, Error> {
    let port = TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).map_err(Error::setup)?.port();
    let machine = Machine {
        image: image.to_owned(),
        port,
        telemetry_port: None,
        memory: 2 << 30,
        cpus: 1,
        disk: DiskKind::Virtio,
        nic: "virtio-net-pci".to_owned(),
        write: false,
        kvm: is_kvm(),
        log: None,
        secure_boot: None,
    };
    let began = Instant::now();
    let mut running = machine.start(console).map_err(Error::setup)?;
    while !is_up(port)? {
        if running.is_off() || began.elapsed() > PATIENCE {
            return Err(Error::NotReady { program: "the image".to_owned(), seconds: began.elapsed().as_secs() });
        }
        sleep(PAUSE);
    }
    Ok(began.elapsed().as_secs_f64())
}

fn answers(port: u16) -> Result<bool, Error> {
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--insecure", "--fail", "--max-time", "30"]).arg(format!("https://127.0.0.1:{port}/health"));
    let output = curl.output().map_err(|source| Error::Spawn { program: "curl".to_owned(), source })?;
    Ok(output.status.success())
}
