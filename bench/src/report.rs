//! A run on disk: `report.json` with every sample, `report.html` to look at and its pictures, in a folder named by time and
//! processor.

use crate::{error::Error, figure::Outcome, figure::median, machine::Machine, svg};
use serde::Serialize;
use std::{
    fmt::Write,
    fs, io,
    path::{Path, PathBuf},
};
use time::{OffsetDateTime, format_description::BorrowedFormatItem, macros::format_description};

const STAMP: &[BorrowedFormatItem<'_>] = format_description!("[year]-[month]-[day]T[hour][minute][second]Z");

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:50rem;margin:2rem auto;padding:0 1rem}\
table{border-collapse:collapse}td,th{text-align:left;padding:.1rem 1rem .1rem 0;vertical-align:top}\
svg{width:100%;height:auto}h2{margin-top:2rem}code{font-size:.9em}\
svg text{fill:currentColor}@media(prefers-color-scheme:dark){body{background:#16181c;color:#dde}}";

#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// When the run ended, UTC.
    date: String,
    machine: Machine,
    figures: Vec<Outcome>,
}

impl Report {
    pub(crate) fn new(machine: Machine, figures: Vec<Outcome>) -> Self {
        let date = OffsetDateTime::now_utc().format(STAMP).expect("a date formats by a constant description");
        Self { date, machine, figures }
    }

    /// Writes all files into a new folder below `runs`.
    pub(crate) fn write(&self, runs: &Path) -> Result<PathBuf, Error> {
        let folder = runs.join(format!("{}-{}", self.date, self.machine.cpu_slug()));
        let failed = |source: io::Error| Error::File { path: folder.clone(), source };
        let json = serde_json::to_string_pretty(self).map_err(Error::setup)?;
        fs::create_dir_all(&folder).map_err(failed)?;
        fs::write(folder.join("report.json"), json + "\n").map_err(failed)?;
        fs::write(folder.join("report.html"), self.html()).map_err(failed)?;
        for picture in self.figures.iter().flat_map(|figure| &figure.measured.pictures) {
            fs::write(folder.join(&picture.file), &picture.svg).map_err(failed)?;
        }
        Ok(folder)
    }

    fn html(&self) -> String {
        let mut html = String::from("<!doctype html><html lang=\"en\"><meta charset=\"utf-8\">");
        html.push_str("<meta name=\"viewport\" content=\"width=device-width\"><title>Ember bench</title><style>");
        html.push_str(STYLE);
        html.push_str("</style><h1>Ember bench</h1>");
        html.push_str(&self.card());
        self.figures.iter().for_each(|figure| html.push_str(&section(figure)));
        html.push_str("</html>\n");
        html
    }

    fn card(&self) -> String {
        let machine = &self.machine;
        let rows = [
            ("date", self.date.clone()),
            ("processor", format!("{}, {} cores", machine.cpu, machine.cores)),
            ("memory", format!("{:.1} GiB", machine.memory_kib as f64 / f64::from(1 << 20))),
            ("kernel", machine.kernel.clone()),
            ("compiler", machine.rustc.clone()),
            ("ember", format!("{} at {}", machine.version, machine.commit)),
            ("command", machine.command.clone()),
            ("load before", machine.load.clone()),
        ];
        let mut table = String::from("<table>");
        for (name, value) in rows {
            let _ = write!(table, "<tr><th>{name}<td>{}", escape(&value));
        }
        table + "</table>"
    }
}

fn section(figure: &Outcome) -> String {
    let measured = &figure.measured;
    let mut html = format!("<h2>{}: {}</h2><p><code>{figure}</code></p><table>", figure.name, escape(figure.title));
    for side in [&measured.ours, &measured.peer] {
        let (label, middle) = (escape(&side.label), median(&side.samples));
        let _ =
            write!(html, "<tr><th>{label}<td>median {middle:.2} {}<td>{} samples", measured.unit, side.samples.len());
    }
    html += "</table>";
    html += &svg::dots(figure);
    measured.notes.iter().for_each(|note| html += &format!("<p>{}", escape(note)));
    measured.pictures.iter().for_each(|picture| html += &picture.svg);
    html
}

/// Text as HTML and SVG take it.
pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figure::{Bar, tests::outcome};

    #[test]
    fn a_run_is_a_folder_of_files() {
        let runs = tempfile::tempdir().unwrap();
        let report = Report::new(Machine::this(), vec![outcome(Bar::AtMost(1.5))]);
        let folder = report.write(runs.path()).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&fs::read(folder.join("report.json")).unwrap()).unwrap();
        let figure = &json["figures"][0];
        assert_eq!((figure["value"].as_f64(), figure["ok"].as_bool()), (Some(0.75), Some(true)));
        assert_eq!(figure["bar"], serde_json::json!({"direction": "at_most", "value": 1.5}));
        assert_eq!(figure["measured"]["peer"]["samples"].as_array().unwrap().len(), 3);
        let html = fs::read_to_string(folder.join("report.html")).unwrap();
        assert!(html.contains("S0 0.75 (bar 1.50) ok") && html.contains("<svg"));
        assert!(html.contains("a fake &lt;figure&gt;") && !html.contains("<figure>"));
        let picture = fs::read_to_string(folder.join("fake.svg")).unwrap();
        assert!(html.contains(&picture) && html.contains("one &amp; all"));
    }
}
