//! The dashboard: files that a browser is given, as they are in `web/`, and how it must treat them.
//!
//! ```text
//!  GET / ─▶ index.html ─▶ /ui/app.css, /ui/app.js ─▶ the other modules ─▶ the API, with the key that was typed in
//! ```
//!
//! Invariants: the files hold nothing secret and nothing of this box, so that they need no key; nothing is fetched from
//! anywhere else, and what the API says enters the page as text alone. [`POLICY`] has the browser hold all of that, whatever
//! a mistake in a script would do. There is no build step: what is read in `web/` is what runs.
//! Left out: who may ask the API for what (`appliance-daemon`).

use std::sync::LazyLock;

/// `content-security-policy` of every file.
pub const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
     img-src 'self'; form-action 'none'; frame-ancestors 'none'; base-uri 'none'; \
     require-trusted-types-for 'script'; trusted-types 'none'";

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";

/// One file.
#[derive(Debug, PartialEq, Eq)]
pub struct Asset {
    /// Where it is asked for.
    pub path: &'static str,
    /// Its `content-type`.
    pub content_type: &'static str,
    /// What is in it.
    pub body: &'static [u8],
    /// Names these bytes; quoted, as the header has it.
    pub etag: String,
}

macro_rules! assets {
    ($($path:literal $kind:ident $file:literal)*) => {
        /// All files.
        pub static ASSETS: LazyLock<Vec<Asset>> =
            LazyLock::new(|| vec![$(asset($path, $kind, include_bytes!(concat!("../web/", $file)))),*]);
    };
}

assets! {
    "/" HTML "index.html"
    "/ui/app.css" CSS "app.css"
    "/ui/icon.svg" SVG "icon.svg"
    "/ui/api.js" SCRIPT "api.js"
    "/ui/app.js" SCRIPT "app.js"
    "/ui/budgets.js" SCRIPT "budgets.js"
    "/ui/chat.js" SCRIPT "chat.js"
    "/ui/dom.js" SCRIPT "dom.js"
    "/ui/explain.js" SCRIPT "explain.js"
    "/ui/functions.js" SCRIPT "functions.js"
    "/ui/numbers.js" SCRIPT "numbers.js"
    "/ui/overview.js" SCRIPT "overview.js"
    "/ui/usage.js" SCRIPT "usage.js"
    "/ui/wakes.js" SCRIPT "wakes.js"
    "/ui/waterfall.js" SCRIPT "waterfall.js"
}

/// The file that is asked for at `path`.
pub fn find(path: &str) -> Option<&'static Asset> {
    ASSETS.iter().find(|asset| asset.path == path)
}

fn asset(path: &'static str, content_type: &'static str, body: &'static [u8]) -> Asset {
    let etag = format!("\"{}\"", &blake3::hash(body).to_hex()[..32]);
    Asset { path, content_type, body, etag }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{collections::BTreeSet, fs, path::Path};

    /// What all of it may weigh.
    const BYTES_MAX: usize = 200_000;

    fn texts() -> impl Iterator<Item = (&'static str, &'static str)> {
        ASSETS.iter().map(|asset| (asset.path, str::from_utf8(asset.body).expect("UTF-8")))
    }

    #[test]
    fn all_of_it_is_small() {
        let bytes: usize = ASSETS.iter().map(|asset| asset.body.len()).sum();
        assert!(bytes <= BYTES_MAX, "{bytes} bytes");
    }

    #[test]
    fn every_file_is_served_and_none_twice() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("web");
        let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let files: BTreeSet<_> = files.collect();
        let name = |asset: &Asset| match asset.path {
            "/" => "index.html".to_owned(),
            path => path.trim_start_matches("/ui/").to_owned(),
        };
        let served: Vec<_> = ASSETS.iter().map(name).collect();
        assert_eq!(served.len(), files.len());
        assert_eq!(served.into_iter().collect::<BTreeSet<_>>(), files);
    }

    #[test]
    fn what_a_file_asks_for_is_there() {
        let mut asked = BTreeSet::new();
        for (path, text) in texts() {
            for quoted in text.split(['"', '\'', '`']) {
                let names = match quoted.strip_prefix("./") {
                    Some(module) => Some(format!("/ui/{module}")),
                    None => quoted.starts_with("/ui/").then(|| quoted.to_owned()),
                };
                if let Some(name) = names {
                    assert!(find(&name).is_some(), "{path} asks for {name}");
                    asked.insert(name);
                }
            }
        }
        let all: BTreeSet<_> = ASSETS.iter().map(|asset| asset.path.to_owned()).filter(|path| path != "/").collect();
        assert_eq!(asked, all, "a file that nobody asks for");
    }

    /// The policy would have the browser refuse it; here it is found before.
    #[test]
    fn nothing_is_inline_and_nothing_comes_from_elsewhere() {
        let elsewhere = |text: &str| {
            let text = text.replace("http://www.w3.org/", "");
            text.contains("http://") || text.contains("https://") || text.contains("\"//")
        };
        for (path, text) in texts() {
            assert!(!elsewhere(text), "{path} names another host");
            for word in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"] {
                assert!(!text.contains(word), "{path}: {word}");
            }
            if path == "/" {
                assert!(!text.contains("<style") && !text.contains(" style=") && !text.contains(" on"), "inline");
                assert!(text.split("<script").skip(1).all(|tag| tag.contains("></script>")), "an inline script");
            }
        }
    }

    #[test]
    fn other_bytes_have_another_etag() {
        let etags: BTreeSet<_> = ASSETS.iter().map(|asset| asset.etag.as_str()).collect();
        assert_eq!(etags.len(), ASSETS.len());
        assert!(etags.iter().all(|etag| etag.starts_with('"') && etag.ends_with('"') && etag.len() == 34));
    }
}
