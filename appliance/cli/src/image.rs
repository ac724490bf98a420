//! `ember image`: builds the bootable image, says what is in one, and boots it in QEMU. Asks no server.

use crate::{
    args::{Image, Listing},
    error::Error,
    output,
};
use images_builder::{Built, Inspection, Recipe, build, inspect, qemu::Machine};
use serde_json::{Value, json};
use std::fmt::Write as _;

pub(crate) fn command(command: &Image) -> Result<(), Error> {
    match command {
        Image::Build { recipe, out, cache, listing } => {
            let recipe = Recipe::read(recipe)?;
            let built =
                build(&recipe, env!("CARGO_PKG_VERSION"), out, cache, |step| output::note(&format!("{step} ...")))?;
            print_built(&built, *listing)
        }
        Image::Boot { file, port, memory, cpus, disk, nic, write, kvm } => {
            let machine = Machine {
                image: file.clone(),
                port: *port,
                memory: *memory,
                cpus: *cpus,
                disk: *disk,
                nic: nic.clone(),
                write: *write,
                kvm: *kvm,
            };
            output::note(&format!("booting {}; it will answer on https://127.0.0.1:{port}", file.display()));
            Ok(machine.run()?)
        }
        Image::Inspect { file, listing } => print_inspection(&inspect(file)?, *listing),
    }
}

fn print_built(built: &Built, listing: Listing) -> Result<(), Error> {
    let value = json!({
        "image": built.image, "bmap": built.bmap, "bytes": built.bytes, "written_bytes": built.written,
        "uki_bytes": built.uki, "kernel": built.kernel, "modules": built.modules,
    });
    output::print(listing, &value, || {
        Ok(format!(
            "{}: {} of {} to write; slot {}, Linux {}, {} modules",
            built.image.display(),
            mib(built.written),
            mib(built.bytes),
            mib(built.uki),
            built.kernel,
            built.modules
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
