//! What a source file must and must not hold.
//!
//! Works on tokens, so that a word in a comment or a string is not mistaken for code; comments themselves are looked
//! up by line.

use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// Where `unsafe` may stand, each block argued: the fences, and a program of tests that holds what only it can make.
pub const FENCES: &[&str] =
    &["appliance/meter/", "appliance/runtime/", "sandbox/image/subject/", "sandbox/kernel/", "sandbox/model/"];

/// Lines of one statement that may stand between a SAFETY note and its `unsafe`.
const STATEMENT_LINES_MAX: usize = 6;

/// A file begins by saying what it is for.
pub fn without_header(path: &str, text: &str) -> Option<String> {
    let header = text.lines().next().is_some_and(|line| line.strip_prefix("//! ").is_some_and(|said| said.len() > 10));
    (!header).then(|| format!("{path}:1: no `//!` header"))
}

/// `unsafe` stands only in fences, and each has its note.
pub fn unsafe_misplaced_or_unargued(path: &str, text: &str) -> Vec<String> {
    let tokens = tokens(path, text);
    let lines: Vec<&str> = text.lines().collect();
    let mut violations = Vec::new();
    for (at, token) in tokens.iter().enumerate().filter(|(_, token)| token.text == "unsafe") {
        if !FENCES.iter().any(|fence| path.starts_with(fence)) {
            violations.push(format!("{path}:{}: unsafe outside the fences", token.line));
        } else if !is_function(&tokens[at + 1..]) && !is_argued(&lines, token.line) {
            violations.push(format!("{path}:{}: unsafe without a SAFETY note above", token.line));
        }
    }
    violations
}

/// An `unsafe fn`, declared or as a pointer's type, promises something but does nothing yet: what its body does stands in
/// blocks of their own, and what a public one asks of its caller is clippy's `missing_safety_doc`.
fn is_function(after: &[Token]) -> bool {
    let texts: Vec<&str> = after.iter().take(3).map(|token| token.text.as_str()).collect();
    matches!(texts[..], ["fn", ..] | ["extern", _, "fn"])
}

/// Whether the comment above line `line` (from 1) argues for what is there.
fn is_argued(lines: &[&str], line: usize) -> bool {
    let mut statement_lines = 0;
    for text in lines[..line - 1].iter().rev().map(|line| line.trim()) {
        match text {
            _ if text.starts_with("//") && text.contains("SAFETY:") => return true,
            _ if text.starts_with("//") || text.starts_with("#[") => {}
            _ if text.ends_with([';', '{', '}', ',']) || text.is_empty() => return false,
            _ if statement_lines == STATEMENT_LINES_MAX => return false,
            _ => statement_lines += 1,
        }
    }
    false
}

/// Nothing is put off.
pub fn unfinished(path: &str, text: &str) -> Vec<String> {
    let put_off = |pair: &&[Token]| matches!(pair[0].text.as_str(), "todo" | "unimplemented") && pair[1].text == "!";
    let say = |pair: &[Token]| format!("{path}:{}: {}!", pair[0].line, pair[0].text);
    tokens(path, text).windows(2).filter(put_off).map(say).collect()
}

/// Files that no `mod` names are compiled by nobody. `sources` are (path, text) of every file of a package.
pub fn dead_files(sources: &[(String, String)]) -> Vec<String> {
    let is_root = |path: &str| !path.contains("/src/") || path.ends_with("/lib.rs") || path.ends_with("/main.rs");
    let modules = sources.iter().filter(|(path, _)| !is_root(path));
    let dead =
        modules.filter(|(path, _)| !parents(path).iter().any(|parent| declares(sources, parent, module_of(path))));
    dead.map(|(path, _)| format!("{path}: no `mod` names it")).collect()
}

fn module_of(path: &str) -> &str {
    let stem = path.trim_end_matches("/mod.rs").trim_end_matches(".rs");
    stem.rsplit('/').next().expect("a path has a last part")
}

fn parents(path: &str) -> Vec<String> {
    let folder = path.trim_end_matches("/mod.rs").rsplit_once('/').expect("a module lies in a folder").0;
    ["/mod.rs", ".rs", "/lib.rs", "/main.rs"].iter().map(|end| format!("{folder}{end}")).collect()
}

fn declares(sources: &[(String, String)], parent: &str, module: &str) -> bool {
    let declaration = |three: &[Token]| three[0].text == "mod" && three[1].text == module && three[2].text == ";";
    let parent = sources.iter().find(|(path, _)| path == parent);
    parent.is_some_and(|(path, text)| tokens(path, text).windows(3).any(declaration))
}

/// One token, a group's brackets being tokens too.
struct Token {
    text: String,
    line: usize,
}

/// The words of a file, brackets being words too.
pub(super) fn words(path: &str, text: &str) -> Vec<String> {
    tokens(path, text).into_iter().map(|token| token.text).collect()
}

fn tokens(path: &str, text: &str) -> Vec<Token> {
    let stream: TokenStream = text.parse().unwrap_or_else(|error| panic!("{path} is not Rust: {error}"));
    let mut tokens = Vec::new();
    flatten(stream, &mut tokens);
    tokens
}

fn flatten(stream: TokenStream, tokens: &mut Vec<Token>) {
    for tree in stream {
        let line = tree.span().start().line;
        match tree {
            TokenTree::Group(group) => {
                let (open, close) = brackets(group.delimiter());
                tokens.push(Token { text: open.to_owned(), line });
                flatten(group.stream(), tokens);
                tokens.push(Token { text: close.to_owned(), line: group.span_close().start().line });
            }
            leaf => tokens.push(Token { text: leaf.to_string(), line }),
        }
    }
}

fn brackets(delimiter: Delimiter) -> (&'static str, &'static str) {
    match delimiter {
        Delimiter::Parenthesis => ("(", ")"),
        Delimiter::Brace => ("{", "}"),
        Delimiter::Bracket => ("[", "]"),
        Delimiter::None => ("", ""),
    }
}
