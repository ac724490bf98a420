//! `bench flash`: an image onto a file by `ember flash`, `bmaptool copy` and `dd oflag=direct`, in turns.
//!
//! The image has data in every other 4 MiB, as `--mib` says how much in all; each target is a file of its length on the
//! file system of `--folder`, written anew each time and synced to its end by each program. Ours writes only, then writes
//! and reads back, which the others do not do; dd writes the holes too. Wall time; the page cache has the image.

use crate::{ember::sibling, error::Error, figure::median, process::run};
use fastrand::Rng;
use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::Path,
    process::Command,
    time::Instant,
};

const MIB: u64 = 1 << 20;
const STRIPE: u64 = 4 * MIB;
const SEED: u64 = 1;

/// Prints a line a program.
pub(crate) fn measure(folder: &Path, mib: u64, rounds: usize) -> Result<(), Error> {
    let scratch = tempfile::tempdir_in(folder).map_err(Error::setup)?;
    let at = |name: &str| scratch.path().join(name).display().to_string();
    let (image, map, target) = (at("image"), at("image.bmap"), at("target"));
    let data = write_image(Path::new(&image), mib * MIB).map_err(Error::setup)?;
    let mut create = Command::new("bmaptool");
    create.args(["create", "-o", &map, &image]);
    run(create)?;
    let ember = sibling("ember")?.display().to_string();
    let ways: [(&str, Vec<&str>); 4] = [
        ("ember flash --no-verify", vec![&ember, "flash", &image, &target, "--yes", "--no-verify"]),
        ("ember flash", vec![&ember, "flash", &image, &target, "--yes"]),
        ("bmaptool copy", vec!["bmaptool", "copy", "--bmap", &map, &image, &target]),
        ("dd oflag=direct", vec!["dd", "bs=1M", "oflag=direct", "conv=fsync", "status=none"]),
    ];
    let [from, to] = [format!("if={image}"), format!("of={target}")];
    let mut seconds = [const { Vec::new() }; 4];
    for round in 0..rounds {
        for turn in 0..ways.len() {
            let way = (round + turn) % ways.len();
            let arguments = &ways[way].1;
            let mut command = Command::new(arguments[0]);
            command.args(&arguments[1..]);
            if arguments[0] == "dd" {
                command.args([&from, &to]);
            }
            seconds[way].push(timed(command, Path::new(&target), mib * MIB)?);
        }
    }
    println!("{mib} MiB, {} MiB of them data, {rounds} rounds, in {}", data / MIB, folder.display());
    for ((name, _), seconds) in ways.iter().zip(&seconds) {
        let (least, most) = seconds.iter().fold((f64::MAX, 0.0_f64), |(a, b), s| (a.min(*s), b.max(*s)));
        println!("{name:24} {:6.2} s  ({least:.2} to {most:.2})", median(seconds));
    }
    Ok(())
}

/// Runs `command` on an empty target, and checks that it has the length of the image.
fn timed(command: Command, target: &Path, bytes: u64) -> Result<f64, Error> {
    let _ = fs::remove_file(target);
    File::create(target).and_then(|file| file.set_len(bytes)).map_err(Error::setup)?;
    let began = Instant::now();
    run(command)?;
    File::open(target).and_then(|file| file.sync_all()).map_err(Error::setup)?;
    let seconds = began.elapsed().as_secs_f64();
    let length = fs::metadata(target).map_err(Error::setup)?.len();
    if length == bytes { Ok(seconds) } else { Err(Error::setup(format!("{length} bytes were written, not {bytes}"))) }
}

/// Random bytes in every other stripe; how many.
fn write_image(path: &Path, bytes: u64) -> io::Result<u64> {
    let file = File::create(path)?;
    file.set_len(bytes)?;
    let (mut random, mut data) = (Rng::with_seed(SEED), 0);
    let mut stripe = vec![0; STRIPE as usize];
    for offset in (0..bytes).step_by(2 * STRIPE as usize) {
        random.fill(&mut stripe);
        let length = STRIPE.min(bytes - offset);
        file.write_all_at(&stripe[..length as usize], offset)?;
        data += length;
    }
    file.sync_all()?;
    Ok(data)
}
