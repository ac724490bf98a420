//! One wake as a picture: a row for each part of it, from left to right as time passed.
//!
//! What the client and the restore's log say are times, and are drawn where they were. Queue, wake and prefill are
//! durations in the receipt: drawn one after the other, as early as they can have been.

use crate::{
    chat::{Answer, Receipt, ms},
    error::Error,
    figure::Picture,
    report::escape,
    steps::Restored,
};
use std::{
    fmt::Write,
    time::{Instant, SystemTime},
};
use time::OffsetDateTime;

const WIDTH: f64 = 720.0;
const LEFT: f64 = 130.0;
const RIGHT: f64 = 90.0;
const ROW: f64 = 22.0;
const TOP: f64 = 30.0;

/// Parts of something that took a while.
#[derive(Clone, Debug)]
pub(crate) struct Waterfall {
    spans: Vec<Span>,
    total_ms: f64,
}

#[derive(Clone, Debug)]
struct Span {
    name: String,
    begin_ms: f64,
    end_ms: f64,
    colour: &'static str,
}

const CLIENT: &str = "#64748b";
const SERVER: &str = "#2563eb";
const RESTORE: &str = "#ea580c";

/// A request that woke its function, from `since` to its first token.
pub(crate) fn of_wake(
    answer: &Answer,
    since: Instant,
    receipt: Receipt,
    restored: &Restored,
) -> Result<Waterfall, Error> {
    let mut spans = Vec::new();
    let mut add = |name: &str, begin_ms: f64, end_ms: f64, colour| {
        spans.push(Span { name: name.to_owned(), begin_ms, end_ms, colour });
    };
    let (asked_ms, total_ms) = (ms(answer.asked - since), answer.first_piece_ms(since)?);
    if asked_ms > 0.0 {
        add("connect, TLS", 0.0, asked_ms, CLIENT);
    }
    add("to reply's head", asked_ms, ms(answer.head - since), CLIENT);
    add("to first token", asked_ms, total_ms, CLIENT);
    let mut at_ms = asked_ms;
    for (name, took_ms) in [("queue", receipt.queue_ms), ("wake", receipt.wake_ms), ("prefill", receipt.prefill_ms)] {
        add(name, at_ms, at_ms + took_ms, SERVER);
        at_ms += took_ms;
        if name == "wake" {
            let begun_ms = asked_ms + ms_between(answer.asked_at, restored.logged) - restored.total_ms();
            restored.spans().for_each(|(name, begin, end)| add(name, begun_ms + begin, begun_ms + end, RESTORE));
        }
    }
    Ok(Waterfall { spans, total_ms: total_ms.max(at_ms) })
}

fn ms_between(from: SystemTime, to: OffsetDateTime) -> f64 {
    (to - OffsetDateTime::from(from)).as_seconds_f64() * 1_000.0
}

impl Waterfall {
    pub(crate) fn picture(&self, file: &str, title: &str) -> Picture {
        let height = TOP + ROW * (self.spans.len() as f64 + 1.0);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" font-size=\"13\" font-family=\"system-ui,sans-serif\">"
        );
        let title = escape(title);
        let _ = write!(svg, "<title>{title}</title><text x=\"0\" y=\"16\">{title}</text>");
        self.spans.iter().enumerate().for_each(|(row, span)| self.row(&mut svg, TOP + ROW * row as f64, span));
        let y = height - 6.0;
        let right = WIDTH - RIGHT;
        let _ = write!(svg, "<text x=\"{LEFT}\" y=\"{y:.1}\">0 ms</text>");
        let _ =
            write!(svg, "<text x=\"{right}\" y=\"{y:.1}\" text-anchor=\"end\">{:.1} ms</text></svg>", self.total_ms);
        Picture { file: file.to_owned(), svg }
    }

    fn row(&self, svg: &mut String, y: f64, span: &Span) {
        let (x, end) = (self.x(span.begin_ms), self.x(span.end_ms));
        let (baseline, width) = (y + 15.0, (end - x).max(1.0));
        let _ = write!(svg, "<text x=\"0\" y=\"{baseline:.1}\">{}</text>", escape(&span.name));
        let _ = write!(
            svg,
            "<rect x=\"{x:.1}\" y=\"{:.1}\" width=\"{width:.1}\" height=\"14\" fill=\"{}\"/>",
            y + 4.0,
            span.colour
        );
        let (label_x, took_ms) = (x + width + 5.0, span.end_ms - span.begin_ms);
        let _ = write!(svg, "<text x=\"{label_x:.1}\" y=\"{baseline:.1}\">{took_ms:.2} ms</text>");
    }

    fn x(&self, at_ms: f64) -> f64 {
        LEFT + at_ms / self.total_ms * (WIDTH - LEFT - RIGHT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_stand_where_they_were() {
        let span = |begin_ms, end_ms| Span { name: "a <part>".into(), begin_ms, end_ms, colour: CLIENT };
        let waterfall = Waterfall { spans: vec![span(0.0, 5.0), span(5.0, 10.0)], total_ms: 10.0 };
        let Picture { file, svg } = waterfall.picture("wake.svg", "a wake");
        assert_eq!((file.as_str(), svg.matches("<rect").count()), ("wake.svg", 2));
        assert!(svg.contains("x=\"130.0\"") && svg.contains("x=\"380.0\"") && svg.contains("5.00 ms"), "{svg}");
        assert!(svg.contains("a &lt;part&gt;") && !svg.contains("NaN"));
    }
}
