//! Paths that the docs name.
//!
//! A word in backticks is a path of the tree when it begins with one of the top-level folders and holds nothing but
//! the letters of paths; `{a,b}` stands for several, and a `:line` at its end is dropped. A link's target counts as a
//! path from the folder of the page. Words that a reader is to replace (`<date>`, `NAME`) are thereby left alone.

/// Docs that a reader may count on.
pub const REQUIRED: &[&str] = &["README.md", "CHANGELOG.md", "docs/ARCHITECTURE.md", "docs/SPECIFICATION.md"];

const TOP_LEVEL: &[&str] =
    &["appliance", "sandbox", "images", "firmware", "bench", "tests", "docs", ".ci", ".cargo", ".config", "scripts"];

/// Paths that `page` (at `path`, from the root) names, as paths from the root.
pub fn paths_named(path: &str, page: &str) -> Vec<String> {
    let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
    let quoted = outside_blocks(page).flat_map(|line| line.split('`').skip(1).step_by(2)).flat_map(expand);
    let quoted = quoted.filter_map(|word| tree_path(&word));
    let linked = outside_blocks(page).flat_map(targets).map(|target| resolve(folder, target));
    quoted.chain(linked).collect()
}

/// Paths that a page names and that are not there.
pub fn paths_missing(path: &str, page: &str, exists: impl Fn(&str) -> bool) -> Vec<String> {
    let missing = paths_named(path, page).into_iter().filter(|named| !exists(named));
    missing.map(|named| format!("{path}: names `{named}`, which is not there")).collect()
}

fn outside_blocks(page: &str) -> impl Iterator<Item = &str> {
    let mut inside = false;
    page.lines().filter(move |line| {
        let fence = line.trim_start().starts_with("```");
        inside ^= fence;
        !inside && !fence
    })
}

fn expand(word: &str) -> Vec<String> {
    let Some((before, rest)) = word.split_once('{') else { return vec![word.to_owned()] };
    let Some((choices, after)) = rest.split_once('}') else { return vec![word.to_owned()] };
    choices.split(',').flat_map(|choice| expand(&format!("{before}{}{after}", choice.trim()))).collect()
}

fn tree_path(word: &str) -> Option<String> {
    let word = word.split(':').next().unwrap_or(word).trim_end_matches('/');
    let letters = word.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-/".contains(&b));
    let (top, _) = word.split_once('/')?;
    (letters && TOP_LEVEL.contains(&top)).then(|| word.to_owned())
}

fn targets(line: &str) -> impl Iterator<Item = &str> {
    let all = line.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    all.map(|target| target.split('#').next().unwrap_or(target)).filter(|t| !t.is_empty() && !t.contains("://"))
}

fn resolve(folder: &str, target: &str) -> String {
    let mut parts: Vec<&str> = folder.split('/').filter(|part| !part.is_empty()).collect();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}
