//! The house rules as pure functions: text in, violations out.
//!
//! A violation is one line that names the place and says what is wrong there. `tests/tests/house_rules.rs` holds the
//! tree to the rules, and holds the rules to small examples that break them. What the compiler or clippy already
//! refuses is checked again only where a relaxed lint table could let it through.

pub mod arrows;
pub mod docs;
pub mod metrics;
pub mod source;
