//! The counts at the end of a reply: OpenAI's `usage`, with our receipt in it, and llama-server's `timings`.

use crate::receipt::{Receipt, ms};
use appliance_price::Prices;
use appliance_types::Record;
use serde::{Serialize, Serializer, ser::SerializeStruct};

/// Tokens, and what they cost.
#[derive(Clone, Debug, PartialEq)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Tokens produced.
    pub completion_tokens: u32,
    /// Tokens of the prompt found in the KV cache.
    pub cached_tokens: u32,
    /// The bill.
    pub receipt: Option<Receipt>,
}

impl Usage {
    /// The usage of `record`, with its receipt.
    pub fn from_record(record: &Record, prices: &Prices) -> Self {
        Self {
            prompt_tokens: record.tokens_in,
            completion_tokens: record.tokens_out,
            cached_tokens: record.tokens_cached,
            receipt: Some(Receipt::from_record(record, prices)),
        }
    }

    /// The same without what only produced text has.
    pub(crate) fn of_prompt_only(&self) -> impl Serialize {
        #[derive(Serialize)]
        struct PromptUsage<'a> {
            prompt_tokens: u32,
            total_tokens: u32,
            #[serde(skip_serializing_if = "Option::is_none")]
            ember: Option<&'a Receipt>,
        }
        PromptUsage {
            prompt_tokens: self.prompt_tokens,
            total_tokens: self.prompt_tokens,
            ember: self.receipt.as_ref(),
        }
    }
}

impl Serialize for Usage {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Details {
            cached_tokens: u32,
        }
        let mut usage = serializer.serialize_struct("Usage", 5)?;
        usage.serialize_field("prompt_tokens", &self.prompt_tokens)?;
        usage.serialize_field("completion_tokens", &self.completion_tokens)?;
        let total = u64::from(self.prompt_tokens) + u64::from(self.completion_tokens);
        usage.serialize_field("total_tokens", &total)?;
        usage.serialize_field("prompt_tokens_details", &Details { cached_tokens: self.cached_tokens })?;
        match &self.receipt {
            Some(receipt) => usage.serialize_field("ember", receipt)?,
            None => usage.skip_field("ember")?,
        }
        usage.end()
    }
}

/// llama-server's account of where the time went.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Timings {
    cache_n: u32,
    prompt_n: u32,
    prompt_ms: f64,
    prompt_per_token_ms: f64,
    prompt_per_second: f64,
    predicted_n: u32,
    predicted_ms: f64,
    predicted_per_token_ms: f64,
    predicted_per_second: f64,
}

impl Timings {
    /// The timings of `record`.
    pub fn from_record(record: &Record) -> Self {
        let prompt_n = record.tokens_in.saturating_sub(record.tokens_cached);
        let (prompt_ms, predicted_ms) = (ms(record.prefill_us), ms(record.decode_us));
        Self {
            cache_n: record.tokens_cached,
            prompt_n,
            prompt_ms,
            prompt_per_token_ms: ratio(prompt_ms, prompt_n.into()),
            prompt_per_second: ratio(f64::from(prompt_n) * 1_000.0, prompt_ms),
            predicted_n: record.tokens_out,
            predicted_ms,
            predicted_per_token_ms: ratio(predicted_ms, record.tokens_out.into()),
            predicted_per_second: ratio(f64::from(record.tokens_out) * 1_000.0, predicted_ms),
        }
    }
}

/// A ratio, 0 of nothing.
fn ratio(dividend: f64, divisor: f64) -> f64 {
    if divisor == 0.0 { 0.0 } else { dividend / divisor }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::receipt::tests::record;

    #[test]
    fn usage_adds_up() {
        let usage = Usage { receipt: None, ..Usage::from_record(&record(), &Prices::default()) };
        let expected = r#"{"prompt_tokens":30,"completion_tokens":60,"total_tokens":90,"prompt_tokens_details":{"cached_tokens":10}}"#;
        assert_eq!(serde_json::to_string(&usage).unwrap(), expected);
    }

    #[test]
    fn timings_are_llama_servers() {
        let expected = r#"{"cache_n":10,"prompt_n":20,"prompt_ms":20.0,"prompt_per_token_ms":1.0,"prompt_per_second":1000.0,"predicted_n":60,"predicted_ms":300.0,"predicted_per_token_ms":5.0,"predicted_per_second":200.0}"#;
        let timings = Timings::from_record(&Record { decode_us: 300_000, ..record() });
        assert_eq!(serde_json::to_string(&timings).unwrap(), expected);
        let nothing = Timings::from_record(&Record { decode_us: 0, tokens_out: 0, tokens_in: 0, ..record() });
        assert_eq!((nothing.predicted_per_second, nothing.prompt_per_token_ms), (0.0, 0.0));
    }
}
