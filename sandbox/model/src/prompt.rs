//! Prompts to tokens, as llama-server does it: the chat template rendered, control tokens read in the template's text but
//! never in people's, one begin token where the model wants one.

use crate::{
    error::invalid,
    literal::{Specials, pieces, unshield},
    model::Model,
    reuse::common,
    schema::{self, Grammar},
    template::Template,
    tools::{self, Form},
    vocabulary::Vocabulary,
};
use llama_cpp_2::token::LlamaToken;
use sandbox_wire::runner::{Call, Failure, Generate, Message, Prompt, Role, Tools};

/// Turns prompts into tokens.
pub(crate) struct Prompter<'m> {
    vocabulary: Vocabulary<'m>,
    specials: Specials,
    template: Template,
    begin_text: String,
    system: Option<String>,
}

impl<'m> Prompter<'m> {
    /// A prompter that begins chats without a system message with `system`.
    pub(crate) fn new(model: &'m Model, system: Option<String>) -> Self {
        let vocabulary = Vocabulary::new(model);
        let specials = Specials::new(vocabulary.special_texts());
        let begin_text = vocabulary.begin_text();
        let template = Template::new(model.chat_template(), begin_text.clone(), vocabulary.end_text());
        Self { vocabulary, specials, template, begin_text, system }
    }

    pub(crate) fn vocabulary(&self) -> &Vocabulary<'m> {
        &self.vocabulary
    }

    /// Whether the model brings a chat template that can be used.
    pub(crate) fn has_own_template(&self) -> bool {
        self.template.is_from_model()
    }

    /// The grammar that an answer conforms to.
    pub(crate) fn grammar(&self, generate: &Generate) -> Result<Option<Grammar>, Failure> {
        match &generate.tools {
            Some(tools) if tools.call != Call::May => tools::grammar(tools, self.form()),
            _ => schema::grammar(&generate.constraint),
        }
    }

    /// The texts that end an answer: the caller's, and where only one call is wanted, its end.
    pub(crate) fn stops(&self, generate: &Generate) -> Vec<String> {
        let one = generate.tools.as_ref().filter(|tools| tools.call == Call::May && !tools.parallel);
        let after_one = one.and_then(|_| self.form().stop_after_one());
        generate.stop.iter().cloned().chain(after_one).collect()
    }

    /// How calls are said.
    fn form(&self) -> Form {
        self.template.form().unwrap_or(Form::Tagged)
    }

    /// The tokens of a prompt; never none. Tools are of chats.
    pub(crate) fn tokens(&self, prompt: &Prompt, tools: Option<&Tools>) -> Result<Vec<LlamaToken>, Failure> {
        let (param, tokens) = match prompt {
            Prompt::Chat(messages) => ("messages", self.chat(messages, tools)?),
            Prompt::Text(text) => ("prompt", self.vocabulary.tokenize(text, true, false)),
            Prompt::Tokens(tokens) => ("prompt", self.vocabulary.check_all("prompt", tokens)?),
        };
        if tokens.is_empty() { Err(invalid(param, "the prompt is empty")) } else { Ok(tokens) }
    }

    /// The text that messages are rendered to, up to where the answer begins.
    pub(crate) fn text(&self, messages: &[Message]) -> Result<String, Failure> {
        self.render(messages, None).map(|rendered| unshield(&rendered))
    }

    /// The tokens that every chat of the function begins with: what two chats that differ from their first word share.
    pub(crate) fn prefix(&self) -> Vec<LlamaToken> {
        let probe = |content: &str| self.chat(&[Message::new(Role::User, content)], None).unwrap_or_default();
        let (mut tokens, other) = (probe("Hello"), probe("1 + 1 = ?"));
        tokens.truncate(common(&tokens, &other));
        tokens
    }

    fn chat(&self, messages: &[Message], tools: Option<&Tools>) -> Result<Vec<LlamaToken>, Failure> {
        let rendered = self.render(messages, tools)?;
        let begin = self.vocabulary.begin();
        let text = match begin {
            Some(_) if !self.begin_text.is_empty() => rendered.strip_prefix(&self.begin_text).unwrap_or(&rendered),
            _ => &rendered,
        };
        let mut tokens: Vec<LlamaToken> = begin.into_iter().collect();
        for piece in pieces(text) {
            tokens.extend(self.vocabulary.tokenize(piece.text, false, piece.parse_special));
        }
        Ok(tokens)
    }

    /// The rendered text, still with the markers in it.
    fn render(&self, messages: &[Message], tools: Option<&Tools>) -> Result<String, Failure> {
        if messages.is_empty() {
            return Err(invalid("messages", "there are no messages"));
        }
        let system = self.system.as_ref().filter(|_| messages.iter().all(|message| message.role != Role::System));
        let system = system.map(|content| Message::new(Role::System, content));
        let mut messages: Vec<Message> = system.iter().chain(messages).cloned().collect();
        let shield = |text: &str| self.specials.shield(text);
        let tools = match (self.template.form(), tools) {
            (Some(_), Some(tools)) => {
                Some(tools.definitions.iter().map(|tool| tools::value(tool, &shield)).collect::<Result<Vec<_>, _>>()?)
            }
            (Some(_), None) => None,
            (None, tools) => {
                if tools.is_some() || messages.iter().any(|message| !message.tool_calls.is_empty()) {
                    messages = tools::told(&messages, tools);
                }
                None
            }
        };
        self.template.render(&messages, tools, true, &shield).map_err(|error| invalid("messages", error.to_string()))
    }
}
