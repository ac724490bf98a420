//! Text to a vector.
//!
//! A text is computed whole, in one decode: pooling over parts would pool each by itself. So the context of an embedding
//! function takes batches as long as the context, and an input cannot be cancelled half-way.

use crate::{
    engine::Engine,
    error::{LoadError, internal},
    model::Model,
    sequence::count,
};
use appliance_types::Task;
use llama_cpp_2::{
    context::params::{LlamaContextParams, LlamaPoolingType},
    token::LlamaToken,
};
use sandbox_wire::runner::{Failure, Prompt};

/// A text as a vector.
#[derive(Clone, Debug, PartialEq)]
pub struct Embedding {
    /// A vector of length one.
    pub values: Vec<f32>,
    /// Tokens of the input.
    pub tokens: u32,
}

impl Engine<'_> {
    /// Turns an input into a vector; with `truncate` as much of it as fits the context.
    ///
    /// # Errors
    /// The function is not an embedding one, the input does not fit, or llama.cpp failed.
    pub fn embed(&mut self, input: &Prompt, truncate: bool) -> Result<Embedding, Failure> {
        if self.task != Task::Embedding {
            let message = format!("a {} function does not embed; use task = \"embedding\"", self.task);
            return Err(Failure::Unsupported { message });
        }
        let mut tokens = self.input_tokens(input)?;
        if truncate {
            tokens.truncate(self.context_tokens as usize);
        }
        self.check_fits(tokens.len(), self.context_tokens)?;
        self.context.clear_kv_cache();
        let values = self.pooled(&tokens);
        self.context.clear_kv_cache();
        Ok(Embedding { values: normalised(&values?)?, tokens: count(tokens.len()) })
    }

    fn pooled(&mut self, tokens: &[LlamaToken]) -> Result<Vec<f32>, Failure> {
        self.batch.clear();
        self.batch.add_sequence(tokens, 0, true).map_err(internal)?;
        self.threads.gather(&mut self.context);
        self.context.decode(&mut self.batch).map_err(internal)?;
        self.context.embeddings_seq_ith(0).map(<[f32]>::to_vec).map_err(internal)
    }
}

/// Completes the parameters of a context that embeds: pooled as the model says, or by the mean where it says nothing.
pub(crate) fn params(
    model: &Model,
    params: LlamaContextParams,
    context_tokens: u32,
) -> Result<LlamaContextParams, LoadError> {
    let own: Option<i32> = model.architecture_metadata("pooling_type").and_then(|kind| kind.parse().ok());
    let pooling = match own.map_or(LlamaPoolingType::None, LlamaPoolingType::from) {
        LlamaPoolingType::None | LlamaPoolingType::Unspecified => LlamaPoolingType::Mean,
        LlamaPoolingType::Rank => {
            return Err(LoadError::Unfit { reason: "it ranks texts; it does not embed".to_owned() });
        }
        own => own,
    };
    Ok(params
        .with_embeddings(true)
        .with_pooling_type(pooling)
        .with_n_batch(context_tokens)
        .with_n_ubatch(context_tokens))
}

fn normalised(values: &[f32]) -> Result<Vec<f32>, Failure> {
    let length = values.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>().sqrt();
    if !(length.is_finite() && length > 0.0) {
        return Err(internal(format!("an embedding of length {length}")));
    }
    Ok(values.iter().map(|&value| (f64::from(value) / length) as f32).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_get_length_one() {
        assert_eq!(normalised(&[3.0, 4.0]).unwrap(), [0.6, 0.8]);
        for bad in [&[0.0, 0.0][..], &[f32::NAN], &[f32::INFINITY], &[]] {
            assert!(normalised(bad).is_err(), "{bad:?}");
        }
    }
}
