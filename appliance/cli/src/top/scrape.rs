//! What `/metrics` says, in Prometheus' text format, as far as it is read here.

use std::collections::BTreeMap;

/// All series of a page.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Scrape(Vec<Series>);

/// One series and its value.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Series {
    name: String,
    labels: Vec<(String, String)>,
    pub(super) value: f64,
}

impl Series {
    pub(super) fn label(&self, name: &str) -> &str {
        self.labels.iter().find(|(label, _)| label == name).map_or("", |(_, value)| value)
    }
}

impl Scrape {
    /// Reads a page; what is no series of it is passed over.
    pub(super) fn parse(page: &str) -> Self {
        Self(page.lines().filter(|line| !line.starts_with('#')).filter_map(series).collect())
    }

    pub(super) fn each<'s>(&'s self, name: &'s str) -> impl Iterator<Item = &'s Series> {
        self.0.iter().filter(move |series| series.name == name)
    }

    pub(super) fn sum(&self, name: &str) -> f64 {
        self.sum_where(name, |_| true)
    }

    pub(super) fn sum_where(&self, name: &str, wanted: impl Fn(&Series) -> bool) -> f64 {
        // `sum` of nothing is -0, which would be shown.
        self.each(name).filter(|series| wanted(series)).fold(0.0, |sum, series| sum + series.value)
    }

    /// The buckets of a histogram, over all series that are wanted.
    pub(super) fn buckets(&self, name: &str, wanted: impl Fn(&Series) -> bool) -> Buckets {
        let mut buckets = BTreeMap::new();
        for series in self.each(&format!("{name}_bucket")).filter(|series| wanted(series)) {
            let bound = series.label("le").parse().unwrap_or(f64::INFINITY);
            *buckets.entry(Bound(bound)).or_insert(0.0) += series.value;
        }
        Buckets(buckets.into_iter().map(|(Bound(bound), count)| (bound, count)).collect())
    }
}

/// A bucket's upper bound, which is never NaN where it is compared.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Bound(f64);

impl Eq for Bound {}

impl PartialOrd for Bound {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Bound {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}

/// Upper bounds, and how many values lie below each.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Buckets(Vec<(f64, f64)>);

impl Buckets {
    /// What came since `earlier`; all of it where the server has begun anew.
    pub(super) fn since(&self, earlier: &Self) -> Self {
        let before = |bound: f64| earlier.0.iter().find(|(b, _)| *b == bound).map_or(0.0, |(_, count)| *count);
        if self.count() < earlier.count() {
            return self.clone();
        }
        Self(self.0.iter().map(|(bound, count)| (*bound, (count - before(*bound)).max(0.0))).collect())
    }

    pub(super) fn count(&self) -> f64 {
        self.0.last().map_or(0.0, |(_, count)| *count)
    }

    /// The value below which a share of all lies: between the bounds of its bucket, as if they lay evenly there. Of what
    /// lies beyond the last bound, that bound.
    pub(super) fn quantile(&self, share: f64) -> Option<f64> {
        let rank = share * self.count();
        if rank <= 0.0 {
            return None;
        }
        let (mut bound_below, mut count_below) = (0.0, 0.0);
        for (bound, count) in &self.0 {
            if *count >= rank && bound.is_finite() {
                return Some(bound_below + (bound - bound_below) * (rank - count_below) / (count - count_below));
            }
            if bound.is_finite() {
                (bound_below, count_below) = (*bound, *count);
            }
        }
        Some(bound_below)
    }
}

fn series(line: &str) -> Option<Series> {
    let end = line.find(['{', ' '])?;
    let (name, rest) = line.split_at(end);
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(inner) => labels(inner)?,
        None => (Vec::new(), rest),
    };
    let value = rest.split_whitespace().next()?.parse().ok().filter(|value: &f64| !value.is_nan())?;
    Some(Series { name: name.to_owned(), labels, value })
}

/// Labels up to the closing brace, and what comes after it.
fn labels(mut text: &str) -> Option<(Vec<(String, String)>, &str)> {
    let mut labels = Vec::new();
    loop {
        text = text.trim_start_matches([',', ' ']);
        if let Some(rest) = text.strip_prefix('}') {
            return Some((labels, rest));
        }
        let (name, rest) = text.split_once("=\"")?;
        let (value, rest) = quoted(rest)?;
        labels.push((name.to_owned(), value));
        text = rest;
    }
}

/// A value up to its closing quote, and what comes after it.
fn quoted(text: &str) -> Option<(String, &str)> {
    let (mut value, mut letters) = (String::new(), text.char_indices());
    while let Some((at, letter)) = letters.next() {
        match letter {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => match letters.next()?.1 {
                'n' => value.push('\n'),
                other => value.push(other),
            },
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_read_and_what_is_none_passed_over() {
        let page = Scrape::parse(
            "# HELP a A.\na 3\na{b=\"1\"} 4 1700000000\na{b=\"x\\\"},y\\\\\",c=\"2\"} 0.5\n\nnonsense\na{b= 1\nb NaN\nb +Inf\n",
        );
        let values: Vec<_> =
            page.each("a").map(|series| (series.label("b"), series.label("c"), series.value)).collect();
        assert_eq!(values, [("", "", 3.0), ("1", "", 4.0), ("x\"},y\\", "2", 0.5)]);
        assert_eq!((page.sum("a"), page.sum_where("a", |series| series.label("b") == "1")), (7.5, 4.0));
        assert_eq!(page.sum("b"), f64::INFINITY);
        assert_eq!(page.sum("none").to_string(), "0");
    }

    #[test]
    fn quantiles_lie_where_values_may() {
        let page = |counts: [u32; 3]| {
            let [a, b, c] = counts;
            Scrape::parse(&format!(
                "t_bucket{{le=\"0.1\"}} {a}\nt_bucket{{le=\"0.2\"}} {b}\nt_bucket{{le=\"+Inf\"}} {c}\n"
            ))
            .buckets("t", |_| true)
        };
        let all = page([10, 20, 21]);
        assert_eq!(all.count(), 21.0);
        assert!((all.quantile(0.5).unwrap() - 0.105).abs() < 1e-9, "{:?}", all.quantile(0.5));
        assert_eq!(all.quantile(0.99), Some(0.2), "beyond all bounds");
        assert_eq!(page([0, 0, 0]).quantile(0.5), None);
        let since = all.since(&page([10, 10, 10]));
        assert_eq!(since.count(), 11.0);
        assert!(since.quantile(0.1).unwrap() > 0.1);
        assert_eq!(page([1, 1, 1]).since(&all), page([1, 1, 1]), "a server that began anew");
    }
}
