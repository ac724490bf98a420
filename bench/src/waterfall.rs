//! Parts of a whole as a picture, a row each from left to right: of a wake as time passed, or of what two sides took.
//!
//! Of a wake, what the client and the restore's log say are times, and are drawn where they were. Queue, wake and prefill are
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
const LEFT: f64 = 200.0;
const RIGHT: f64 = 90.0;
const ROW: f64 = 22.0;
const TOP: f64 = 30.0;
/// Legible on a page of either colour.
const STYLE: &str = "<style>text{fill:#1f2328}@media(prefers-color-scheme:dark){text{fill:#e6edf3}}</style>";

/// Parts of something, in one unit.
#[derive(Clone, Debug)]
pub(crate) struct Waterfall {
    spans: Vec<Span>,
    total: f64,
    unit: &'static str,
}

#[derive(Clone, Debug)]
struct Span {
    name: String,
    begin: f64,
    end: f64,
    colour: &'static str,
}

const CLIENT: &str = "#64748b";
pub(crate) const SERVER: &str = "#2563eb";
const RESTORE: &str = "#ea580c";
pub(crate) const PEER: &str = "#64748b";

/// A request that woke its function, from `since` to its first token.
pub(crate) fn of_wake(
    answer: &Answer,
    since: Instant,
    receipt: Receipt,
    restored: &Restored,
) -> Result<Waterfall, Error> {
    let mut spans = Vec::new();
    let mut add = |name: &str, begin_ms: f64, end_ms: f64, colour| {
        spans.push(Span { name: name.to_owned(), begin: begin_ms, end: end_ms, colour });
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
    Ok(Waterfall { spans, total: total_ms.max(at_ms), unit: "ms" })
}

fn ms_between(from: SystemTime, to: OffsetDateTime) -> f64 {
    (to - OffsetDateTime::from(from)).as_seconds_f64() * 1_000.0
}

impl Waterfall {
    pub(crate) fn new(unit: &'static str) -> Self {
        Self { spans: Vec::new(), total: 0.0, unit }
    }

    /// Parts that followed each other, from nought.
    pub(crate) fn add(&mut self, colour: &'static str, parts: &[(&str, f64)]) {
        let mut end = 0.0;
        for (name, took) in parts {
            let begin = end;
            end += took;
            self.spans.push(Span { name: (*name).to_owned(), begin, end, colour });
        }
        self.total = self.total.max(end);
    }

    pub(crate) fn picture(&self, file: &str, title: &str) -> Picture {
        let height = TOP + ROW * (self.spans.len() as f64 + 1.0);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" font-size=\"13\" font-family=\"system-ui,sans-serif\">{STYLE}"
        );
        let title = escape(title);
        let _ = write!(svg, "<title>{title}</title><text x=\"0\" y=\"16\">{title}</text>");
        self.spans.iter().enumerate().for_each(|(row, span)| self.row(&mut svg, TOP + ROW * row as f64, span));
        let y = height - 6.0;
        let right = WIDTH - RIGHT;
        let (total, unit) = (self.total, self.unit);
        let _ = write!(svg, "<text x=\"{LEFT}\" y=\"{y:.1}\">0 {unit}</text>");
        let _ = write!(svg, "<text x=\"{right}\" y=\"{y:.1}\" text-anchor=\"end\">{total:.1} {unit}</text></svg>");
        Picture { file: file.to_owned(), svg }
    }

    fn row(&self, svg: &mut String, y: f64, span: &Span) {
        let (x, end) = (self.x(span.begin), self.x(span.end));
        let (baseline, width) = (y + 15.0, (end - x).max(1.0));
        let _ = write!(svg, "<text x=\"0\" y=\"{baseline:.1}\">{}</text>", escape(&span.name));
        let _ = write!(
            svg,
            "<rect x=\"{x:.1}\" y=\"{:.1}\" width=\"{width:.1}\" height=\"14\" fill=\"{}\"/>",
            y + 4.0,
            span.colour
        );
        let (label_x, took, unit) = (x + width + 5.0, span.end - span.begin, self.unit);
        let digits = if took < 10.0 { 2 } else { 1 };
        let _ = write!(svg, "<text x=\"{label_x:.1}\" y=\"{baseline:.1}\">{took:.digits$} {unit}</text>");
    }

    fn x(&self, at: f64) -> f64 {
        LEFT + at / self.total * (WIDTH - LEFT - RIGHT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_stand_where_they_were() {
        let mut waterfall = Waterfall::new("ms");
        waterfall.add(CLIENT, &[("a <part>", 5.0), ("another", 15.0)]);
        waterfall.add(PEER, &[("a peer", 10.0)]);
        let Picture { file, svg } = waterfall.picture("wake.svg", "a wake");
        assert_eq!((file.as_str(), svg.matches("<rect").count()), ("wake.svg", 3));
        for said in ["x=\"200.0\"", "x=\"307.5\"", ">5.00 ms<", ">15.0 ms<", ">20.0 ms<", "a &lt;part&gt;"] {
            assert!(svg.contains(said), "{said} is not in {svg}");
        }
        assert!(!svg.contains("NaN"));
    }
}
