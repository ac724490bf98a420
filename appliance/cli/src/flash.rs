//! `ember flash`: an image onto a disk. Asks no server; asks the operator before anything is lost.

use crate::{
    args::{Flash, Listing},
    error::Error,
    output,
};
use appliance_fleet::check_enrolment;
use firmware_flash::{Disk, Guard, Image, Job, Kind, Report, Step, Target, block_map, disks, flash};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

/// Where sysfs, proc and dev are.
const ROOT: &str = "/";
const STDIN: &str = "-";

pub(crate) fn command(command: &Flash) -> Result<(), Error> {
    let Some(image) = &command.image else { return list(command) };
    let Some(device) = &command.device else {
        list(command)?;
        return Err(Error::Usage("name the disk to write: `ember flash IMAGE DEVICE`".to_owned()));
    };
    let image = if image == Path::new(STDIN) { Image::Stdin } else { Image::File(image.clone()) };
    if image == Image::Stdin && !command.yes {
        return Err(Error::Usage("the image comes from stdin, so nobody can be asked there: add --yes".to_owned()));
    }
    let config = command.config.as_deref().map(read_config).transpose()?;
    let map = map_of(command, &image)?;
    let guard = if command.force { Guard::Off } else { Guard::On };
    let target = Target::look(device, Path::new(ROOT), guard)?;
    if target.unfinished() {
        output::note(&format!("{}: an earlier flash did not end; it is written anew", device.display()));
    }
    if !command.yes {
        confirm(&target)?;
    }
    let job = Job { image, map, target, config, verify: !command.no_verify };
    let bars = Bars::default();
    let report = flash(job, |step| bars.show(step))?;
    bars.clear();
    print(&report, device, command.listing)
}

/// The disks that there are, system disks only if asked for.
fn list(command: &Flash) -> Result<(), Error> {
    let unreadable = |source| Error::Read { path: PathBuf::from("/sys/block"), source };
    let mut disks = disks(Path::new(ROOT)).map_err(unreadable)?;
    disks.retain(|disk| command.force || !disk.system);
    let value: Vec<Value> = disks.iter().map(disk_json).collect();
    output::print(command.listing, &Value::Array(value), || {
        let rows = disks.iter().map(|disk| {
            let kind = if disk.removable { "removable" } else { "fixed" };
            let mounts = if disk.mounts.is_empty() { output::NONE.to_owned() } else { disk.mounts.join(" ") };
            [
                disk.device().display().to_string(),
                output::bytes(disk.bytes),
                kind.to_owned(),
                disk.word().to_owned(),
                mounts,
            ]
        });
        Ok(output::table(["DEVICE", "SIZE", "KIND", "MODEL", "MOUNTED"], rows))
    })
}

fn disk_json(disk: &Disk) -> Value {
    json!({
        "device": disk.device(), "bytes": disk.bytes, "model": disk.model, "removable": disk.removable,
        "read_only": disk.read_only, "mounts": disk.mounts, "system": disk.system,
    })
}

/// A `machine.toml` that the box would not take is refused here.
fn read_config(path: &Path) -> Result<String, Error> {
    let text = fs::read_to_string(path).map_err(|source| Error::Read { path: path.into(), source })?;
    match firmware_init::check_machine(&text, |ca, certificate, key| {
        check_enrolment(ca, certificate, key).map_err(|error| error.to_string())
    }) {
        Ok(()) => Ok(text),
        Err(reason) => Err(Error::Manifest(format!("`{}`: {reason}", path.display()))),
    }
}

fn map_of(command: &Flash, image: &Image) -> Result<Option<images_builder::bmap::Map>, Error> {
    match (&command.bmap, image) {
        (Some(path), _) => {
            let text = fs::read_to_string(path).map_err(|source| Error::Read { path: path.clone(), source })?;
            Ok(Some(images_builder::bmap::Map::parse(&text)?))
        }
        (None, Image::File(path)) => Ok(block_map(path)?),
        (None, Image::Stdin) => Ok(None),
    }
}

/// Has the operator type what is about to be lost.
fn confirm(target: &Target) -> Result<(), Error> {
    let Some(word) = target.word() else { return Ok(()) };
    let what = match target.kind() {
        Kind::Disk(disk) => format!("disk {} of {}", target.path().display(), output::bytes(disk.bytes)),
        Kind::File => format!("file {}", target.path().display()),
    };
    output::note(&format!("everything on {what} will be lost; type {word:?} to go on:"));
    let mut typed = String::new();
    io::stdin().read_line(&mut typed).map_err(|source| Error::Read { path: "stdin".into(), source })?;
    if typed.trim() == word { Ok(()) } else { Err(Error::Unconfirmed { path: target.path().into(), word }) }
}

fn print(report: &Report, device: &Path, listing: Listing) -> Result<(), Error> {
    let seconds = |time: Duration| (time.as_secs_f64() * 1000.0).round() / 1000.0;
    let value = json!({
        "device": device, "image_bytes": report.image_bytes, "device_bytes": report.target_bytes,
        "written_bytes": report.written, "write_s": seconds(report.writing),
        "verify_s": report.verifying.map(seconds), "table_moved": report.table_moved,
    });
    output::print(listing, &value, || {
        let rate = report.written as f64 / report.writing.as_secs_f64().max(1e-9) / 1e6;
        let read = match report.verifying {
            Some(time) => format!("read back in {:.1} s: all as written", time.as_secs_f64()),
            None => "not read back".to_owned(),
        };
        Ok(format!(
            "{}: {} of {} written in {:.1} s ({rate:.0} MB/s), {read}",
            device.display(),
            output::bytes(report.written),
            output::bytes(report.image_bytes),
            report.writing.as_secs_f64(),
        ))
    })
}

/// A bar on stderr for what is written, then one for what is read back; hidden where that is no terminal.
struct Bars {
    bar: ProgressBar,
}

impl Default for Bars {
    fn default() -> Self {
        let bar = ProgressBar::no_length().with_style(style("{prefix} {bytes}, {bytes_per_sec}"));
        Self { bar: bar.with_prefix("writing") }
    }
}

impl Bars {
    fn show(&self, step: Step) {
        let bar = &self.bar;
        match step {
            Step::Write(done, total) => {
                if let (Some(total), None) = (total, bar.length()) {
                    bar.set_style(full_style());
                    bar.set_length(total);
                }
                bar.set_position(done);
            }
            Step::Clear => bar.set_prefix("clearing"),
            Step::Verify(done, total) => {
                if bar.prefix() != "reading back" {
                    bar.reset();
                    bar.set_style(full_style());
                    bar.set_prefix("reading back");
                    bar.set_length(total);
                }
                bar.set_position(done);
            }
        }
    }

    fn clear(&self) {
        self.bar.finish_and_clear();
    }
}

fn full_style() -> ProgressStyle {
    style("{prefix} {bar:30} {percent:>3}% {bytes_per_sec}, {eta} left")
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("a constant template that a test draws")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::SystemTime;

    #[test]
    fn bars_go_through_all_steps() {
        let bars = Bars::default();
        let steps =
            [Step::Write(1, None), Step::Write(5, Some(10)), Step::Clear, Step::Verify(3, 6), Step::Verify(6, 6)];
        steps.into_iter().for_each(|step| bars.show(step));
        assert_eq!((bars.bar.position(), bars.bar.length(), bars.bar.prefix().as_str()), (6, Some(6), "reading back"));
        bars.clear();
    }

    #[test]
    fn a_machine_toml_that_no_box_takes_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "hostname = \"box-1\"\n").unwrap();
        assert_eq!(read_config(file.path()).unwrap(), "hostname = \"box-1\"\n");
        fs::write(file.path(), "hostnam = \"box-1\"\n").unwrap();
        let error = read_config(file.path()).unwrap_err().to_string();
        assert!(error.contains("line 1, column 1") && error.contains("hostnam"), "{error}");
    }

    #[test]
    fn what_a_fleet_enrolled_is_taken_and_refused_with_a_line_less() {
        let fleet = tempfile::tempdir().unwrap();
        let enrolled =
            appliance_fleet::enrol(fleet.path(), &"shop-7".parse().unwrap(), &[], SystemTime::now()).unwrap();
        let text = read_config(&enrolled.machine_toml).unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        for at in text.lines().enumerate().filter(|(_, line)| line.len() == 64).map(|(number, _)| number) {
            let rest: Vec<_> = text.lines().enumerate().filter(|(number, _)| *number != at).collect();
            fs::write(file.path(), rest.into_iter().map(|(_, line)| format!("{line}\n")).collect::<String>()).unwrap();
            let error = read_config(file.path()).unwrap_err().to_string();
            assert!(error.contains("[telemetry]"), "without line {at}: {error}");
        }
    }
}
