//! S8: a sealed restore ÷ `crun run` of a program that does nothing.
//!
//! Ours is the restore's own clock, from its beginning to the process going on, as the warden logs it: the table, clone3
//! with all namespaces, cgroup, id maps, memory, filter, registers. It is one on demand, of a function that was stored: a spare
//! is restored while nobody waits, and takes the longer for it. What decodes the file has ended when it begins. The peer is what a user waits for, from the exec of
//! `crun run` to its end, with the container that `crun spec` describes but for a terminal: five namespaces, no seccomp
//! filter, no limits of memory or processes. crun refuses machines where cgroups of both versions are mounted, so it runs
//! in mount namespaces in which those of version 2 are not.
//!
//! A call comes after a pause, so both are measured after one (S8). crun then takes twice as long and more: it moves a
//! process between cgroups, for which the kernel waits for every reader of a lock, but not again soon after. S8-again is ours
//! after the pause ÷ crun right after another of its runs, which is the peer at its best.

use crate::{
    chat::{Chat, MODEL, ms},
    ember::Ember,
    error::Error,
    figure::{Bar, Context, Figure, Measured, Side, interleave, median},
    load::Load,
    process::{output, run},
    steps::Restored,
};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
};
use serde_json::{Value, json};
use std::{
    cell::RefCell,
    fs,
    path::Path,
    process::{Command, id},
    thread,
    time::{Duration, Instant},
};

const ROUNDS: usize = 25;
/// Where cgroups of version 2 are beside those of version 1.
const UNIFIED: &str = "/sys/fs/cgroup/unified";
const NOTHING: &str = r#"void _start(void) { __asm__ volatile("mov $60, %eax\n xor %edi, %edi\n syscall"); }"#;

/// How long both have rested before each is measured.
const PAUSE: Duration = Duration::from_millis(300);

/// When crun runs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Peer {
    /// After a pause, as ours does.
    Rested,
    /// Right after another run.
    Again,
}

/// S8 and S8-again.
pub(crate) const BOTH: [SealedRestore; 2] = [SealedRestore(Peer::Rested), SealedRestore(Peer::Again)];

/// Ours after a pause ÷ its peer.
pub(crate) struct SealedRestore(Peer);

impl Figure for SealedRestore {
    fn name(&self) -> &'static str {
        match self.0 {
            Peer::Rested => "S8",
            Peer::Again => "S8-again",
        }
    }

    fn title(&self) -> &'static str {
        match self.0 {
            Peer::Rested => "sealed restore on demand, by its log ÷ crun run of a static no-op, both after a pause",
            Peer::Again => "sealed restore on demand, by its log ÷ crun run of a static no-op right after another",
        }
    }

    fn bar(&self) -> Bar {
        Bar::AtMost(0.1)
    }

    fn measure(&self, context: &Context) -> Result<Measured, Error> {
        let crun = Crun::new()?;
        let ember = Ember::start(&context.model, Load::of(1, 2048)?)?;
        let restores = RefCell::new(Vec::new());
        let ours = || {
            let restored = restore(&ember)?;
            let total_ms = restored.total_ms();
            restores.borrow_mut().push(restored);
            Ok(total_ms)
        };
        ours()?;
        crun.run_ms(self.0)?;
        restores.take();
        let samples = interleave(context.rounds(ROUNDS), ours, || crun.run_ms(self.0))?;
        let ours = Side { label: "ember, the restore's beginning to Going".into(), samples: samples.0 };
        let peer = Side { label: format!("{}, exec to end", crun.version), samples: samples.1 };
        let notes = vec![steps(&restores.take())];
        Ok(Measured { notes, ..Measured::new("ms", ours, peer) })
    }
}

fn restore(ember: &Ember) -> Result<Restored, Error> {
    ember.store()?;
    thread::sleep(PAUSE);
    let chat = Chat { model: MODEL, system: None, prompt: "Hello".into(), tokens: 1 };
    chat.ask_in_thread(&ember.server)?.receipt("stored")?;
    ember.last_restore()
}

/// What each step took, in the middle of all restores.
fn steps(restores: &[Restored]) -> String {
    let names = restores.first().into_iter().flat_map(Restored::spans).map(|(name, ..)| name);
    let took = |name: &str| {
        let spans = restores.iter().flat_map(Restored::spans).filter(|span| span.0 == name);
        median(&spans.map(|(_, begin, end)| end - begin).collect::<Vec<_>>())
    };
    let steps: Vec<_> = names.map(|name| format!("{name} {:.3}", took(name))).collect();
    format!("medians of the steps, ms: {}", steps.join(", "))
}

/// A container that does nothing.
struct Crun {
    bundle: tempfile::TempDir,
    version: String,
}

impl Crun {
    fn new() -> Result<Self, Error> {
        let version = output(crun(&["--version"]))?.lines().next().unwrap_or("crun").to_owned();
        let bundle = tempfile::tempdir().map_err(Error::setup)?;
        let root = bundle.path().join("rootfs");
        fs::create_dir(&root).map_err(|source| Error::File { path: root.clone(), source })?;
        compile(&root.join("nothing"))?;
        let mut spec = crun(&["spec"]);
        spec.current_dir(bundle.path());
        run(spec)?;
        edit(&bundle.path().join("config.json"), |config| {
            config["process"]["terminal"] = json!(false);
            config["process"]["args"] = json!(["/nothing"]);
        })?;
        Ok(Self { bundle, version })
    }

    fn command(&self) -> Command {
        let mut command = crun(&["run", "--bundle"]);
        command.arg(self.bundle.path()).arg(format!("ember-bench-{}", id()));
        command
    }

    fn run_ms(&self, peer: Peer) -> Result<f64, Error> {
        apart(|| {
            match peer {
                Peer::Rested => thread::sleep(PAUSE),
                Peer::Again => run(self.command())?,
            }
            let began = Instant::now();
            run(self.command())?;
            Ok(ms(began.elapsed()))
        })
    }
}

/// Calls `work` in a thread whose mounts are its own, without the cgroups of version 2 beside those of version 1.
fn apart<T: Send>(work: impl FnOnce() -> Result<T, Error> + Send) -> Result<T, Error> {
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            if Path::new(UNIFIED).exists() {
                unshare(CloneFlags::CLONE_NEWNS).map_err(Error::setup)?;
                let (none, private) = (None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE);
                mount(none, "/", none, private, none).map_err(Error::setup)?;
                umount2(UNIFIED, MntFlags::MNT_DETACH).map_err(Error::setup)?;
            }
            work()
        });
        thread.join().unwrap_or_else(|_| Err(Error::setup("the thread of crun panicked")))
    })
}

fn crun(args: &[&str]) -> Command {
    let mut command = Command::new("crun");
    command.args(args);
    command
}

fn compile(program: &Path) -> Result<(), Error> {
    let source = program.with_extension("c");
    fs::write(&source, NOTHING).map_err(|error| Error::File { path: source.clone(), source: error })?;
    let mut cc = Command::new("cc");
    cc.args(["-static", "-nostdlib", "-O2", "-o"]).arg(program).arg(&source);
    run(cc)
}

fn edit(path: &Path, change: impl FnOnce(&mut Value)) -> Result<(), Error> {
    let failed = |source| Error::File { path: path.into(), source };
    let mut value = serde_json::from_slice(&fs::read(path).map_err(failed)?).map_err(Error::setup)?;
    change(&mut value);
    fs::write(path, value.to_string()).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_summed_up_by_their_medians() {
        let restored = |going| Restored {
            logged: time::OffsetDateTime::UNIX_EPOCH,
            steps: vec![("Cloned".into(), 1.0), ("Going".into(), going)],
        };
        let all = [restored(3.0), restored(2.0), restored(9.0)];
        assert_eq!(steps(&all), "medians of the steps, ms: Cloned 1.000, Going 2.000");
    }
}
