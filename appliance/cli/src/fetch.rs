//! A file at a URL, read as one stream however often the connection breaks.
//!
//! ```text
//!  GET ──200, length, validator──▶ bytes ──broken at N──▶ GET, Range: bytes=N-, If-Range: validator ──206──▶ the rest ──▶ end
//!                                                              └── 200, another length, no such range: an error
//! ```
//! Invariants: bytes of two versions are never joined where the host tells versions apart (a strong `ETag`, else
//! `Last-Modified`; with neither, nothing is resumed); no credential of ours is sent; https proves the host by the system's
//! certificates (`SSL_CERT_FILE`, else Debian's), and http proves nothing, so that it needs a digest. Left out: a host that
//! lies with a straight face. Only a digest tells, which is checked behind this.

use crate::{
    client::{certificates, trusting},
    error::Error,
};
use std::{
    env,
    io::{self, Read},
    path::PathBuf,
    thread,
    time::Duration,
};
use ureq::{
    Agent, Body, BodyReader,
    http::{HeaderMap, Response, header},
};

const CERTIFICATES: &str = "/etc/ssl/certs/ca-certificates.crt";
const TIMEOUT: Duration = Duration::from_secs(30);
const REDIRECTS_MAX: u32 = 5;
/// Tries in a row that bring nothing, and the pause before the second of them; it doubles. Together half a minute.
const TRIES_MAX: u32 = 8;
const PAUSE: Duration = Duration::from_millis(250);

/// The stream, and where it is.
pub(crate) struct Fetch {
    agent: Agent,
    url: String,
    /// What names this version of the file.
    validator: Option<String>,
    bytes: u64,
    at: u64,
    body: Option<BodyReader<'static>>,
    /// Tries since the last byte.
    tries: u32,
    /// Why it ended early: whoever reads knows only that it did.
    failed: Option<String>,
}

/// Whether an argument is a URL, and no file's name.
pub(crate) fn is_url(text: &str) -> bool {
    text.contains("://")
}

/// Whether something may be fetched from there at all: where nothing proves the host, a digest must prove the file.
pub(crate) fn check_url(url: &str, has_digest: bool) -> Result<(), Error> {
    if is_secure(url) || (url.starts_with("http://") && has_digest) {
        return Ok(());
    }
    let reason = "a model is fetched over https, or over http with --sha256 HEX, which then proves what came";
    Err(Error::Usage(format!("{url}: {reason}")))
}

fn is_secure(url: &str) -> bool {
    url.starts_with("https://")
}

impl Fetch {
    /// Asks for the file and learns how long it is.
    pub(crate) fn begin(url: &str) -> Result<Self, Error> {
        let mut fetch = Self {
            agent: agent(is_secure(url))?,
            url: url.to_owned(),
            validator: None,
            bytes: 0,
            at: 0,
            body: None,
            tries: 0,
            failed: None,
        };
        let reply = fetch.ask().map_err(|reason| fetch.error(reason))?;
        if reply.status() != 200 {
            return Err(fetch.error(format!("it answered {}", reply.status())));
        }
        fetch.bytes = number(reply.headers(), header::CONTENT_LENGTH)
            .ok_or_else(|| fetch.error("it does not say how long the file is".to_owned()))?;
        fetch.validator = validator(reply.headers());
        fetch.body = Some(reply.into_body().into_reader());
        Ok(fetch)
    }

    /// The length that was announced, bytes.
    pub(crate) fn announced_bytes(&self) -> u64 {
        self.bytes
    }

    /// Why it ended before its end, if it did.
    pub(crate) fn failure(&mut self) -> Option<Error> {
        self.failed.take().map(|reason| self.error(reason))
    }

    fn error(&self, reason: String) -> Error {
        Error::Fetch { url: self.url.clone(), reason }
    }

    fn ask(&self) -> Result<Response<Body>, String> {
        let mut request = self.agent.get(&self.url).header("accept-encoding", "identity");
        if let (1.., Some(validator)) = (self.at, &self.validator) {
            request = request.header("range", format!("bytes={}-", self.at)).header("if-range", validator);
        }
        request.call().map_err(|error| error.to_string())
    }

    /// Goes on where the last connection broke off. An error may be gone at the next try; what is final is `failed`.
    fn resume(&mut self) -> io::Result<()> {
        let reply = self.ask().map_err(io::Error::other)?;
        let status = reply.status().as_u16();
        let range = reply.headers().get(header::CONTENT_RANGE).and_then(|range| range.to_str().ok());
        if matches!(status, 429 | 500..) {
            return Err(io::Error::other(format!("it answered {status}")));
        }
        if self.at == 0 && status == 200 && number(reply.headers(), header::CONTENT_LENGTH) == Some(self.bytes) {
            self.validator = validator(reply.headers());
        } else if status != 206 || range != Some(&self.rest()) {
            return Err(
                self.end(format!("the file changed while it was fetched, at byte {} of {}", self.at, self.bytes))
            );
        }
        self.body = Some(reply.into_body().into_reader());
        Ok(())
    }

    /// What a host must say that resumes where we are.
    fn rest(&self) -> String {
        format!("bytes {}-{}/{}", self.at, self.bytes - 1, self.bytes)
    }

    fn end(&mut self, reason: String) -> io::Error {
        self.failed = Some(reason.clone());
        io::Error::other(reason)
    }

    /// Waits before another try, or gives up.
    fn pause(&mut self, error: &io::Error) -> io::Result<()> {
        self.body = None;
        self.tries += 1;
        let Self { at, bytes, .. } = *self;
        if self.failed.is_some() {
            return Err(io::Error::other("it ended"));
        }
        if at > 0 && self.validator.is_none() {
            return Err(self.end(format!(
                "the connection broke at byte {at} of {bytes}, and the host names no version to resume: {error}"
            )));
        }
        if self.tries == TRIES_MAX {
            return Err(self.end(format!("nothing came after byte {at} of {bytes} in {TRIES_MAX} tries: {error}")));
        }
        thread::sleep(PAUSE * 2_u32.pow(self.tries - 1));
        Ok(())
    }

    fn read_once(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.body.is_none() {
            self.resume()?;
        }
        let body = self.body.as_mut().ok_or(io::ErrorKind::NotConnected)?;
        // A host may send more than it said.
        let most = buffer.len().min(usize::try_from(self.bytes - self.at).unwrap_or(usize::MAX));
        match body.read(&mut buffer[..most])? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            got => Ok(got),
        }
    }
}

impl Read for Fetch {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at == self.bytes || buffer.is_empty() {
            return Ok(0);
        }
        loop {
            match self.read_once(buffer) {
                Ok(got) => {
                    (self.at, self.tries) = (self.at + got as u64, 0);
                    return Ok(got);
                }
                Err(error) => self.pause(&error)?,
            }
        }
    }
}

fn agent(is_secure: bool) -> Result<Agent, Error> {
    let roots = if is_secure {
        certificates(&env::var_os("SSL_CERT_FILE").map_or_else(|| PathBuf::from(CERTIFICATES), PathBuf::from))?
    } else {
        Vec::new()
    };
    let config = Agent::config_builder()
        .tls_config(trusting(roots))
        .https_only(is_secure)
        .max_redirects(REDIRECTS_MAX)
        .http_status_as_error(false)
        .user_agent(concat!("ember/", env!("CARGO_PKG_VERSION")))
        .timeout_connect(Some(TIMEOUT))
        .timeout_recv_response(Some(TIMEOUT))
        .timeout_per_read(Some(TIMEOUT))
        .build();
    Ok(config.new_agent())
}

fn text(headers: &HeaderMap, name: header::HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

fn number(headers: &HeaderMap, name: header::HeaderName) -> Option<u64> {
    text(headers, name)?.parse().ok()
}

/// What `If-Range` may name a version by: a weak tag says too little.
fn validator(headers: &HeaderMap) -> Option<String> {
    let strong = text(headers, header::ETAG).filter(|tag| tag.starts_with('"'));
    strong.or_else(|| text(headers, header::LAST_MODIFIED)).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn http_proves_nothing_without_a_digest() {
        for (url, has_digest) in [("http://127.0.0.1:1/m.gguf", false), ("ftp://host/m.gguf", true)] {
            assert!(matches!(check_url(url, has_digest), Err(Error::Usage(_))), "{url}");
        }
        assert!(check_url("http://127.0.0.1:1/m.gguf", true).is_ok() && check_url("https://host/m", false).is_ok());
        assert!(matches!(Fetch::begin("http://127.0.0.1:1/m.gguf"), Err(Error::Fetch { .. })));
    }

    #[test]
    fn only_what_names_a_version_exactly_resumes_it() {
        let headers = |pairs: &[(header::HeaderName, &str)]| -> HeaderMap {
            pairs.iter().map(|(name, value)| (name.clone(), value.parse().unwrap())).collect()
        };
        let (date, strong, weak) = ("Mon, 30 Nov 2026 00:00:00 GMT", "\"a\"", "W/\"a\"");
        assert_eq!(
            validator(&headers(&[(header::ETAG, strong), (header::LAST_MODIFIED, date)])).as_deref(),
            Some(strong)
        );
        assert_eq!(validator(&headers(&[(header::ETAG, weak), (header::LAST_MODIFIED, date)])).as_deref(), Some(date));
        assert_eq!(validator(&headers(&[(header::ETAG, weak)])), None);
    }
}
