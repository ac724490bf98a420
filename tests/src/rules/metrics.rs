//! What is counted is counted somewhere: a metric that nobody increments, or that is filled in and never written, fails.
//!
//! Works on tokens of the shards' and the standing's files: fields of the structs named below, and calls of a shard's methods.

use super::source::words;

/// Fields of `strukt` in a source file.
fn fields(text: &[String], strukt: &str) -> Vec<String> {
    let Some(at) = text.windows(3).position(|three| three[0] == "struct" && three[1] == strukt && three[2] == "{")
    else {
        return Vec::new();
    };
    let mut depth = 0;
    let mut found = Vec::new();
    for pair in text[at + 2..].windows(3) {
        match pair[0].as_str() {
            "{" | "(" | "[" | "<" => depth += 1,
            "}" if depth == 1 => break,
            "}" | ")" | "]" | ">" => depth -= 1,
            name if depth == 1 && pair[1] == ":" && pair[2] != ":" => found.push(name.to_owned()),
            _ => {}
        }
    }
    found
}

/// The words outside functions named `add`, which only sum up what was counted.
fn without_sums(text: Vec<String>) -> Vec<String> {
    let mut summing = false;
    let mut kept = Vec::new();
    for (at, word) in text.iter().enumerate() {
        if word == "fn" {
            summing = text.get(at + 1).is_some_and(|name| name == "add");
        }
        if !summing {
            kept.push(word.clone());
        }
    }
    kept
}

/// Methods of `impl Shard`.
fn methods(text: &[String]) -> Vec<String> {
    let Some(at) = text.windows(3).position(|three| three[0] == "impl" && three[1] == "Shard" && three[2] == "{")
    else {
        return Vec::new();
    };
    let end = text[at + 1..].iter().position(|word| word == "impl").map_or(text.len(), |end| at + 1 + end);
    let public = text[at..end].windows(3).filter(|three| three[0] == "pub" && three[1] == "fn");
    public.map(|three| three[2].clone()).collect()
}

/// Counts of `shard` (the text of the shards' file) that nothing adds to, and those of its methods that no text of
/// `callers` calls.
pub fn never_incremented(shard: &str, callers: &[&str]) -> Vec<String> {
    let text = without_sums(words("shard", shard));
    let added = |field: &str| {
        text.windows(4)
            .any(|w| w[0] == "." && w[1] == field && (w[2] == "+" && w[3] == "=" || w[2] == "." && w[3] == "entry"))
            || text.windows(7).any(|w| {
                w[0] == "observe"
                    && w[1] == "("
                    && w[2] == "&"
                    && w[3] == "mut"
                    && w[4] == "self"
                    && w[5] == "."
                    && w[6] == field
            })
    };
    let counts = ["Counts", "Series"].iter().flat_map(|strukt| fields(&text, strukt));
    // Sums of others, which are not counted by themselves.
    let counted = counts.filter(|field| field != "functions" && field != "others");
    let silent = counted.filter(|field| !added(field)).map(|field| format!("the count `{field}`: nothing adds to it"));
    let callers: Vec<_> = callers.iter().map(|text| words("caller", text)).collect();
    let called =
        |method: &str| callers.iter().any(|text| text.windows(3).any(|w| w[0] == "." && w[1] == method && w[2] == "("));
    let methods = methods(&text).into_iter().filter(|method| !called(method));
    silent.chain(methods.map(|method| format!("`Shard::{method}`: nobody calls it"))).collect()
}

/// Fields of the structs in `standing` that `written` never reads.
pub fn never_written(standing: &str, written: &str) -> Vec<String> {
    let (standing, written) = (words("standing", standing), words("written", written));
    let structs =
        standing.windows(3).filter(|three| three[0] == "struct" && three[2] == "{").map(|three| three[1].clone());
    let all = structs.flat_map(|strukt| fields(&standing, &strukt));
    let read = |field: &String| written.windows(2).any(|pair| pair[0] == "." && pair[1] == *field);
    all.filter(|field| !read(field)).map(|field| format!("`{field}` is learnt and never written")).collect()
}
