//! The steps in their order, the service's life, and the end.

use crate::{
    Certificates, boot_entries, clock,
    console::say,
    disks::{self, DATA, ESP},
    efi,
    error::InitError,
    health, listen,
    machine::{self, Machine, Telemetry, write_private},
    modules::Modules,
    mounts, network, root,
    service::{self, Watch},
    slots::Slots,
    watchdog::Watchdog,
};
use nix::{
    mount::{MntFlags, umount2},
    sys::reboot::{RebootMode, reboot, set_cad_enabled},
    unistd::{Pid, sethostname, sync},
};
use std::{
    env, fs, io,
    net::{IpAddr, SocketAddr},
    path::Path,
    process::{Command, ExitCode},
    sync::mpsc::{Sender, channel},
    thread,
    time::{Duration, Instant, SystemTime},
};

/// Who reads the console may see why, before the machine starts again.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// The service's folder.
const SERVICE_DATA: &str = "/data/ember";
/// What emberd is told by a file lies here.
const RUN: &str = "/run";

/// Everything, from the kernel's first process to a machine that is off or starts again. Returns only where it cannot end
/// the machine, upon which the kernel panics, and starts it again.
pub fn run(certificates: Certificates) -> ExitCode {
    let moved = env::args().nth(1).is_some_and(|argument| argument == root::MOVED);
    let how = if moved { live(certificates) } else { root::leave_initramfs().map(|()| RebootMode::RB_AUTOBOOT) };
    let how = how.unwrap_or_else(|error| {
        say(format_args!("cannot start: {error}"));
        thread::sleep(LAST_WORDS);
        RebootMode::RB_AUTOBOOT
    });
    shut_down();
    let Err(errno) = reboot(how);
    say(format_args!("cannot end: {}", errno.desc()));
    ExitCode::FAILURE
}

fn live(certificates: Certificates) -> Result<RebootMode, InitError> {
    let began = Instant::now();
    mounts::mount_all()?;
    let mut modules = Modules::read()?;
    modules.load();
    mounts::mount_variables();
    if efi::is_secure(Path::new(efi::VARIABLES)) {
        say("secure boot is on");
    }
    let mut watchdog = Watchdog::start();
    let built = clock::not_before_the_image();
    let (esp, is_sure) = disks::mount_both()?;
    watchdog.feed();
    say(format_args!("{} modules, disks are there after {} ms", modules.loaded(), began.elapsed().as_millis()));
    let (current, last_good) = (Path::new(ESP).join("machine.toml"), Path::new(DATA).join("machine.toml.last-good"));
    let machine = machine::read(&current, &last_good, certificates.check_fleet);
    sethostname(&machine.hostname).map_err(InitError::kernel("the hostname"))?;
    let data = Path::new(SERVICE_DATA);
    let slots = Slots::look(Path::new(ESP), data, machine.update_key.as_deref());
    if is_sure {
        boot_entries::ensure(&esp);
    }
    watchdog.feed();

    let signals = service::take_signals()?;
    // Ctrl-Alt-Del is a signal to us, not the end of the machine.
    let _ = set_cad_enabled(false);
    let (found, addresses) = channel();
    connect(&machine, built, found);
    let (mut command, listen) = service(&machine, &slots, &mut watchdog)?;
    let service = command.spawn().map_err(InitError::io("emberd serve"))?;
    let command_line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let watch = Watch {
        service: Pid::from_raw(service.id() as i32),
        listen,
        data,
        slots,
        addresses,
        watchdog,
        start: health::start_of(&command_line, machine.load_timeout),
        first_question: health::first_question(machine.load_timeout),
        fingerprint: certificates.fingerprint,
        hostname: &machine.hostname,
    };
    Ok(watch.run(&signals))
}

/// Brings the network up beside all else, and keeps the clock by it.
fn connect(machine: &Machine, built: SystemTime, found: Sender<IpAddr>) {
    let (given, servers) = (machine.network.clone(), machine.clock.servers.clone());
    thread::spawn(move || {
        let lease = network::bring_up(given.as_ref());
        // Nobody listens any more where the machine ends.
        let _ = found.send(lease.address.address);
        clock::keep(if servers.is_empty() { &lease.time_servers } else { &servers }, built);
    });
}

/// What starts the service, and where it will listen.
fn service(machine: &Machine, slots: &Slots, watchdog: &mut Watchdog) -> Result<(Command, SocketAddr), InitError> {
    if let Some(key) = &machine.admin_key {
        place_admin_key(key, Path::new(SERVICE_DATA)).map_err(InitError::io("the admin key"))?;
    }
    // Each wait has its end, so that the watchdog need not be it.
    let listen = listen::reachable(machine.listen, || watchdog.feed());
    let mut service = Command::new("/init");
    let load = machine.load_timeout.map(|seconds| format!("load_timeout = \"{seconds}s\"\n")).unwrap_or_default();
    service.arg("serve").arg("--config").arg(slots.configure(Path::new(RUN), &load)?).args(["--data", SERVICE_DATA]);
    service.arg("--listen").arg(listen.to_string()).env("NO_COLOR", "1");
    let telemetry = machine.telemetry.as_ref().and_then(|telemetry| placed(telemetry, Path::new(SERVICE_DATA)));
    let mut taken = vec![listen];
    for (flag, wanted) in [("--telemetry-listen", telemetry), ("--agent-listen", machine.agent_listen)] {
        let Some(address) = wanted.map(|address| listen::reachable(address, || watchdog.feed())) else { continue };
        if taken.iter().all(|other| listen::are_apart(address, *other)) {
            service.arg(flag).arg(address.to_string());
            taken.push(address);
        } else {
            say(format_args!("{flag} {address} is left out: something else is answered there"));
        }
    }
    Ok((service, listen))
}

/// Where telemetry is answered, once what the fleet gave is in its place. A box serves without, as on a full disk.
fn placed(telemetry: &Telemetry, data: &Path) -> Option<SocketAddr> {
    match telemetry.place(data) {
        Ok(()) => Some(telemetry.listen),
        Err(error) => {
            say(format_args!("telemetry is left out: {error}"));
            None
        }
    }
}

/// A box that has a key keeps it. One that a cut left empty is none.
fn place_admin_key(key: &str, data: &Path) -> io::Result<()> {
    let path = data.join("admin.key");
    if fs::metadata(&path).is_ok_and(|file| file.len() > 0) {
        return Ok(());
    }
    fs::create_dir_all(data)?;
    write_private(&path, &format!("{key}\n"))
}

fn shut_down() {
    sync();
    for place in [DATA, ESP] {
        let _ = umount2(place, MntFlags::MNT_DETACH);
    }
    sync();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_admin_key_stays() {
        let folder = tempfile::tempdir().unwrap();
        let (data, path) = (folder.path().join("ember"), folder.path().join("ember/admin.key"));
        place_admin_key("one", &data).unwrap();
        place_admin_key("two", &data).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "one\n");
        fs::write(&path, "").unwrap();
        place_admin_key("two", &data).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "two\n");
    }

    #[test]
    fn what_cannot_be_placed_leaves_telemetry_out() {
        let text = || "x".to_owned();
        let listen = SocketAddr::from(([0, 0, 0, 0], 9443));
        let telemetry = Telemetry { listen, name: text(), ca: text(), certificate: text(), key: text() };
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(placed(&telemetry, folder.path()), Some(listen));
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        assert_eq!(placed(&telemetry, &file), None, "a file is no folder");
    }
}
