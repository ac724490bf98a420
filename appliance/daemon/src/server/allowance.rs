//! A request's part of what its key may use: asked for before the work, settled when the request's account is closed.
//!
//! Invariant: an [`Allowance`] is settled once, by its drop; so the requests of a key that run are never miscounted,
//! however they end. A limiter is locked to count, never while something is waited for.

use super::reply::{self, Reply};
use appliance_admit::limit::{Limit, Limiter, Refused, Standing};
use appliance_api::ApiError;
use appliance_keys::Caller;
use sandbox_wire::runner::{Generate, Prompt};
use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// Bytes of text that a token stands for, as far as that can be said before the model is asked.
const BYTES_PER_TOKEN: usize = 4;
/// Tokens that a chat's template adds to a message.
const TEMPLATE_TOKENS: usize = 8;

/// What a request was granted.
#[derive(Debug)]
pub(super) struct Allowance {
    limiter: Arc<Mutex<Limiter>>,
    granted: Instant,
    reserved: u32,
    used: u32,
}

impl Allowance {
    /// Asks for a request of at most `tokens`; `None` where the key has no limits.
    ///
    /// # Errors
    /// 429, with the limit and when to try again.
    pub(super) fn ask(caller: &Caller, tokens: u32) -> Result<Option<Self>, ApiError> {
        let Some(limiter) = &caller.limiter else { return Ok(None) };
        let granted = Instant::now();
        locked(limiter).ask(granted, tokens).map_err(|refused| told(caller.key.name.as_str(), tokens, refused))?;
        Ok(Some(Self { limiter: Arc::clone(limiter), granted, reserved: tokens, used: 0 }))
    }

    /// So many tokens were used in the end.
    pub(super) fn used(&mut self, tokens: u32) {
        self.used = tokens;
    }
}

impl Drop for Allowance {
    fn drop(&mut self) {
        let now = Instant::now();
        locked(&self.limiter).settle(now, self.reserved, self.used, now - self.granted);
    }
}

/// Most tokens that answering `prompts` may use, each within a context of `context_tokens`.
pub(super) fn tokens_of(prompts: &[Generate], context_tokens: u32) -> u32 {
    let each = prompts.iter().map(|generate| {
        let prompt = prompt_tokens(&generate.prompt).saturating_add(tools_tokens(generate));
        prompt.saturating_add(generate.tokens_max).min(context_tokens)
    });
    each.fold(0, u32::saturating_add)
}

/// About how many tokens a prompt has. What it really had is known when the request has ended, and counted then.
pub(super) fn prompt_tokens(prompt: &Prompt) -> u32 {
    let text = |bytes: usize| bytes.div_ceil(BYTES_PER_TOKEN);
    let tokens = match prompt {
        Prompt::Chat(messages) => messages.iter().map(|message| text(message.content.len()) + TEMPLATE_TOKENS).sum(),
        Prompt::Text(bytes) => text(bytes.len()),
        Prompt::Tokens(tokens) => tokens.len(),
    };
    u32::try_from(tokens).unwrap_or(u32::MAX)
}

/// About how many tokens it takes to tell of tools.
fn tools_tokens(generate: &Generate) -> u32 {
    let bytes =
        generate.tools.iter().flat_map(|tools| &tools.definitions).map(|tool| tool.definition.len()).sum::<usize>();
    u32::try_from(bytes.div_ceil(BYTES_PER_TOKEN)).unwrap_or(u32::MAX)
}

/// Says in a reply how the key's limits stand; nothing where it has none.
pub(super) fn show(reply: &mut Reply, limiter: Option<&Mutex<Limiter>>) {
    let Some(limiter) = limiter else { return };
    let now = Instant::now();
    let (requests, tokens) = {
        let limiter = locked(limiter);
        (limiter.requests(now), limiter.tokens(now))
    };
    let names = ["x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"];
    set(reply, names, requests);
    set(reply, ["x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"], tokens);
}

fn set(reply: &mut Reply, names: [&'static str; 3], standing: Option<Standing>) {
    let Some(Standing { limit, remaining, reset }) = standing else { return };
    let values = [limit.to_string(), remaining.to_string(), in_words(reset)];
    names.into_iter().zip(values).for_each(|(name, value)| reply::set(reply, name, &value));
}

/// As OpenAI writes them: `0s`, `6ms`, `12s`, `1m2s`; rounded up.
fn in_words(duration: Duration) -> String {
    let ms = duration.as_nanos().div_ceil(1_000_000);
    match (ms, ms.div_ceil(1_000)) {
        (1..1_000, _) => format!("{ms}ms"),
        (_, seconds @ 0..60) => format!("{seconds}s"),
        (_, seconds) => format!("{}m{}s", seconds / 60, seconds % 60),
    }
}

fn told(key: &str, tokens: u32, refused: Refused) -> ApiError {
    let Refused { limit, allowed, retry_after } = refused;
    let what = match limit {
        Limit::Rpm => format!("the key `{key}` may make {allowed} requests a minute (rpm)"),
        Limit::Tpm => format!("the key `{key}` may use {allowed} tokens a minute (tpm), and this may use {tokens}"),
        Limit::Concurrency => format!("the key `{key}` may make {allowed} requests at once (concurrency)"),
    };
    let reason = match limit {
        Limit::Rpm => "key_rpm",
        Limit::Tpm => "key_tpm",
        Limit::Concurrency => "key_concurrency",
    };
    match retry_after {
        Some(wait) => {
            let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
            let seconds = seconds.max(1);
            ApiError::rate_limit(format!("{what}; try again in {seconds} s"), seconds).because(reason)
        }
        None => {
            let error = ApiError::rate_limit(format!("{what}; ask for less, trying again does not help"), 0);
            ApiError { retry_after_s: None, ..error }.because(reason)
        }
    }
}

/// A panic while counting left no count half made.
fn locked(limiter: &Mutex<Limiter>) -> MutexGuard<'_, Limiter> {
    limiter.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_openai_writes_them() {
        let words = |ms| in_words(Duration::from_millis(ms));
        assert_eq!([0, 6, 999, 1000, 1001].map(words), ["0s", "6ms", "999ms", "1s", "2s"]);
        assert_eq!([59_999, 62_000].map(words), ["1m0s", "1m2s"]);
        assert_eq!(in_words(Duration::from_nanos(1)), "1ms");
    }

    #[test]
    fn a_refusal_names_the_limit_and_when_to_try_again() {
        let refused = |limit, retry_after| told("app", 9, Refused { limit, allowed: 5, retry_after });
        let error = refused(Limit::Rpm, Some(Duration::from_millis(1200)));
        assert_eq!((error.status, error.retry_after_s), (429, Some(2)));
        assert!(error.message.contains("rpm") && error.message.contains("in 2 s"), "{error}");
        assert_eq!(refused(Limit::Concurrency, Some(Duration::ZERO)).retry_after_s, Some(1));
        let never = refused(Limit::Tpm, None);
        assert_eq!((never.code, never.retry_after_s), (Some("rate_limit_exceeded"), None));
    }

    #[test]
    fn a_reservation_stays_within_the_context() {
        assert_eq!(prompt_tokens(&Prompt::Text("x".repeat(9))), 3);
        assert_eq!(prompt_tokens(&Prompt::Tokens(vec![1; 9])), 9);
    }
}
