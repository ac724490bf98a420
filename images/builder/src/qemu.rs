//! An image as a machine of QEMU's: UEFI, a disk, a network interface, the console on stdout.
//!
//! By emulation, which takes 20 to 60 s to the first answer; by KVM where that is asked for. The image's answers are
//! forwarded to a port of this machine; it reaches nothing else.

use crate::ImageError;
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    str::FromStr,
};
use tempfile::TempDir;

/// Debian's build of the firmware.
const FIRMWARE: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";
const FIRMWARE_VARIABLES: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";
/// The same with Secure Boot, which wants a processor with a mode of the firmware's own (SMM).
const FIRMWARE_SECURE: &str = "/usr/share/OVMF/OVMF_CODE_4M.secboot.fd";
/// Where requests are answered in the image, and telemetry.
const PORT: u16 = 8443;
const TELEMETRY_PORT: u16 = 9443;

/// What the disk is attached to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskKind {
    /// virtio-blk
    Virtio,
    /// NVMe
    Nvme,
    /// SATA
    Ahci,
    /// A USB stick
    Usb,
}

impl FromStr for DiskKind {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "virtio" => Ok(Self::Virtio),
            "nvme" => Ok(Self::Nvme),
            "ahci" => Ok(Self::Ahci),
            "usb" => Ok(Self::Usb),
            other => Err(format!("{other:?} is none of virtio, nvme, ahci, usb")),
        }
    }
}

/// A machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// The image.
    pub image: PathBuf,
    /// Port of this machine that is forwarded.
    pub port: u16,
    /// Port of this machine that is forwarded to where telemetry is answered, if any.
    pub telemetry_port: Option<u16>,
    /// Bytes of memory.
    pub memory: u64,
    /// Processors.
    pub cpus: u32,
    /// The disk.
    pub disk: DiskKind,
    /// The network interface, by QEMU's name.
    pub nic: String,
    /// Whether what is written to the disk stays.
    pub write: bool,
    /// Whether by KVM.
    pub kvm: bool,
    /// Where each write to the disk is recorded, by QEMU's `blklogwrites`, in the order in which they were done; made anew.
    pub log: Option<PathBuf>,
    /// What a firmware with Secure Boot remembers, its keys above all; without, the firmware starts everything.
    pub secure_boot: Option<PathBuf>,
}

/// A machine that is on. Dropped, it is cut off from its power.
#[derive(Debug)]
pub struct Running {
    child: Child,
    /// What its firmware remembers.
    _variables: TempDir,
}

impl Running {
    /// Whether it is off.
    pub fn is_off(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits until it is off.
    ///
    /// # Errors
    /// [`ImageError::Program`] when it cannot be waited for.
    pub fn wait(&mut self) -> Result<ExitStatus, ImageError> {
        self.child.wait().map_err(|error| failed(error.to_string()))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Machine {
    /// Turns it on, with its console on `console`.
    ///
    /// # Errors
    /// [`ImageError::Program`] when QEMU or its firmware is missing.
    pub fn start(&self, console: Stdio) -> Result<Running, ImageError> {
        let folder = tempfile::tempdir().map_err(|error| failed(error.to_string()))?;
        let variables = folder.path().join("variables");
        let remembered = self.secure_boot.as_deref().unwrap_or(Path::new(FIRMWARE_VARIABLES));
        let missing = |error| failed(format!("{}: {error}; install the package ovmf", remembered.display()));
        fs::copy(remembered, &variables).map_err(missing)?;
        if let Some(log) = &self.log {
            File::create(log).map_err(|error| failed(format!("{}: {error}", log.display())))?;
        }
        let child = Command::new("qemu-system-x86_64")
            .args(self.arguments(&variables))
            .stdin(Stdio::null())
            .stdout(console)
            .spawn()
            .map_err(|error| failed(format!("{error}; install the package qemu-system-x86")))?;
        Ok(Running { child, _variables: folder })
    }

    /// Runs it until it is off, with its console on stdout.
    ///
    /// # Errors
    /// [`ImageError::Program`] when QEMU or its firmware is missing, or QEMU fails.
    pub fn run(&self) -> Result<(), ImageError> {
        let status = self.start(Stdio::inherit())?.wait()?;
        if status.success() { Ok(()) } else { Err(failed(status.to_string())) }
    }

    fn arguments(&self, variables: &Path) -> Vec<String> {
        let mut arguments: Vec<String> = Vec::new();
        let mut add = |flag: &str, value: String| arguments.extend([flag.to_owned(), value]);
        add("-accel", if self.kvm { "kvm" } else { "tcg" }.to_owned());
        let secure = self.secure_boot.is_some();
        add("-machine", if secure { "q35,smm=on" } else { "q35" }.to_owned());
        add("-cpu", "max".to_owned());
        add("-m", format!("{}M", self.memory >> 20));
        add("-smp", self.cpus.to_string());
        add("-display", "none".to_owned());
        add("-serial", "stdio".to_owned());
        if secure {
            add("-global", "driver=cfi.pflash01,property=secure,value=on".to_owned());
        }
        let firmware = if secure { FIRMWARE_SECURE } else { FIRMWARE };
        add("-drive", format!("if=pflash,unit=0,format=raw,readonly=on,file={firmware}"));
        add("-drive", format!("if=pflash,unit=1,format=raw,file={}", escaped(variables)));
        match &self.log {
            None => {
                let keep = if self.write { "off" } else { "on" };
                add("-drive", format!("if=none,id=disk,format=raw,snapshot={keep},file={}", escaped(&self.image)));
            }
            // What reached the host's page cache survives the end of QEMU: flushes are recorded, and need not be done.
            Some(log) => {
                for (name, path) in [("image", &self.image), ("log", log)] {
                    let path = escaped(path);
                    add("-blockdev", format!("driver=file,node-name={name},cache.no-flush=on,filename={path}"));
                }
                add("-blockdev", "driver=blklogwrites,node-name=both,file=image,log=log".to_owned());
                add("-blockdev", "driver=raw,node-name=disk,file=both".to_owned());
            }
        }
        match self.disk {
            // Merged requests are of as many pieces as one call of the host's takes; the log adds two.
            DiskKind::Virtio if self.log.is_some() => {
                add("-device", "virtio-blk-pci,drive=disk,request-merging=off".to_owned());
            }
            DiskKind::Virtio => add("-device", "virtio-blk-pci,drive=disk".to_owned()),
            DiskKind::Nvme => add("-device", "nvme,drive=disk,serial=ember".to_owned()),
            DiskKind::Ahci => add("-device", "ide-hd,drive=disk,bus=ide.0".to_owned()),
            DiskKind::Usb => {
                add("-device", "qemu-xhci".to_owned());
                add("-device", "usb-storage,drive=disk".to_owned());
            }
        }
        let forward = |from: u16, to: u16| format!(",hostfwd=tcp:127.0.0.1:{from}-:{to}");
        let telemetry = self.telemetry_port.map(|from| forward(from, TELEMETRY_PORT)).unwrap_or_default();
        add("-netdev", format!("user,id=net,restrict=on{}{telemetry}", forward(self.port, PORT)));
        add("-device", format!("{},netdev=net,romfile=", self.nic));
        add("-device", "i6300esb".to_owned());
        arguments.extend(["-nodefaults", "-no-user-config"].map(str::to_owned));
        arguments
    }
}

fn failed(reason: String) -> ImageError {
    ImageError::Program { program: "qemu-system-x86_64", reason }
}

/// A comma in a value is written twice.
fn escaped(path: &Path) -> String {
    path.to_string_lossy().replace(',', ",,")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(disk: DiskKind) -> Machine {
        Machine {
            image: "a,b.img".into(),
            port: 9000,
            telemetry_port: Some(9001),
            memory: 1 << 30,
            cpus: 2,
            disk,
            nic: "e1000e".to_owned(),
            write: false,
            kvm: disk == DiskKind::Usb,
            log: None,
            secure_boot: None,
        }
    }

    #[test]
    fn a_machine_is_what_was_asked_for() {
        let line = machine(DiskKind::Nvme).arguments(Path::new("vars")).join(" ");
        for part in [
            "-accel tcg",
            "-m 1024M -smp 2",
            "snapshot=on,file=a,,b.img",
            "nvme,drive=disk",
            "restrict=on,hostfwd=tcp:127.0.0.1:9000-:8443,hostfwd=tcp:127.0.0.1:9001-:9443",
            "e1000e,netdev=net",
        ] {
            assert!(line.contains(part), "{part}: {line}");
        }
        let usb = machine(DiskKind::Usb).arguments(Path::new("vars")).join(" ");
        assert!(usb.contains("-accel kvm") && usb.contains("qemu-xhci -device usb-storage"), "{usb}");
    }

    #[test]
    fn writes_are_recorded_and_secure_boot_is_on_where_that_is_asked_for() {
        let usual = machine(DiskKind::Virtio);
        let recorded = Machine { log: Some("log".into()), ..usual.clone() };
        let line = recorded.arguments(Path::new("vars")).join(" ");
        assert!(line.contains("node-name=both,file=image,log=log") && !line.contains("id=disk"), "{line}");
        let secure = Machine { secure_boot: Some("keys".into()), ..usual };
        let line = secure.arguments(Path::new("vars")).join(" ");
        assert!(line.contains("-machine q35,smm=on") && line.contains("CODE_4M.secboot.fd"), "{line}");
    }

    #[test]
    fn disks_have_names() {
        assert_eq!("ahci".parse(), Ok(DiskKind::Ahci));
        assert_eq!("floppy".parse::<DiskKind>(), Err("\"floppy\" is none of virtio, nvme, ahci, usb".to_owned()));
    }
}
