//! What the suites under `tests/tests` are written in, so that each test there reads as a sentence.
//!
//! Two halves. [`rules`] and [`tree`] hold the house rules: pure functions over text, and the text. The rest runs the
//! real programs: [`Ember`] is one `emberd serve` in a folder of its own, from its `ready` line to the proof that
//! nothing of it is left.
//!
//! Invariants: one test with an [`Ember`] at a time on a machine, whatever runs the tests, since runners that share cores collapse;
//! every wait has a bound, and a bound that is met fails the test; nothing outlives a test.
//!
//! Left out: timings. How fast things are is for `bench`.

mod cli;
mod client;
mod ember;
mod function;
mod network;
mod process;
mod random;
mod raw;
mod remains;
mod reply;
pub mod rules;
mod squeeze;
mod stream;
pub mod tree;
mod wait;
pub mod write_log;

pub use cli::Run;
pub use client::Client;
pub use ember::{Ember, Launch, Turn};
pub use function::{Function, assistant, chat};
pub use network::Network;
pub use process::{Process, Role};
pub use random::Random;
pub use raw::{Raw, is_closed, tcp};
pub use reply::Reply;
pub use squeeze::Squeeze;
pub use stream::{Stream, text_of};
pub use wait::{HANG, until};
