//! `ember top`: what the box does now, in a terminal.
//!
//! ```text
//!  a thread ── metrics, functions, instances, usage: one sample each two seconds ──▶ state ──▶ frame
//!  keys ─────────────────────────────────────────────────────────────────────────────▲
//! ```
//! It asks what `ember ps`, `ember ls` and Prometheus ask, none of which wakes a function or keeps one up. Invariants: the
//! terminal is given back as it was, also after an error and in a panic; a server that is slow or gone keeps no key waiting.
//! Left out: what is shown and how, which is pure: [`state`], [`view`].

mod sample;
mod scrape;
mod state;
mod view;

use crate::{args::Top, client::Client, error::Error, output};
use ratatui::{
    Terminal,
    backend::TestBackend,
    crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers},
};
use sample::{Sample, Sampler};
use state::{Press, State};
use std::{
    io::{self, IsTerminal},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, Receiver},
    },
    thread,
    time::Duration,
};

/// Longest wait for a key before samples are looked for.
const LOOK: Duration = Duration::from_millis(100);
/// Of a frame that no terminal shows.
const COLUMNS: u16 = 100;

type Sampled = Result<Sample, Error>;

pub(crate) fn top(client: Client, command: &Top) -> Result<(), Error> {
    let mut sampler = Sampler::new(client);
    // Before the terminal is taken: who asks the wrong server is told as by any other command.
    let first = sampler.sample()?;
    let mut state = State::new(sampler.url(), colored());
    state.take(Ok(first));
    if command.once {
        return output::line(&plain(&state)?);
    }
    if !io::stdout().is_terminal() {
        return Err(Error::Usage("`ember top` needs a terminal; `--once` prints one frame".to_owned()));
    }
    let paused = Arc::new(AtomicBool::new(false));
    let samples = follow(sampler, Duration::from_millis(command.interval), Arc::clone(&paused))?;
    show(&mut state, &samples, &paused)
}

/// <https://no-color.org>
fn colored() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// One frame, as high as it needs to be, as text.
fn plain(state: &State) -> Result<String, Error> {
    let mut terminal = Terminal::new(TestBackend::new(COLUMNS, view::rows(state))).map_err(io::Error::other)?;
    terminal.draw(|frame| view::draw(frame, state)).map_err(io::Error::other)?;
    let buffer = terminal.backend().buffer();
    let row = |y| (0..buffer.area.width).map(|x| buffer[(x, y)].symbol()).collect::<String>();
    // The last says which keys do what: here are none.
    let rows: Vec<_> = (0..buffer.area.height - view::KEYS).map(|y| row(y).trim_end().to_owned()).collect();
    Ok(rows.join("\n").trim_end().to_owned())
}

/// Samples on a thread of its own, which ends with the process or when nobody takes them any more.
fn follow(mut sampler: Sampler, interval: Duration, paused: Arc<AtomicBool>) -> Result<Receiver<Sampled>, Error> {
    let (sender, samples) = mpsc::sync_channel(1);
    let sampling = move || {
        loop {
            thread::sleep(interval);
            if !paused.load(Ordering::Relaxed) && sender.send(sampler.sample()).is_err() {
                return;
            }
        }
    };
    thread::Builder::new().name("samples".into()).spawn(sampling)?;
    Ok(samples)
}

/// Gives the terminal back, whatever ends us.
struct Screen;

impl Drop for Screen {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

fn show(state: &mut State, samples: &Receiver<Sampled>, paused: &AtomicBool) -> Result<(), Error> {
    // Has the terminal given back in a panic, too, before that is told.
    let mut terminal = ratatui::try_init()?;
    let _screen = Screen;
    loop {
        terminal.draw(|frame| view::draw(frame, state))?;
        while !event::poll(LOOK)? {
            if let Ok(sampled) = samples.try_recv() {
                state.take(sampled.map_err(|error| error.to_string()));
                break;
            }
        }
        while event::poll(Duration::ZERO)? {
            if let Event::Key(key) = event::read()?
                && let Some(press) = press(key)
                && state.press(press).is_break()
            {
                return Ok(());
            }
        }
        paused.store(state.is_paused(), Ordering::Relaxed);
    }
}

fn press(key: KeyEvent) -> Option<Press> {
    if key.kind == KeyEventKind::Release {
        return None;
    }
    match key.code {
        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => Some(Press::Interrupt),
        KeyCode::Char(letter) => Some(Press::Letter(letter)),
        KeyCode::Backspace => Some(Press::Back),
        KeyCode::Enter => Some(Press::Enter),
        KeyCode::Esc => Some(Press::Escape),
        _ => None,
    }
}
