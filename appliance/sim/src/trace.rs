//! Traces of requests, as CSV.
//!
//! ```text
//!  own                    time_s,function,prompt_tokens,output_tokens   or   time_s,function,service_ms; ,key behind
//!  Azure LLM 2023, 2024   TIMESTAMP,ContextTokens,GeneratedTokens                    one function
//!  Azure Functions 2021   app,func,end_timestamp,duration                            seconds
//!  Azure Functions 2019   HashOwner,HashApp,HashFunction,Trigger,1,2,…,1440          calls in each minute
//! ```
//!
//! The header says which; Azure's are those of <https://github.com/Azure/AzurePublicDataset>. Invariants: requests are in
//! the order of their times, which begin at 0; a line that cannot be read is an error with its number, never left out.

mod azure;

use std::{collections::HashMap, time::Duration};

/// Most requests of a trace: what a minute of simulation can take.
pub(crate) const REQUESTS_MAX: usize = 5_000_000;
/// Longest time of a trace: a month.
const SECONDS_MAX: f64 = 31.0 * 86_400.0;
/// Most keys: each is told by itself.
const KEYS_MAX: usize = 64;

/// A request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Request {
    /// When it comes, from the trace's beginning.
    pub at: Duration,
    /// Which of the trace's functions it calls.
    pub function: u32,
    /// Which of the trace's keys calls; 0 where it names none.
    pub key: u32,
    /// What it asks for.
    pub work: Work,
}

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Work {
    /// Tokens to read and to write.
    Tokens {
        /// Of the prompt.
        prompt: u32,
        /// Of the answer.
        output: u32,
    },
    /// So much time; where its first token falls is not known, and counts as at its beginning.
    Time(Duration),
    /// The trace does not say.
    Unknown,
}

/// Requests in the order in which they come.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Trace {
    /// The requests.
    pub requests: Vec<Request>,
    /// How many functions they call.
    pub functions: u32,
    /// The keys that call, where the trace names them.
    pub keys: Vec<String>,
}

/// Why a text is no trace.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TraceError {
    /// Its first line is none of those that are known.
    #[error(
        "line 1: not a header of a trace that is known: use `time_s,function,prompt_tokens,output_tokens` or \
         `time_s,function,service_ms`, each with or without `,key`, or one of Azure's LLM or Functions traces"
    )]
    Header,
    /// A line cannot be read.
    #[error("line {line}: {reason}")]
    Line {
        /// Its number, from 1.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// It has too many requests.
    #[error("more than {REQUESTS_MAX} requests, which is the most")]
    TooLong,
}

/// One line's requests, with times from any beginning.
type Read<'r> = &'r dyn Fn(&[&str], &mut Names, &mut Vec<Timed>) -> Result<(), String>;

/// A request before its time is counted from the first one's.
struct Timed {
    at_s: f64,
    function: u32,
    key: u32,
    work: Work,
}

/// Functions and keys by the names that a trace gives them.
#[derive(Default)]
struct Names {
    functions: HashMap<String, u32>,
    keys: Vec<String>,
}

impl Names {
    fn number(&mut self, name: &str) -> u32 {
        let next = self.functions.len() as u32;
        *self.functions.entry(name.to_owned()).or_insert(next)
    }

    fn key(&mut self, name: &str) -> Result<u32, String> {
        if let Some(known) = self.keys.iter().position(|key| key == name) {
            return Ok(known as u32);
        }
        if self.keys.len() == KEYS_MAX {
            return Err(format!("more than {KEYS_MAX} keys"));
        }
        self.keys.push(name.to_owned());
        Ok(self.keys.len() as u32 - 1)
    }
}

impl Trace {
    /// Reads a trace.
    ///
    /// # Errors
    /// The first line that cannot be read.
    pub fn parse(text: &str) -> Result<Self, TraceError> {
        let header: Vec<_> =
            text.trim_start_matches('\u{feff}').lines().next().unwrap_or_default().trim().split(',').collect();
        match header[..] {
            ["time_s", "function", "prompt_tokens", "output_tokens"] => read(text, &own_tokens),
            ["time_s", "function", "service_ms"] => read(text, &own_time),
            ["time_s", "function", "prompt_tokens", "output_tokens", "key"] => read(text, &own_tokens_of_keys),
            ["time_s", "function", "service_ms", "key"] => read(text, &own_time_of_keys),
            ["TIMESTAMP", "ContextTokens", "GeneratedTokens"] => read(text, &azure::llm),
            ["app", "func", "end_timestamp", "duration"] => read(text, &azure::functions_2021),
            ["HashOwner", "HashApp", "HashFunction", "Trigger", ..] => read(text, &azure::functions_2019),
            _ => Err(TraceError::Header),
        }
    }

    /// Of its functions the first so many, in the order in which the trace names them.
    pub fn first(self, functions: u32) -> Self {
        let requests = self.requests.into_iter().filter(|request| request.function < functions).collect();
        Self { requests, functions: self.functions.min(functions), keys: self.keys }
    }

    /// What one of its keys asks for.
    pub(crate) fn only(&self, key: u32) -> Self {
        let requests = self.requests.iter().filter(|request| request.key == key).copied().collect();
        Self { requests, functions: self.functions, keys: self.keys.clone() }
    }

    /// From the first request to the last.
    pub fn length(&self) -> Duration {
        self.requests.last().map_or(Duration::ZERO, |last| last.at)
    }

    /// Requests in the order of their times, which begin with the first.
    fn of(mut timed: Vec<Timed>, names: Names) -> Result<Self, TraceError> {
        timed.sort_by(|a, b| a.at_s.total_cmp(&b.at_s));
        let first_s = timed.first().map_or(0.0, |first| first.at_s);
        let request = |t: Timed| {
            let at = Duration::from_micros(((t.at_s - first_s).min(SECONDS_MAX) * 1e6) as u64);
            Request { at, function: t.function, key: t.key, work: t.work }
        };
        let (functions, keys) = (names.functions.len() as u32, names.keys);
        Ok(Self { requests: timed.into_iter().map(request).collect(), functions, keys })
    }
}

fn read(text: &str, line: Read<'_>) -> Result<Trace, TraceError> {
    let (mut names, mut timed) = (Names::default(), Vec::new());
    for (index, content) in text.lines().enumerate().skip(1).filter(|(_, content)| !content.trim().is_empty()) {
        let fields: Vec<_> = content.trim().split(',').collect();
        let wrong = |reason| TraceError::Line { line: index + 1, reason };
        line(&fields, &mut names, &mut timed).map_err(wrong)?;
        let span = timed.first().zip(timed.last()).map_or(0.0, |(first, last)| (last.at_s - first.at_s).abs());
        if span > SECONDS_MAX {
            return Err(wrong("more than a month from the first request".to_owned()));
        }
        if timed.len() > REQUESTS_MAX {
            return Err(TraceError::TooLong);
        }
    }
    Trace::of(timed, names)
}

fn own_tokens(fields: &[&str], names: &mut Names, timed: &mut Vec<Timed>) -> Result<(), String> {
    let [time_s, function, prompt, output] = expect(fields)?;
    let work = Work::Tokens { prompt: tokens(prompt)?, output: tokens(output)? };
    timed.push(Timed { at_s: seconds(time_s)?, function: names.number(function), key: 0, work });
    Ok(())
}

fn own_time(fields: &[&str], names: &mut Names, timed: &mut Vec<Timed>) -> Result<(), String> {
    let [time_s, function, service_ms] = expect(fields)?;
    let work = time(seconds(service_ms)? / 1000.0);
    timed.push(Timed { at_s: seconds(time_s)?, function: names.number(function), key: 0, work });
    Ok(())
}

fn own_tokens_of_keys(fields: &[&str], names: &mut Names, timed: &mut Vec<Timed>) -> Result<(), String> {
    let [time_s, function, prompt, output, key] = expect(fields)?;
    own_tokens(&[time_s, function, prompt, output], names, timed)?;
    of_key(key, names, timed)
}

fn own_time_of_keys(fields: &[&str], names: &mut Names, timed: &mut Vec<Timed>) -> Result<(), String> {
    let [time_s, function, service_ms, key] = expect(fields)?;
    own_time(&[time_s, function, service_ms], names, timed)?;
    of_key(key, names, timed)
}

/// Makes the last request one of a key.
fn of_key(key: &str, names: &mut Names, timed: &mut [Timed]) -> Result<(), String> {
    let key = names.key(key)?;
    timed.last_mut().expect("it was read before its key").key = key;
    Ok(())
}

fn expect<'f, const N: usize>(fields: &[&'f str]) -> Result<[&'f str; N], String> {
    fields.try_into().map_err(|_| format!("{} fields where {N} are expected", fields.len()))
}

fn tokens(text: &str) -> Result<u32, String> {
    let known = text.trim().parse::<u32>().ok().filter(|tokens| *tokens <= 1 << 24);
    known.ok_or_else(|| format!("`{}` is not a number of tokens", shown(text)))
}

/// A number that is not negative, and not so great that sums of it lose their seconds.
fn seconds(text: &str) -> Result<f64, String> {
    let known = text.trim().parse::<f64>().ok().filter(|seconds| (0.0..1e12).contains(seconds));
    known.ok_or_else(|| format!("`{}` is not a time", shown(text)))
}

fn time(seconds: f64) -> Work {
    Work::Time(Duration::from_micros((seconds.min(SECONDS_MAX) * 1e6) as u64))
}

/// As much of a text as an error may show.
fn shown(text: &str) -> String {
    text.chars().take(32).collect::<String>().escape_debug().to_string()
}

#[cfg(test)]
mod tests;
