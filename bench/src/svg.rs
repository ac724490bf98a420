//! A figure as a picture: one dot a sample, a row for each side and one for the ratios with the bar drawn through it.
//!
//! ```text
//!  ours     ·  ·:·
//!  peer        · :··           one axis, in the figure's unit
//!  ratio       ·:|·            an axis of its own; | is the bar
//! ```

use crate::{
    figure::{Outcome, median},
    report::escape,
};
use std::fmt::Write;

const WIDTH: f64 = 720.0;
const LEFT: f64 = 90.0;
const ROW: f64 = 44.0;

/// A linear axis from `low` to `high`, widened a little so that no dot sits on the frame.
struct Axis {
    low: f64,
    high: f64,
}

impl Axis {
    fn over(values: impl IntoIterator<Item = f64>) -> Self {
        let (low, high) = values.into_iter().fold((f64::MAX, f64::MIN), |(low, high), v| (low.min(v), high.max(v)));
        let margin = ((high - low) * 0.08).max(high.abs() * 0.01).max(f64::EPSILON);
        Self { low: low - margin, high: high + margin }
    }

    fn x(&self, value: f64) -> f64 {
        LEFT + (value - self.low) / (self.high - self.low) * (WIDTH - LEFT - 20.0)
    }
}

pub(crate) fn dots(figure: &Outcome) -> String {
    let (ours, peer) = (&figure.measured.ours.samples, &figure.measured.peer.samples);
    let samples = Axis::over(ours.iter().chain(peer).copied());
    let ratios = Axis::over(figure.ratios.iter().copied().chain([figure.bar.value()]));
    let mut svg = format!("<svg viewBox=\"0 0 {WIDTH} {}\" role=\"img\" font-size=\"13\">", ROW * 4.2);
    let _ = write!(svg, "<title>{}</title>", escape(&figure.to_string()));
    row(&mut svg, 0.0, "ours", ours, &samples);
    row(&mut svg, 1.0, "peer", peer, &samples);
    scale(&mut svg, 1.0, &samples, figure.measured.unit);
    row(&mut svg, 2.4, "ratio", &figure.ratios, &ratios);
    scale(&mut svg, 2.4, &ratios, "ours ÷ peer");
    bar(&mut svg, 2.4, ratios.x(figure.bar.value()), figure.bar.value());
    svg + "</svg>"
}

fn middle_y(row: f64) -> f64 {
    ROW * (row + 0.5)
}

fn row(svg: &mut String, row: f64, name: &str, values: &[f64], axis: &Axis) {
    let y = middle_y(row);
    let _ = write!(svg, "<text x=\"0\" y=\"{:.1}\">{name}</text>", y + 4.0);
    for value in values {
        let _ = write!(
            svg,
            "<circle cx=\"{:.1}\" cy=\"{y:.1}\" r=\"5\" fill=\"#2563eb\" fill-opacity=\".45\"/>",
            axis.x(*value)
        );
    }
    let x = axis.x(median(values));
    let _ = write!(svg, "<path d=\"M{x:.1} {:.1}v24\" stroke=\"#3b82f6\" stroke-width=\"2\"/>", y - 12.0);
}

fn scale(svg: &mut String, row: f64, axis: &Axis, unit: &str) {
    let (line_y, text_y) = (middle_y(row) + 20.0, middle_y(row) + 36.0);
    let right = WIDTH - 20.0;
    let _ = write!(svg, "<path d=\"M{LEFT} {line_y:.1}H{right}\" stroke=\"#888\"/>");
    let _ = write!(svg, "<text x=\"{LEFT}\" y=\"{text_y:.1}\">{:.2}</text>", axis.low);
    let (middle, unit) = (f64::midpoint(LEFT, right), escape(unit));
    let _ = write!(svg, "<text x=\"{middle}\" y=\"{text_y:.1}\" text-anchor=\"middle\">{unit}</text>");
    let _ = write!(svg, "<text x=\"{right}\" y=\"{text_y:.1}\" text-anchor=\"end\">{:.2}</text>", axis.high);
}

fn bar(svg: &mut String, row: f64, x: f64, value: f64) {
    let top = middle_y(row) - 16.0;
    let _ = write!(svg, "<path d=\"M{x:.1} {top:.1}v36\" stroke=\"#dc2626\" stroke-dasharray=\"4 3\"/>");
    let _ = write!(
        svg,
        "<text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#dc2626\">bar {value}</text>",
        top - 3.0
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figure::{Bar, tests::outcome};

    #[test]
    fn every_sample_is_a_dot() {
        let svg = dots(&outcome(Bar::AtMost(1.5)));
        assert_eq!(svg.matches("<circle").count(), 9);
        assert!(svg.contains("bar 1.5") && !svg.contains("NaN"));
    }

    #[test]
    fn equal_samples_have_an_axis() {
        let axis = Axis::over([1.0, 1.0]);
        assert!(axis.x(1.0).is_finite() && axis.low < 1.0 && axis.high > 1.0);
    }
}
