//! `ember image`: builds the bootable image, says what is in one, makes update bundles of it, and boots it in QEMU. Asks no server.

use crate::{
    args::{Image, Listing},
    error::Error,
    output,
};
use firmware_bundle::{MACHINE, Manifest, minisign::SecretKey};
use firmware_slots::Version;
use images_builder::{Built, ImageError, Inspection, Recipe, Signer, build, disk, inspect, qemu::Machine, uki};
use serde_json::{Value, json};
use std::{
    fmt::Write as _,
    fs::{self, File, OpenOptions},
    io::Write as _,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

pub(crate) fn command(command: &Image) -> Result<(), Error> {
    match command {
        Image::Build { recipe, out, cache, sign, listing } => {
            let recipe = Recipe::read(recipe)?;
            let signer = sign.as_deref().and_then(signer);
            let step = |step: &str| output::note(&format!("{step} ..."));
            let built = build(&recipe, env!("CARGO_PKG_VERSION"), signer.as_ref(), out, cache, step)?;
            print_built(&built, *listing)
        }
        Image::Boot { file, port, memory, cpus, disk, nic, write, kvm } => {
            let machine = Machine {
                image: file.clone(),
                port: *port,
                telemetry_port: None,
                memory: *memory,
                cpus: *cpus,
                disk: *disk,
                nic: nic.clone(),
                write: *write,
                kvm: *kvm,
                log: None,
                secure_boot: None,
            };
            output::note(&format!("booting {}; it will answer on https://127.0.0.1:{port}", file.display()));
            Ok(machine.run()?)
        }
        Image::Inspect { file, listing } => print_inspection(&inspect(file)?, *listing),
        Image::Bundle { image, key, minimum, out, listing } => bundle(image, key, *minimum, out, *listing),
        Image::Key { file } => make_key(file),
    }
}

/// Clap takes two paths or none.
fn signer(pair: &[PathBuf]) -> Option<Signer> {
    let [key, certificate] = pair else { return None };
    Some(Signer { key: key.clone(), certificate: certificate.clone() })
}

/// The first slot of `image`, signed with `key`.
fn bundle(image: &Path, key: &Path, minimum: Version, out: &Path, listing: Listing) -> Result<(), Error> {
    let read = |path: &Path| fs::read_to_string(path).map_err(|source| Error::Read { path: path.into(), source });
    let key = SecretKey::parse(&read(key)?)?;
    let disk = File::open(image).map_err(|source| Error::Read { path: image.into(), source })?;
    let no_slot = || ImageError::Disk(format!("{} has no slot that says its version", image.display()));
    let partitions = disk::partitions(&disk)?;
    let esp = partitions.iter().find(|slice| slice.name == disk::ESP).ok_or_else(no_slot)?;
    let uki = disk::read_boot_file(&disk, esp, disk::FIRST_SLOT)?.ok_or_else(no_slot)?;
    let version = uki::image_version(&uki).and_then(|version| version.parse().ok()).ok_or_else(no_slot)?;
    let manifest = Manifest::of(&uki, version, minimum, MACHINE);
    let unwritable = |source| Error::Write { path: out.into(), source };
    firmware_bundle::write(File::create(out).map_err(unwritable)?, &uki, &manifest, &key)?;
    let value = json!({ "bundle": out, "version": manifest.version, "minimum": manifest.minimum,
        "compatible": manifest.compatible, "uki_bytes": manifest.size, "uki_blake3": manifest.blake3 });
    output::print(listing, &value, || {
        let Manifest { version, compatible, size, .. } = &manifest;
        Ok(format!("{}: version {version} for {compatible}, {}", out.display(), mib(*size)))
    })
}

/// A pair of keys; one that is there is never overwritten.
fn make_key(file: &Path) -> Result<(), Error> {
    let mut public = file.as_os_str().to_owned();
    public.push(".pub");
    let mut random = [0; 40];
    getrandom::fill(&mut random).expect("the kernel has random bytes once it has booted");
    let key = SecretKey::from_random(random);
    for (path, text, mode) in [(file, key.text(), 0o600), (Path::new(&public), key.public_text(), 0o644)] {
        let made = OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
        let written = made.and_then(|mut file| file.write_all(text.as_bytes()));
        written.map_err(|source| Error::Write { path: path.into(), source })?;
    }
    output::note(&format!(
        "keep {} secret; images with {} take its bundles",
        file.display(),
        Path::new(&public).display()
    ));
    Ok(())
}

fn print_built(built: &Built, listing: Listing) -> Result<(), Error> {
    let value = json!({
        "image": built.image, "bmap": built.bmap, "bytes": built.bytes, "written_bytes": built.written,
        "uki_bytes": built.uki, "kernel": built.kernel, "modules": built.modules,
        "functions": built.functions,
    });
    output::print(listing, &value, || {
        let with = if built.functions.is_empty() { "" } else { ", with " };
        Ok(format!(
            "{}: {} of {} to write; slot {}, Linux {}, {} modules{with}{}",
            built.image.display(),
            mib(built.written),
            mib(built.bytes),
            mib(built.uki),
            built.kernel,
            built.modules,
            built.functions.join(", ")
        ))
    })
}

fn print_inspection(inspection: &Inspection, listing: Listing) -> Result<(), Error> {
    let partitions: Vec<_> = inspection
        .partitions
        .iter()
        .map(|slice| json!({"name": slice.name, "offset": slice.offset, "bytes": slice.bytes}))
        .collect();
    let slots: Vec<Value> = inspection
        .slots
        .iter()
        .map(|slot| {
            let sections: Vec<_> =
                slot.sections.iter().map(|s| json!({"name": s.name, "offset": s.offset, "bytes": s.size})).collect();
            json!({
                "file": slot.file, "bytes": slot.bytes, "version": slot.version, "kernel": slot.kernel,
                "command_line": slot.command_line, "sections": sections,
            })
        })
        .collect();
    let value = json!({"bytes": inspection.bytes, "partitions": partitions, "slots": slots});
    output::print(listing, &value, || Ok(text(inspection)))
}

fn text(inspection: &Inspection) -> String {
    let mut text = format!("disk       {:>10}\n", mib(inspection.bytes));
    let mut line = |line: std::fmt::Arguments| writeln!(text, "{line}").expect("a String takes all text");
    for slice in &inspection.partitions {
        line(format_args!("partition  {:>10}  {}", mib(slice.bytes), slice.name));
    }
    for slot in &inspection.slots {
        line(format_args!("slot       {:>10}  {}  version {}", mib(slot.bytes), slot.file, slot.version));
        line(format_args!("           Linux {}, command line: {}", slot.kernel, slot.command_line));
        for section in &slot.sections {
            line(format_args!("  section  {:>10}  {}", mib(section.size.into()), section.name));
        }
    }
    text.trim_end().to_owned()
}

fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}
