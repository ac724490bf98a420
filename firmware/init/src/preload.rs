//! What came with the image and is not deployed yet: `emberd preload`, once a start, beside the service.
//!
//! ```text
//!  manifests in DIR/preload? ─no─▶ nothing
//!        └─ yes ─▶ emberd preload ─┬─ it ends ─────────────────────▶ over
//!                                  └─ its time is over ─▶ killed ──▶ over
//! ```
//! A slot on trial waits for it: what is deployed then is what it is trusted by. It has an end, so that the trial has.

use crate::console::say;
use std::{
    fs, io,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// Where the image put the manifests, below the service's folder.
const FOLDER: &str = "preload";
/// How much longer than it was told it may take.
const END_MAX: Duration = Duration::from_secs(10);

/// The deploying of what came along.
#[derive(Debug)]
pub(crate) struct Preload {
    child: Option<Child>,
    until: Instant,
}

impl Preload {
    /// Begins it where there is something to deploy; `command` hears how long it may take.
    pub(crate) fn begin(
        data: &Path,
        now: Instant,
        within: Duration,
        command: impl FnOnce(Duration) -> Command,
    ) -> Self {
        let child = if is_waiting(&data.join(FOLDER)) { started(command(within)) } else { None };
        Self { child, until: now + within + END_MAX }
    }

    /// Whether it goes on.
    pub(crate) fn is_running(&self) -> bool {
        self.child.is_some()
    }

    /// Ends it when its time is over.
    pub(crate) fn step(&mut self, now: Instant) {
        if now >= self.until
            && let Some(child) = &mut self.child
        {
            // It is reaped as any other; one that ended meanwhile is not there to be killed.
            let _ = child.kill();
        }
    }

    /// Takes what ended with this pid; whether that was it.
    pub(crate) fn ended(&mut self, pid: i32, succeeded: bool) -> bool {
        let child = self.child.take_if(|child| i32::try_from(child.id()) == Ok(pid));
        if child.is_some() {
            say(match succeeded {
                true => "what came with the image is deployed",
                false => "not all that came with the image is deployed: the next start tries again",
            });
        }
        child.is_some()
    }
}

fn started(mut command: Command) -> Option<Child> {
    say("what came with the image is being deployed");
    let child: io::Result<Child> = command.stdin(Stdio::null()).spawn();
    child.map_err(|error| say(format_args!("what came with the image cannot be deployed: {error}"))).ok()
}

fn is_waiting(folder: &Path) -> bool {
    let mut files = fs::read_dir(folder).into_iter().flatten().flatten();
    files.any(|file| file.path().extension().is_some_and(|extension| extension == "toml"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::{
        sys::wait::{WaitStatus, waitpid},
        unistd::Pid,
    };

    const WITHIN: Duration = Duration::from_secs(5);

    fn folder(files: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join(FOLDER)).unwrap();
        for file in files {
            fs::write(folder.path().join(FOLDER).join(file), "").unwrap();
        }
        folder
    }

    #[test]
    fn with_nothing_to_deploy_nothing_is_run() {
        let never = |_| panic!("nothing is left");
        for folder in [tempfile::tempdir().unwrap(), folder(&[]), folder(&["a.toml.new"])] {
            assert!(!Preload::begin(folder.path(), Instant::now(), WITHIN, never).is_running());
        }
    }

    #[test]
    fn it_runs_until_it_ends_or_its_time_is_over() {
        let (folder, now) = (folder(&["a.toml"]), Instant::now());
        let sleep = |within: Duration| {
            assert_eq!(within, WITHIN);
            let mut sleep = Command::new("sleep");
            sleep.arg("600");
            sleep
        };
        let mut preload = Preload::begin(folder.path(), now, WITHIN, sleep);
        let pid = preload.child.as_ref().unwrap().id() as i32;
        preload.step(now + WITHIN);
        assert!(!preload.ended(pid + 1, true) && preload.is_running());
        preload.step(now + WITHIN + END_MAX);
        assert!(matches!(waitpid(Pid::from_raw(pid), None), Ok(WaitStatus::Signaled(..))));
        assert!(preload.ended(pid, false) && !preload.is_running());
    }
}
