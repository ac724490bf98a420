//! Whether the service lives: what PID 1 makes of the answers of `emberd health`.
//!
//! ```text
//!              an answer, of a function if the slot is on trial
//!  starting ─────────────────────────────────────────────────▶ healthy ◀──┐ an answer
//!     │ none for `start`                                          │ └──────┘
//!     ▼                                                           ▼ none for SILENCE_MAX
//!  the machine starts again ◀──────────────────────────────────── silent
//! ```
//! Pure but for [`Check`], which asks. On trial a real function's answer counts, as the trial is of all that is new.

use std::{
    io::{self, Read},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// Longest time that a service may take from its start to its first answer, where the image does not say another.
pub(crate) const START: Duration = Duration::from_secs(600);
/// Longest time without an answer afterwards.
const SILENCE_MAX: Duration = Duration::from_secs(180);
/// Between two questions, before the first answer and after it.
const PAUSES: [Duration; 2] = [Duration::from_secs(2), Duration::from_secs(10)];
/// Longest time for a question before the first answer, when functions may have to be loaded for it, one after the other;
/// more where a model may take longer than half of it. It is told who asks; how much longer he may take to end is [`END_MAX`].
const FIRST: Duration = Duration::from_secs(240);
/// The same after the first answer, when it is of the server alone.
const LATER: Duration = Duration::from_secs(100);
/// Beside two models that take all of their time to load.
const MINUTE: Duration = Duration::from_secs(60);
const END_MAX: Duration = Duration::from_secs(10);
/// What is read of what it says.
const SAID_BYTES_MAX: u64 = 4096;

/// How the service does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Health {
    started: Instant,
    start: Duration,
    answered: Option<Instant>,
}

impl Health {
    /// Of a service that starts now, and has `start` for its first answer.
    pub(crate) fn new(started: Instant, start: Duration) -> Self {
        Self { started, start, answered: None }
    }

    /// It answered; whether that was the first time.
    pub(crate) fn answer(&mut self, now: Instant) -> bool {
        self.answered.replace(now).is_none()
    }

    /// Whether it ever answered.
    pub(crate) fn is_up(&self) -> bool {
        self.answered.is_some()
    }

    /// Whether to go on with it.
    pub(crate) fn lives(&self, now: Instant) -> bool {
        let (since, most) = self.answered.map_or((self.started, self.start), |answered| (answered, SILENCE_MAX));
        now.saturating_duration_since(since) < most
    }
}

/// The time for a first answer that the kernel's command line gives, if it does: `ember.start=90`, seconds. Else a model that
/// may load for `load_timeout` seconds has time for a question, and half of another.
pub(crate) fn start_of(command_line: &str, load_timeout: Option<u32>) -> Duration {
    let question = first_question(load_timeout);
    let seconds = command_line.split_whitespace().find_map(|word| word.strip_prefix("ember.start="));
    seconds
        .and_then(|text| text.parse().ok())
        .filter(|s| (1..=86_400).contains(s))
        .map_or(START.max(question + question / 2 + MINUTE), Duration::from_secs)
}

/// How long a question takes at most before the first answer: a function has half of it, in which its model must load.
pub(crate) fn first_question(load_timeout: Option<u32>) -> Duration {
    FIRST.max(Duration::from_secs(u64::from(load_timeout.unwrap_or(0)) * 2) + MINUTE)
}

/// Questions, one at a time.
#[derive(Debug)]
pub(crate) struct Check {
    child: Option<Child>,
    /// Longest time for a question before the first answer.
    first: Duration,
    /// When the one that runs is given up, or else when the next is begun.
    next: Instant,
}

impl Check {
    /// The first question comes at once, and may take so long.
    pub(crate) fn new(now: Instant, first: Duration) -> Self {
        Self { child: None, first, next: now }
    }

    /// Begins a question when it is time, and gives one up that takes too long. `question` hears how long it may take.
    pub(crate) fn step(
        &mut self,
        now: Instant,
        up: bool,
        question: impl FnOnce(Duration) -> Command,
    ) -> io::Result<()> {
        if now < self.next {
            return Ok(());
        }
        let within = if up { LATER } else { self.first };
        self.next = now + within + END_MAX;
        match &mut self.child {
            Some(child) => child.kill(),
            None => {
                let mut question = question(within);
                question.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
                self.child = Some(question.spawn()?);
                Ok(())
            }
        }
    }

    /// Takes what ended with this pid: what it said, `Ok` if it succeeded. `None` where it is none of ours.
    pub(crate) fn ended(
        &mut self,
        pid: i32,
        succeeded: bool,
        up: bool,
        now: Instant,
    ) -> Option<Result<String, String>> {
        let mut child = self.child.take_if(|child| i32::try_from(child.id()) == Ok(pid))?;
        self.next = now + PAUSES[usize::from(up)];
        let said = match succeeded {
            true => child.stdout.take().map(last_line),
            false => child.stderr.take().map(last_line),
        };
        let said = said.filter(|said| !said.is_empty()).unwrap_or_else(|| "it said nothing".to_owned());
        Some(if succeeded { Ok(said) } else { Err(said) })
    }
}

fn last_line(from: impl Read) -> String {
    let mut bytes = Vec::new();
    // What cannot be read was not said.
    let _ = from.take(SAID_BYTES_MAX).read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).lines().last().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::{
        sys::wait::{WaitStatus, waitpid},
        unistd::Pid,
    };

    #[test]
    fn a_service_has_time_to_start_and_then_must_go_on_answering() {
        let began = Instant::now();
        let at = |seconds: u64| began + Duration::from_secs(seconds);
        let mut health = Health::new(began, Duration::from_secs(90));
        assert!(health.lives(at(89)) && !health.lives(at(90)) && !health.is_up());
        assert!(health.answer(at(80)) && !health.answer(at(85)) && health.is_up());
        assert!(health.lives(at(85 + 179)) && !health.lives(at(85 + 180)));
    }

    #[test]
    fn a_question_that_hangs_leaves_time_for_another() {
        let at_most = [(FIRST, PAUSES[0]), (LATER, PAUSES[1])].map(|(within, pause)| within + END_MAX + pause);
        assert!(at_most[0] * 2 < START && at_most[1] < SILENCE_MAX);
        // A model that takes all of its time leaves as much for another, and for a question after that.
        for load_timeout in [None, Some(600), Some(3600)] {
            let (first, start) = (first_question(load_timeout), start_of("", load_timeout));
            assert!(first / 2 >= Duration::from_secs(load_timeout.unwrap_or(120).into()), "{load_timeout:?}");
            assert!(start > first + END_MAX + first / 2, "{load_timeout:?}");
        }
    }

    #[test]
    fn the_command_line_may_say_how_long_a_start_takes() {
        assert_eq!(start_of("quiet ember.start=90 panic=-1", Some(3600)), Duration::from_secs(90));
        for text in ["quiet", "ember.start=", "ember.start=0", "ember.start=-1", "ember.start=99999999"] {
            assert_eq!(start_of(text, None), START, "{text}");
            assert_eq!(start_of(text, Some(3600)), Duration::from_secs(7260 + 3630 + 60), "{text}");
        }
    }

    fn ask(check: &mut Check, now: Instant, script: &str) -> Result<String, String> {
        let question = |_| {
            let mut shell = Command::new("sh");
            shell.args(["-c", script]);
            shell
        };
        check.step(now, true, question).unwrap();
        let pid = check.child.as_ref().unwrap().id() as i32;
        let succeeded = match waitpid(Pid::from_raw(pid), None).unwrap() {
            WaitStatus::Exited(_, code) => code == 0,
            _ => false,
        };
        assert_eq!(check.ended(pid + 1, true, true, now), None);
        check.ended(pid, succeeded, true, now).unwrap()
    }

    #[test]
    fn a_question_s_last_word_counts() {
        let mut now = Instant::now();
        let mut check = Check::new(now, FIRST);
        assert_eq!(ask(&mut check, now, "echo a; echo answers"), Ok("answers".to_owned()));
        check.step(now, true, |_| panic!("it is not time")).unwrap();
        now += PAUSES[1];
        assert_eq!(ask(&mut check, now, "echo refused >&2; exit 75"), Err("refused".to_owned()));
        now += PAUSES[1];
        assert_eq!(ask(&mut check, now, "exit 1"), Err("it said nothing".to_owned()));
    }

    #[test]
    fn a_question_that_takes_too_long_is_given_up() {
        let now = Instant::now();
        let mut check = Check::new(now, FIRST);
        let mut sleep = Command::new("sleep");
        sleep.arg("600");
        let mut told = Duration::ZERO;
        let question = |within| {
            told = within;
            sleep
        };
        check.step(now, false, question).unwrap();
        let pid = check.child.as_ref().unwrap().id() as i32;
        check.step(now + told, false, |_| panic!("it is not time")).unwrap();
        check.step(now + told + END_MAX, false, |_| panic!("one is asked already")).unwrap();
        assert!(matches!(waitpid(Pid::from_raw(pid), None), Ok(WaitStatus::Signaled(..))));
        assert_eq!(check.ended(pid, false, false, now), Some(Err("it said nothing".to_owned())));
    }
}
