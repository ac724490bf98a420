//! State to frame. Pure.
//!
//! ```text
//!  title · box: cores, memory, rates · first token, warm and cold · functions ┆ wakes │ money, errors · keys
//! ```
//! Whatever is short of room is cut from below; nothing is told by colour alone.

use super::{
    sample::Sample,
    state::{Function, State},
};
use crate::output;
use appliance_types::{Record, Tier};
use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style},
    text::{Line, Span},
    widgets::{Block, Borders, Paragraph, Row, Table},
};

/// Rows of what stands above and below the functions: title, box, first tokens with their frame, and keys.
const ABOVE: u16 = 1 + 4 + 4;
const BELOW: u16 = 12;
pub(super) const KEYS: u16 = 1;
/// Those from which a wake has parts.
const TIERS: u16 = 2;
/// Cells of a bar.
const BAR: usize = 20;

/// Rows that a frame needs to show all.
pub(super) fn rows(state: &State) -> u16 {
    let functions = u16::try_from(state.functions().len()).unwrap_or(u16::MAX).min(500);
    ABOVE + functions.max(1) + 3 + BELOW + KEYS
}

/// Draws it all.
pub(super) fn draw(frame: &mut Frame<'_>, state: &State) {
    let areas = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(4),
        Constraint::Length(4),
        Constraint::Min(4),
        Constraint::Max(BELOW),
        Constraint::Length(KEYS),
    ]);
    let [title, box_, tokens, functions, below, keys] = areas.areas(frame.area());
    frame.render_widget(Paragraph::new(title_line(state)), title);
    frame.render_widget(Paragraph::new(keys_line(state)), keys);
    let Some(sample) = state.last() else { return };
    frame.render_widget(Paragraph::new(box_lines(state, sample)).block(framed("box")), box_);
    frame.render_widget(Paragraph::new(token_lines(state)).block(framed("first token")), tokens);
    frame.render_widget(function_table(state), functions);
    let halves = Layout::horizontal([Constraint::Percentage(58), Constraint::Percentage(42)]).spacing(1);
    let [left, right] = halves.areas(below);
    let [left, parts] = Layout::vertical([Constraint::Fill(1), Constraint::Length(TIERS)]).areas(left);
    frame.render_widget(wakes(state, sample), left);
    frame.render_widget(Paragraph::new(part_lines(sample)), parts);
    draw_right(frame, state, sample, right);
}

fn draw_right(frame: &mut Frame<'_>, state: &State, sample: &Sample, area: Rect) {
    let [money, errors] = Layout::vertical([Constraint::Percentage(58), Constraint::Percentage(42)]).areas(area);
    let spent = sample.spending.iter().map(|spent| {
        let cost = output::money(spent.cost_nanos, &sample.currency);
        Row::new([spent.group.clone(), spent.requests.to_string(), cost])
    });
    let widths = [Constraint::Fill(1), Constraint::Length(8), Constraint::Length(20)];
    let table = Table::new(spent, widths).header(header(["KEY", "REQUESTS", "COST"]));
    frame.render_widget(table.block(framed("spent in 24 h")), money);
    let refusals = state.refusals().into_iter().map(|(reason, count)| Row::new([reason, count.to_string()]));
    let table = Table::new(refusals, [Constraint::Fill(1), Constraint::Length(10)]);
    frame.render_widget(table.block(framed("errors since the start")), errors);
}

fn framed(title: &str) -> Block<'static> {
    Block::new().borders(Borders::TOP).title(format!(" {title} "))
}

fn header<const N: usize>(names: [&'static str; N]) -> Row<'static> {
    Row::new(names).style(Style::new().add_modifier(Modifier::BOLD))
}

fn title_line(state: &State) -> Line<'_> {
    let bold = Style::new().add_modifier(Modifier::BOLD);
    let mut spans = vec![Span::styled("ember top", bold), Span::raw(format!("  {}", state.url))];
    if let Some(sample) = state.last() {
        let build = sample.scrape.each("ember_build_info").next().map_or("", |series| series.label("version"));
        let up = (sample.unix_ms as f64 / 1e3 - sample.scrape.sum("ember_start_time_seconds")).max(0.0) as u64;
        spans.push(Span::raw(format!("  emberd {build}, up {}", output::seconds(up))));
        spans.extend(sample.draining.then(|| Span::styled("  DRAINING", alarm(state))));
    }
    spans.extend(state.is_paused().then(|| Span::styled("  PAUSED", bold)));
    spans.extend(state.fault.as_ref().map(|fault| Span::styled(format!("  {fault}"), alarm(state))));
    Line::from(spans)
}

/// What somebody should see.
fn alarm(state: &State) -> Style {
    let style = Style::new().add_modifier(Modifier::BOLD | Modifier::REVERSED);
    if state.colored { style.fg(Color::Red) } else { style }
}

fn keys_line(state: &State) -> Line<'_> {
    if state.typing {
        return Line::from(format!("filter: {}_   Enter keeps it, Escape drops it", state.filter));
    }
    let filter = if state.filter.is_empty() { String::new() } else { format!(" ({})", state.filter) };
    Line::from(format!("q quit   p pause   s sort ({})   / filter{filter}", state.order.word()))
}

fn box_lines(state: &State, sample: &Sample) -> Vec<Line<'static>> {
    let sum = |name: &str| sample.scrape.sum(name);
    let [cores, leased] = ["ember_cores", "ember_cores_leased"].map(sum);
    let [memory, held] = ["ember_memory_bytes", "ember_memory_leased_bytes"].map(sum);
    let in_state = |wanted: &str| sample.scrape.sum_where("ember_instances", |series| series.label("state") == wanted);
    let [busy, idle, waking] = ["busy", "idle", "waking"].map(in_state);
    let written = |series: &super::scrape::Series| series.label("gen_ai_token_type") == "output";
    let tokens = state.rate("gen_ai_client_token_usage_sum", written);
    let [requests, errors] = ["ember_requests_total", "ember_refusals_total"].map(|name| state.rate(name, |_| true));
    let [running, waiting] = ["ember_slots_busy", "ember_queue_depth"].map(sum);
    let bytes = |bytes: f64| output::bytes(bytes as u64);
    vec![
        Line::from(vec![
            Span::raw("cores  "),
            bar(state, leased, cores),
            Span::raw(format!(" {leased} of {cores} leased   instances {busy} busy, {idle} idle, {waking} waking")),
        ]),
        Line::from(vec![
            Span::raw("memory "),
            bar(state, held, memory),
            Span::raw(format!(" {} of {} leased", bytes(held), bytes(memory))),
        ]),
        Line::from(format!(
            "{requests:.1} requests/s   {tokens:.1} tokens/s   {errors:.1} errors/s   {running} running   {waiting} waiting"
        )),
    ]
}

fn bar(state: &State, part: f64, all: f64) -> Span<'static> {
    let share = if all > 0.0 { (part / all).clamp(0.0, 1.0) } else { 0.0 };
    let full = (share * BAR as f64).round() as usize;
    let text = format!("[{}{}]", "#".repeat(full), ".".repeat(BAR - full));
    let color = if share < 0.9 { Color::Green } else { Color::Yellow };
    Span::styled(text, if state.colored { Style::new().fg(color) } else { Style::new() })
}

fn token_lines(state: &State) -> Vec<Line<'static>> {
    let watched = state.watched_s();
    let of = if watched > 0.0 { format!("in {watched:.0} s") } else { "since the start".to_owned() };
    let line = |name: &str, cold: bool| {
        let times = state.first_tokens(cold);
        let ms = |share: f64| times.quantile(share).map_or(output::NONE.to_owned(), |s| format!("{:.0} ms", s * 1e3));
        Line::from(format!("{name}  p50 {:>8}  p99 {:>8}  of {:.0} {of}", ms(0.5), ms(0.99), times.count()))
    };
    vec![line("warm, an instance was up ", false), line("cold, a wake was waited for", true)]
}

fn function_table(state: &State) -> Table<'static> {
    let rows = state.functions();
    let count = rows.len();
    let names = ["FUNCTION", "TIER", "INSTANCES", "RUNNING", "WAITING", "PRIVATE", "SHARED", "PARKED", "REQUESTS/S"];
    let widths = [
        Constraint::Fill(1),
        Constraint::Length(7),
        Constraint::Length(9),
        Constraint::Length(7),
        Constraint::Length(7),
        Constraint::Length(10),
        Constraint::Length(10),
        Constraint::Length(10),
        Constraint::Length(10),
    ];
    let rows = rows.into_iter().map(|row| function_row(state, row));
    Table::new(rows, widths).header(header(names)).block(framed(&format!("functions: {count}")))
}

fn function_row(state: &State, row: Function) -> Row<'static> {
    let bytes = |bytes: u64| if bytes == 0 { output::NONE.to_owned() } else { output::bytes(bytes) };
    let color = match row.tier {
        Tier::Running => Color::Green,
        Tier::Parked => Color::Yellow,
        Tier::Stored => Color::Cyan,
        Tier::Cold => Color::Blue,
    };
    let style = if state.colored { Style::new().fg(color) } else { Style::new() };
    let cells = [
        Span::raw(row.name),
        Span::styled(row.tier.to_string(), style),
        Span::raw(row.instances.to_string()),
        Span::raw(format!("{}/{}", row.slots_busy, row.slots)),
        Span::raw(row.waiting.to_string()),
        Span::raw(bytes(row.private_bytes)),
        Span::raw(bytes(row.shared_bytes)),
        Span::raw(bytes(row.parked_bytes)),
        Span::raw(format!("{:.1}", row.rate)),
    ];
    Row::new(cells)
}

fn wakes(state: &State, sample: &Sample) -> Table<'static> {
    let shown = sample.wakes.iter().filter(|wake| wake.function.as_str().contains(&state.filter));
    let rows = shown.map(|wake| wake_row(wake, sample.unix_ms));
    let widths = [
        Constraint::Length(7),
        Constraint::Fill(1),
        Constraint::Length(7),
        Constraint::Length(8),
        Constraint::Length(8),
        Constraint::Length(8),
    ];
    let header = header(["AGO", "FUNCTION", "FROM", "QUEUE", "WAKE", "PREFILL"]);
    Table::new(rows, widths).header(header).block(framed("last wakes, ms"))
}

fn wake_row(wake: &Record, now_ms: u64) -> Row<'static> {
    let ms = |us: u64| format!("{:.1}", us as f64 / 1e3);
    Row::new([
        output::seconds(now_ms.saturating_sub(wake.ended_unix_ms) / 1_000),
        wake.function.to_string(),
        wake.tier.to_string(),
        ms(wake.queue_us),
        ms(wake.wake_us),
        ms(wake.prefill_us),
    ])
}

/// What a wake is made of in the mean, of all since the start of the server: a line a tier.
fn part_lines(sample: &Sample) -> Vec<Line<'static>> {
    let of = |tier: &str| {
        let wakes = sample.scrape.sum_where("ember_wakes_total", |series| series.label("tier") == tier);
        let part = |part: &str| {
            let is_it = |series: &super::scrape::Series| series.label("tier") == tier && series.label("part") == part;
            let mean = sample.scrape.sum_where("ember_wake_part_seconds_total", is_it) * 1e3 / wakes;
            format!("{part} {mean:.1}")
        };
        let parts = ["find", "process", "ready", "handover"].map(part).join(" + ");
        (wakes > 0.0).then(|| Line::from(format!("{tier}: {parts} ms")))
    };
    ["parked", "stored"].into_iter().filter_map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::{super::scrape::Scrape, super::state::Press, *};
    use appliance_types::RequestId;
    use ratatui::{Terminal, backend::TestBackend};
    use serde_json::json;
    use std::time::{Duration, Instant};

    fn page(requests: u32, first_tokens: u32) -> Scrape {
        Scrape::parse(&format!(
            "ember_build_info{{version=\"0.1.0\"}} 1\nember_start_time_seconds 1000\nember_cores 4\nember_cores_leased 1\n\
             ember_memory_bytes 8589934592\nember_memory_leased_bytes 4294967296\nember_slots_busy 2\n\
             ember_instances{{state=\"busy\"}} 1\nember_queue_depth{{function=\"a\",class=\"batch\"}} 3\n\
             ember_requests_total{{function=\"b\",tier=\"running\",outcome=\"completed\"}} {requests}\n\
             ember_first_token_seconds_bucket{{le=\"0.1\",tier=\"running\"}} {first_tokens}\n\
             ember_first_token_seconds_bucket{{le=\"+Inf\",tier=\"running\"}} {first_tokens}\n\
             ember_refusals_total{{reason=\"queue_full\"}} 7\nember_wakes_total{{tier=\"parked\"}} 2\n\
             ember_wake_part_seconds_total{{tier=\"parked\",part=\"process\"}} 0.003\n"
        ))
    }

    fn sample(at: Instant, scrape: Scrape) -> Sample {
        let functions = json!([{"name": "a", "tier": "stored"}, {"name": "b", "tier": "running"}]);
        let instances = json!([{"function": "b", "instance": 1, "private_bytes": 20 << 20, "shared_bytes": 90 << 20, "slots": 4, "slots_busy": 2}]);
        let spending = json!([{"group": "app", "requests": 12, "cost_nanos": 2_500_000_000_u64}]);
        let request = RequestId::from_random(7);
        let mut wake = Record::new(request, "app".parse().unwrap(), "b".parse().unwrap());
        (wake.tier, wake.wake_us, wake.prefill_us, wake.ended_unix_ms) = (Tier::Parked, 4_200, 61_000, 2_000_000);
        Sample {
            at,
            unix_ms: 2_005_000,
            draining: false,
            scrape,
            functions: serde_json::from_value(functions).unwrap(),
            instances: serde_json::from_value(instances).unwrap(),
            wakes: [wake].into(),
            spending: serde_json::from_value(spending).unwrap(),
            currency: "USD".to_owned(),
        }
    }

    /// Looked at twice in 10 s, in which 50 requests were answered, 40 of them within 0.1 s.
    fn watched() -> State {
        let (mut state, began) = (State::new("https://127.0.0.1:8443", false), Instant::now());
        state.take(Ok(sample(began, page(10, 5))));
        state.take(Ok(sample(began + Duration::from_secs(10), page(60, 45))));
        state
    }

    fn drawn(state: &State, columns: u16, rows: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(columns, rows)).unwrap();
        terminal.draw(|frame| draw(frame, state)).unwrap();
        let buffer = terminal.backend().buffer();
        let row = |y| (0..columns).map(|x| buffer[(x, y)].symbol()).collect::<String>();
        (0..rows).map(|y| row(y).trim_end().to_owned() + "\n").collect()
    }

    #[track_caller]
    fn shows(frame: &str, words: &[&str]) {
        let squeezed = frame.split_whitespace().collect::<Vec<_>>().join(" ");
        words.iter().for_each(|words| assert!(squeezed.contains(words), "{words:?} is not in\n{frame}"));
    }

    #[test]
    fn a_frame_says_what_the_box_does() {
        let state = watched();
        let frame = drawn(&state, 110, rows(&state));
        shows(
            &frame,
            &[
                "https://127.0.0.1:8443 emberd 0.1.0, up 16m45s",
                "cores [#####...............] 1 of 4 leased instances 1 busy",
                "memory [##########..........] 4.0 GiB of 8.0 GiB leased",
                "5.0 requests/s",
                "2 running 3 waiting",
                "warm, an instance was up p50 50 ms p99 99 ms of 40 in 10 s",
                "cold, a wake was waited for p50 - p99 - of 0 in 10 s",
                "b running 1 2/4 0 20.0 MiB 90.0 MiB - 5.0",
                "a stored 0 0/0 3 - - - 0.0",
                "5s b parked 0.0 4.2 61.0",
                "app 12 2.5 USD",
                "queue_full 7",
                "parked: find 0.0 + process 1.5",
                "q quit p pause s sort (tier) / filter",
            ],
        );
    }

    #[test]
    fn keys_sort_filter_pause_and_quit() {
        let mut state = watched();
        let order = |state: &State| state.functions().iter().map(|row| row.name.clone()).collect::<String>();
        let press = |state: &mut State, letters: &str| {
            letters.chars().for_each(|letter| assert!(state.press(Press::Letter(letter)).is_continue()));
        };
        assert_eq!(order(&state), "ba");
        press(&mut state, "s");
        assert_eq!(order(&state), "ab");
        press(&mut state, "/q");
        shows(&drawn(&state, 100, 40), &["filter: q_", "functions: 0"]);
        assert!(state.press(Press::Back).is_continue());
        press(&mut state, "b");
        assert!(state.press(Press::Enter).is_continue());
        assert_eq!(order(&state), "b");
        press(&mut state, "p");
        shows(&drawn(&state, 100, 40), &["PAUSED", "/ filter (b)"]);
        press(&mut state, "/");
        assert!(state.press(Press::Escape).is_continue(), "Escape drops the filter first");
        assert_eq!(order(&state), "ab");
        assert!(state.press(Press::Letter('q')).is_break());
        assert!(state.press(Press::Interrupt).is_break());
    }

    #[test]
    fn no_size_is_too_small_and_no_colour_is_needed() {
        let mut state = watched();
        for (columns, rows) in [(1, 1), (10, 3), (40, 12), (80, 24), (300, 100)] {
            drawn(&state, columns, rows);
        }
        let styles = |state: &State| {
            let mut terminal = Terminal::new(TestBackend::new(100, 40)).unwrap();
            terminal.draw(|frame| draw(frame, state)).unwrap();
            terminal.backend().buffer().content().iter().filter(|cell| cell.fg != Color::Reset).count()
        };
        assert_eq!(styles(&state), 0);
        state.colored = true;
        assert!(styles(&state) > 0);
    }

    #[test]
    fn a_look_that_fails_is_told_and_what_was_seen_stays() {
        let mut state = watched();
        state.take(Err("cannot reach it".to_owned()));
        shows(&drawn(&state, 120, 40), &["cannot reach it", "b running"]);
        state.take(Ok(sample(Instant::now(), Scrape::parse("ember_start_time_seconds 2000\n"))));
        assert_eq!((state.fault.as_deref(), state.watched_s()), (None, 0.0), "another start of the server");
    }
}
