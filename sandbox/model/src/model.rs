//! A model file, loaded: its weights mapped, its metadata read.
//!
//! The file is untrusted. llama.cpp parses it, inside the sandbox; what it says when it cannot is the error's reason.
//! Metadata are texts of the file: shown to people, bounded, and trusted with nothing.

use crate::{error::LoadError, log};
use llama_cpp_2::{
    LlamaCppError,
    context::{LlamaContext, params::LlamaContextParams},
    llama_backend::LlamaBackend,
    model::{LlamaModel, params::LlamaModelParams},
};
use sandbox_wire::runner::ModelInfo;
use std::path::Path;

const METADATA_BYTES_MAX: usize = 200;

/// A loaded model. Fields are dropped in order: the model goes before the backend.
#[derive(Debug)]
pub struct Model {
    model: LlamaModel,
    backend: LlamaBackend,
}

impl Model {
    /// Maps and parses the file at `path`. One model a process at a time.
    ///
    /// # Errors
    /// [`LoadError::Model`] with llama.cpp's own reason; [`LoadError::Unfit`] for a file without a vocabulary.
    pub fn load(path: &Path) -> Result<Self, LoadError> {
        log::capture();
        let backend =
            LlamaBackend::init().map_err(|error: LlamaCppError| LoadError::Backend { reason: error.to_string() })?;
        log::take();
        let model = LlamaModel::load_from_file(&backend, path, &LlamaModelParams::default())
            .map_err(|error| LoadError::Model { path: path.to_owned(), reason: said_or(&error) })?;
        let model = Self { model, backend };
        model.check_vocabulary()?;
        Ok(model)
    }

    /// What the file says of itself.
    pub(crate) fn info(&self) -> ModelInfo {
        ModelInfo {
            architecture: self.metadata("general.architecture").unwrap_or_default(),
            name: self.metadata("general.name").unwrap_or_default(),
            parameters: self.model.n_params(),
            weight_bytes: self.model.size(),
            vocabulary: u32::try_from(self.model.n_vocab()).unwrap_or(0),
            context_trained_tokens: self.model.n_ctx_train(),
            embedding_length: u32::try_from(self.model.n_embd_out()).unwrap_or(0),
            ..ModelInfo::default()
        }
    }

    /// The chat template that the file brings.
    pub(crate) fn chat_template(&self) -> Option<String> {
        self.model.chat_template(None).ok()?.to_string().ok()
    }

    /// A text of the file, cut to a length that is fit to show.
    pub(crate) fn metadata(&self, key: &str) -> Option<String> {
        let mut value = self.model.meta_val_str(key).ok()?;
        value.truncate(value.floor_char_boundary(METADATA_BYTES_MAX));
        Some(value)
    }

    /// A text of the file under the architecture's own heading, as `llama.pooling_type`.
    pub(crate) fn architecture_metadata(&self, key: &str) -> Option<String> {
        let architecture = self.metadata("general.architecture")?;
        self.metadata(&format!("{architecture}.{key}"))
    }

    /// Whether the state of a sequence cannot be cut back to a prefix.
    pub(crate) fn is_recurrent(&self) -> bool {
        self.model.is_recurrent() || self.model.is_hybrid()
    }

    /// Whether some of the state of a sequence is overwritten while it grows.
    pub(crate) fn is_sliding(&self) -> bool {
        self.architecture_metadata("attention.sliding_window").is_some_and(|window| window != "0")
    }

    /// A context to compute in.
    pub(crate) fn context(&self, params: LlamaContextParams) -> Result<LlamaContext<'_>, LoadError> {
        let context_tokens = params.n_ctx().map_or(0, u32::from);
        log::take();
        self.model
            .new_context(&self.backend, params)
            .map_err(|error| LoadError::Context { context_tokens, reason: said_or(&error) })
    }

    pub(crate) fn llama(&self) -> &LlamaModel {
        &self.model
    }

    fn check_vocabulary(&self) -> Result<(), LoadError> {
        let kind = self.metadata("tokenizer.ggml.model").unwrap_or_default();
        if matches!(kind.as_str(), "" | "none" | "no_vocab") || self.model.n_vocab() <= 0 {
            return Err(LoadError::Unfit { reason: "it has no vocabulary".to_owned() });
        }
        Ok(())
    }
}

/// What llama.cpp logged, or else what its binding made of it.
fn said_or(error: &dyn std::error::Error) -> String {
    match log::take() {
        said if said.is_empty() => error.to_string(),
        said => said,
    }
}
