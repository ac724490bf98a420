//! Counts and standing as text: OpenMetrics 1.0, or what Prometheus read before it (0.0.4).
//!
//! What families there are stands in [`crate::families`]; one without a sample is left out. Counters get `_total`, units are
//! part of a name.

use crate::{histogram::Histogram, shard::Counts, standing::Standing};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, NoLabelSet, prometheus_text, text},
    metrics::MetricType,
    registry::{Registry, Unit},
};
use std::fmt;

/// How metrics are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// Prometheus' text format 0.0.4.
    Plain,
}

impl Format {
    /// What a client that sends this `accept` header gets: OpenMetrics where it says that it takes that.
    pub fn accepted(header: Option<&str>) -> Self {
        let takes = |range: &str| {
            let mut parts = range.split(';').map(str::trim);
            let named = parts.next().is_some_and(|kind| kind.eq_ignore_ascii_case("application/openmetrics-text"));
            named && !parts.any(|parameter| matches!(parameter, "q=0" | "q=0.0" | "q=0.00" | "q=0.000"))
        };
        if header.is_some_and(|header| header.split(',').any(takes)) { Self::OpenMetrics } else { Self::Plain }
    }

    /// The `content-type`.
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Plain => prometheus_text::CONTENT_TYPE,
        }
    }
}

/// Writes all there is.
pub fn render(counts: Counts, standing: Standing, format: Format) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Page { counts, standing }));
    let mut out = String::new();
    let written = match format {
        Format::OpenMetrics => text::encode(&mut out, &registry),
        Format::Plain => prometheus_text::encode(&mut out, &registry),
    };
    written.expect("a String takes all text");
    out
}

#[derive(Debug)]
struct Page {
    counts: Counts,
    standing: Standing,
}

impl Collector for Page {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut out = Out(encoder);
        out.counts(&self.counts)?;
        out.standing(&self.counts, &self.standing)
    }
}

/// Names and values.
pub(crate) type Labels<'a> = Vec<(&'a str, &'a str)>;

/// Where families are written to.
pub(crate) struct Out<'a>(DescriptorEncoder<'a>);

/// What the rows of a family have in common.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Family {
    name: &'static str,
    unit: Option<Measure>,
    help: &'static str,
}

/// The units there are.
#[derive(Clone, Copy, Debug)]
enum Measure {
    Seconds,
    Bytes,
}

pub(crate) const fn family(name: &'static str, help: &'static str) -> Family {
    Family { name, unit: None, help }
}

impl Family {
    pub(crate) const fn seconds(self) -> Self {
        Self { unit: Some(Measure::Seconds), ..self }
    }

    pub(crate) const fn bytes(self) -> Self {
        Self { unit: Some(Measure::Bytes), ..self }
    }

    fn unit(&self) -> Option<Unit> {
        self.unit.map(|unit| match unit {
            Measure::Seconds => Unit::Seconds,
            Measure::Bytes => Unit::Bytes,
        })
    }
}

impl Out<'_> {
    pub(crate) fn counters<V: EncodeCounterValue>(
        &mut self,
        family: Family,
        rows: Vec<(Labels<'_>, V)>,
    ) -> fmt::Result {
        if rows.is_empty() {
            return Ok(());
        }
        let unit = family.unit();
        let mut out = self.0.encode_descriptor(family.name, family.help, unit.as_ref(), MetricType::Counter)?;
        for (labels, value) in rows {
            match labels.is_empty() {
                true => out.encode_counter::<NoLabelSet, V, u64>(&value, None)?,
                false => out.encode_family(&labels)?.encode_counter::<NoLabelSet, V, u64>(&value, None)?,
            }
        }
        Ok(())
    }

    pub(crate) fn counter(&mut self, family: Family, value: u64) -> fmt::Result {
        self.counters(family, vec![(Vec::new(), value)])
    }

    pub(crate) fn gauges<V: EncodeGaugeValue>(&mut self, family: Family, rows: Vec<(Labels<'_>, V)>) -> fmt::Result {
        if rows.is_empty() {
            return Ok(());
        }
        let unit = family.unit();
        let mut out = self.0.encode_descriptor(family.name, family.help, unit.as_ref(), MetricType::Gauge)?;
        for (labels, value) in rows {
            match labels.is_empty() {
                true => out.encode_gauge(&value)?,
                false => out.encode_family(&labels)?.encode_gauge(&value)?,
            }
        }
        Ok(())
    }

    pub(crate) fn gauge(&mut self, family: Family, value: u64) -> fmt::Result {
        self.gauges(family, vec![(Vec::new(), value)])
    }

    pub(crate) fn histograms(&mut self, family: Family, rows: Vec<(Labels<'_>, &Histogram)>) -> fmt::Result {
        if rows.is_empty() {
            return Ok(());
        }
        let unit = family.unit();
        let mut out = self.0.encode_descriptor(family.name, family.help, unit.as_ref(), MetricType::Histogram)?;
        for (labels, histogram) in rows {
            let (sum, count, buckets) = (histogram.sum(), histogram.count(), histogram.buckets());
            out.encode_family(&labels)?.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn openmetrics_is_for_who_asks_for_it() {
        let prometheus = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        assert_eq!(Format::accepted(Some(prometheus)), Format::OpenMetrics);
        for plain in [None, Some(""), Some("*/*"), Some("text/plain"), Some("application/openmetrics-text; q=0")] {
            assert_eq!(Format::accepted(plain), Format::Plain, "{plain:?}");
        }
    }
}
