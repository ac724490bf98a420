//! Policies as points: memory wasted to the right, the slowest first tokens up. Nearer to the corner is better.

use crate::Report;
use std::fmt::Write as _;

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 400.0;
const MARGIN: f64 = 60.0;

/// A picture of reports on one trace, as an SVG document.
pub fn svg(title: &str, reports: &[Report]) -> String {
    let most = |of: fn(&Report) -> f64| reports.iter().map(of).fold(1.0, f64::max) * 1.1;
    let (wasted_most, p99_most) = (most(|r| r.wasted_mib_s as f64), most(|r| r.first_token_p99_ms));
    let x = |report: &Report| MARGIN + report.wasted_mib_s as f64 / wasted_most * (WIDTH - 3.0 * MARGIN);
    let y = |report: &Report| HEIGHT - MARGIN - report.first_token_p99_ms / p99_most * (HEIGHT - 2.0 * MARGIN);
    let mut text = String::new();
    let mut line = |line: String| writeln!(text, "{line}").expect("a String takes any text");
    line(format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>"
    ));
    line(format!("<text x=\"{MARGIN}\" y=\"30\" font-size=\"15\">{}</text>", escaped(title)));
    let (left, bottom, right, top) = (MARGIN, HEIGHT - MARGIN, WIDTH - MARGIN, MARGIN);
    line(format!("<path d=\"M{left} {top}V{bottom}H{right}\" fill=\"none\" stroke=\"black\"/>"));
    line(format!(
        "<text x=\"{left}\" y=\"{}\">memory wasted, 0 to {wasted_most:.0} MiB·s</text>\n\
         <text x=\"{left}\" y=\"{}\">first token p99, 0 to {p99_most:.0} ms</text>",
        bottom + 20.0,
        top - 8.0
    ));
    for report in reports {
        let (x, y) = (x(report), y(report));
        line(format!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"5\" fill=\"#c33\"/>"));
        line(format!("<text x=\"{:.1}\" y=\"{:.1}\">{}</text>", x + 8.0, y + 4.0, escaped(&report.policy)));
    }
    line("</svg>".to_owned());
    text
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
