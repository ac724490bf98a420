//! HAProxy's agent check: what a load balancer is told of this box.
//!
//! ```text
//!  connection ─▶ one line ─▶ closed       nothing that is sent here is ever read
//!
//!  stopping                              stopped # emberd ends
//!  draining by hand                      drain
//!  the pool is silent, the ledger full   down # why
//!  else                                  up ready N%      by appliance/admit/src/headroom.rs
//! ```
//! `up` and `ready` take back an earlier `down` and `drain`. Invariants: connections are answered one after the other, each
//! within a second and with a pause after it, and what is said is asked for at most ten times a second, so that whoever
//! connects, however often, takes next to nothing of the core that this shares. Nothing here wakes a function.

use super::{drain, state::State};
use appliance_admit::headroom::Headroom;
use appliance_pool::View;
use appliance_runtime::{TcpListener, TcpStream, sleep, timeout};
use futures_lite::AsyncWriteExt;
use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

/// How long the pool has to say how it stands, and a peer to take the line.
const ANSWER_MAX: Duration = Duration::from_secs(1);
/// How long a line is said again.
const LINE_LASTS: Duration = Duration::from_millis(100);
/// Between two connections.
const PAUSE: Duration = Duration::from_millis(5);

/// What is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Word {
    Ready(u8),
    Drain,
    Stopped,
    Down(&'static str),
}

impl Word {
    fn line(self) -> String {
        match self {
            Self::Ready(percent) => format!("up ready {percent}%\n"),
            Self::Drain => "drain\n".to_owned(),
            Self::Stopped => "stopped # emberd ends\n".to_owned(),
            Self::Down(why) => format!("down # {why}\n"),
        }
    }
}

/// Answers for as long as it is polled.
pub(super) async fn answer(listener: std::net::TcpListener, state: Arc<State>) {
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "cannot serve the agent check"),
    };
    let mut known: Option<(Instant, String)> = None;
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let fresh = known.take().filter(|(said, _)| said.elapsed() < LINE_LASTS);
                let (said, line) = match fresh {
                    Some(known) => known,
                    None => (Instant::now(), word(&state).await.line()),
                };
                // Who does not take a line has nothing to be told.
                let _unheard = timeout(ANSWER_MAX, say(stream, &line)).await;
                known = Some((said, line));
            }
            Err(error) => tracing::debug!(%error, "an agent check came to nothing"),
        }
        sleep(PAUSE).await;
    }
}

async fn say(mut stream: TcpStream, line: &str) -> io::Result<()> {
    stream.write_all(line.as_bytes()).await?;
    stream.close().await
}

async fn word(state: &State) -> Word {
    let view = timeout(ANSWER_MAX, state.pool.view()).await.ok().and_then(Result::ok);
    match view {
        _ if state.service.is_stopping() => Word::Stopped,
        _ if state.service.is_draining() => Word::Drain,
        _ if state.ledger.is_low() => Word::Down("no room for records"),
        None => Word::Down("the pool does not answer"),
        Some(view) => Word::Ready(headroom(&view).percent()),
    }
}

fn headroom(view: &View) -> Headroom {
    let busy = view.instances.iter().filter(|instance| instance.slots_busy > 0).count();
    let [total, usable, held] = view.memory;
    Headroom {
        cores: view.cores[0],
        computing: u32::try_from(busy + view.waking).unwrap_or(u32::MAX),
        memory_bytes: total,
        free_bytes: usable.saturating_sub(held.saturating_sub(view.memory_idle)),
        waiting: drain::waiting(view),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_haproxys() {
        assert_eq!(Word::Ready(75).line(), "up ready 75%\n");
        assert_eq!(Word::Drain.line(), "drain\n");
        assert_eq!(Word::Down("no room for records").line(), "down # no room for records\n");
        assert!(Word::Stopped.line().starts_with("stopped #"));
    }
}
