//! The steps in their order, the service's life, and the end.

use crate::{
    CheckFleet,
    console::say,
    disks::{self, DATA, ESP},
    error::InitError,
    machine::{self, Telemetry},
    modules::Modules,
    mounts, network, root,
};
use nix::{
    errno::Errno,
    mount::{MntFlags, umount2},
    sys::{
        reboot::{RebootMode, reboot, set_cad_enabled},
        signal::{SigSet, Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{Pid, sethostname, sync},
};
use std::{
    env,
    fs::{self, OpenOptions},
    io::{self, Write},
    net::SocketAddr,
    os::unix::fs::OpenOptionsExt,
    path::Path,
    process::{Command, ExitCode},
    thread,
    time::{Duration, Instant},
};

/// Who reads the console may see why, before the machine starts again.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// The service's folder.
const SERVICE_DATA: &str = "/data/ember";

/// Everything, from the kernel's first process to a machine that is off or starts again. Returns only where it cannot end
/// the machine, upon which the kernel panics, and starts it again.
pub fn run(fleet: CheckFleet) -> ExitCode {
    let moved = env::args().nth(1).is_some_and(|argument| argument == root::MOVED);
    let how = if moved { live(fleet) } else { root::leave_initramfs().map(|()| RebootMode::RB_AUTOBOOT) };
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

fn live(fleet: CheckFleet) -> Result<RebootMode, InitError> {
    let began = Instant::now();
    mounts::mount_all()?;
    let mut modules = Modules::read()?;
    modules.load();
    disks::mount_both()?;
    say(format_args!("{} modules, disks are there after {} ms", modules.loaded(), began.elapsed().as_millis()));
    let (current, last_good) = (Path::new(ESP).join("machine.toml"), Path::new(DATA).join("machine.toml.last-good"));
    let machine = machine::read(&current, &last_good, fleet);
    sethostname(&machine.hostname).map_err(InitError::kernel("the hostname"))?;

    let signals = SigSet::from_iter([Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGPWR]);
    signals.thread_block().map_err(InitError::kernel("signals"))?;
    // Ctrl-Alt-Del is a signal to us, not the end of the machine.
    let _ = set_cad_enabled(false);
    let given = machine.network.clone();
    thread::spawn(move || network::bring_up(given.as_ref()));
    if let Some(key) = &machine.admin_key {
        place_admin_key(key).map_err(InitError::io("the admin key"))?;
    }
    let mut service = Command::new("/init");
    service.args(["serve", "--data", SERVICE_DATA, "--listen"]).arg(machine.listen.to_string()).env("NO_COLOR", "1");
    if let Some(address) = machine.telemetry.as_ref().and_then(|telemetry| placed(telemetry, Path::new(SERVICE_DATA))) {
        service.arg("--telemetry-listen").arg(address.to_string());
    }
    let service = service.spawn().map_err(InitError::io("emberd serve"))?;
    Ok(watch(Pid::from_raw(service.id() as i32), signals))
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

/// A box that has a key keeps it.
fn place_admin_key(key: &str) -> io::Result<()> {
    fs::create_dir_all(SERVICE_DATA)?;
    let path = Path::new(SERVICE_DATA).join("admin.key");
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Ok(mut file) => file.write_all(format!("{key}\n").as_bytes()).and_then(|()| file.sync_all()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}

/// Reaps whatever ends until the service does. A signal asks it to.
fn watch(service: Pid, signals: SigSet) -> RebootMode {
    let mut how = RebootMode::RB_AUTOBOOT;
    loop {
        let signal = signals.wait();
        match signal {
            Ok(Signal::SIGCHLD) => {
                if let Some(status) = reap(service) {
                    say(format_args!("the service ended: {status:?}"));
                    return how;
                }
            }
            Ok(signal) => {
                if signal != Signal::SIGINT {
                    how = RebootMode::RB_POWER_OFF;
                }
                say(format_args!("{signal}: the service is asked to end"));
                let _ = kill(service, Signal::SIGTERM);
            }
            Err(_) => {}
        }
    }
}

/// Takes all that ended; the service's status if it is among them.
fn reap(service: Pid) -> Option<WaitStatus> {
    let mut ended = None;
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return ended,
            Ok(status) if status.pid() == Some(service) => ended = Some(status),
            Ok(_) | Err(_) => {}
        }
    }
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
