//! A figure: two sides that do the same work, measured in turns, and the bar that their ratio is held against.
//!
//! Rounds alternate which side goes first, so that what drifts (heat, neighbours, caches) falls on both alike, and the
//! ratio is taken pair by pair, so that it compares neighbours in time. The value is the median of the ratios.

use crate::error::Error;
use serde::Serialize;
use std::{fmt, path::PathBuf};

/// What every figure is given.
pub(crate) struct Context {
    /// The GGUF to run.
    pub(crate) model: PathBuf,
    /// Run the least that exercises everything.
    pub(crate) smoke: bool,
}

impl Context {
    pub(crate) fn rounds(&self, rounds: usize) -> usize {
        if self.smoke { 1 } else { rounds }
    }
}

/// One line of the specification that can be measured.
pub(crate) trait Figure {
    /// Its name there.
    fn name(&self) -> &'static str;
    /// What it is, in a line.
    fn title(&self) -> &'static str;
    /// What it must reach.
    fn bar(&self) -> Bar;
    /// What it must reach with a model of so many bytes.
    fn bar_for(&self, _model_bytes: u64) -> Bar {
        self.bar()
    }
    /// Whether what it measures is there: where it is not, it is measured only if it is named.
    fn is_ready(&self) -> bool {
        true
    }
    /// Measures both sides.
    fn measure(&self, context: &Context) -> Result<Measured, Error>;
}

/// What a ratio must reach.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(tag = "direction", content = "value", rename_all = "snake_case")]
pub(crate) enum Bar {
    AtLeast(f64),
    AtMost(f64),
}

/// The samples of both sides, in pairs taken one after the other.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Measured {
    pub(crate) unit: &'static str,
    pub(crate) ours: Side,
    pub(crate) peer: Side,
    /// What else was seen, a line each: how it was measured, and where the time went.
    pub(crate) notes: Vec<String>,
    #[serde(skip)]
    pub(crate) pictures: Vec<Picture>,
}

/// A picture of a part of what was measured; a file of its own, and part of the report.
#[derive(Clone, Debug)]
pub(crate) struct Picture {
    /// Its file's name.
    pub(crate) file: String,
    pub(crate) svg: String,
}

impl Measured {
    pub(crate) fn new(unit: &'static str, ours: Side, peer: Side) -> Self {
        Self { unit, ours, peer, notes: Vec::new(), pictures: Vec::new() }
    }
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct Side {
    /// What ran, with its version.
    pub(crate) label: String,
    pub(crate) samples: Vec<f64>,
}

/// A figure, measured and judged.
#[derive(Debug, Serialize)]
pub(crate) struct Outcome {
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    pub(crate) bar: Bar,
    pub(crate) value: f64,
    pub(crate) ok: bool,
    pub(crate) ratios: Vec<f64>,
    pub(crate) measured: Measured,
}

impl Bar {
    pub(crate) fn value(self) -> f64 {
        match self {
            Bar::AtLeast(bar) | Bar::AtMost(bar) => bar,
        }
    }

    fn holds(self, value: f64) -> bool {
        match self {
            Bar::AtLeast(bar) => value >= bar,
            Bar::AtMost(bar) => value <= bar,
        }
    }
}

impl Outcome {
    pub(crate) fn of(figure: &dyn Figure, bar: Bar, measured: Measured) -> Self {
        let pairs = measured.ours.samples.iter().zip(&measured.peer.samples);
        let ratios: Vec<f64> = pairs.map(|(ours, peer)| ours / peer).collect();
        let value = median(&ratios);
        Self { name: figure.name(), title: figure.title(), bar, value, ok: bar.holds(value), ratios, measured }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.ok { "ok" } else { "MISS" };
        write!(f, "{} {:.2} (bar {:.2}) {verdict}", self.name, self.value, self.bar.value())
    }
}

/// Takes `rounds` pairs of samples; who goes first alternates.
pub(crate) fn interleave(
    rounds: usize,
    mut ours: impl FnMut() -> Result<f64, Error>,
    mut peer: impl FnMut() -> Result<f64, Error>,
) -> Result<(Vec<f64>, Vec<f64>), Error> {
    let mut samples = (Vec::with_capacity(rounds), Vec::with_capacity(rounds));
    for round in 0..rounds {
        let (our, their) = if round % 2 == 0 {
            let our = ours()?;
            (our, peer()?)
        } else {
            let their = peer()?;
            (ours()?, their)
        };
        samples.0.push(our);
        samples.1.push(their);
    }
    Ok(samples)
}

/// The middle of `values`, or the mean of the middle two; NaN of nothing.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match (sorted.len(), sorted.len() / 2) {
        (0, _) => f64::NAN,
        (length, middle) if length % 2 == 1 => sorted[middle],
        (_, middle) => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::cell::RefCell;

    /// A figure whose samples are given.
    pub(crate) struct Fake(pub(crate) Bar);

    impl Figure for Fake {
        fn name(&self) -> &'static str {
            "S0"
        }
        fn title(&self) -> &'static str {
            "a fake <figure>"
        }
        fn bar(&self) -> Bar {
            self.0
        }
        fn measure(&self, _: &Context) -> Result<Measured, Error> {
            let side = |label: &str, samples: &[f64]| Side { label: label.into(), samples: samples.into() };
            let measured = Measured::new("ms", side("ours", &[2.0, 3.0, 10.0]), side("peer", &[4.0, 4.0, 4.0]));
            let picture = Picture { file: "fake.svg".into(), svg: "<svg><title>fake</title></svg>".into() };
            Ok(Measured { notes: vec!["one & all".into()], pictures: vec![picture], ..measured })
        }
    }

    pub(crate) fn outcome(bar: Bar) -> Outcome {
        let context = Context { model: PathBuf::new(), smoke: true };
        Outcome::of(&Fake(bar), bar, Fake(bar).measure(&context).unwrap())
    }

    #[test]
    fn a_figure_is_one_line() {
        assert_eq!(outcome(Bar::AtMost(0.8)).to_string(), "S0 0.75 (bar 0.80) ok");
        assert_eq!(outcome(Bar::AtLeast(0.8)).to_string(), "S0 0.75 (bar 0.80) MISS");
    }

    #[test]
    fn the_value_is_the_median_of_pairwise_ratios() {
        let outcome = outcome(Bar::AtMost(1.0));
        assert_eq!((outcome.ratios.as_slice(), outcome.value), (&[0.5, 0.75, 2.5][..], 0.75));
        assert_eq!(median(&[4.0, 1.0]), 2.5);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn rounds_alternate_who_goes_first() {
        let order = RefCell::new(String::new());
        let side = |name: char, sample: f64| {
            let order = &order;
            move || {
                order.borrow_mut().push(name);
                Ok(sample)
            }
        };
        let (ours, peer) = interleave(3, side('a', 1.0), side('b', 2.0)).unwrap();
        assert_eq!((order.borrow().as_str(), ours, peer), ("abbaab", vec![1.0; 3], vec![2.0; 3]));
    }
}
