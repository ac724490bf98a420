//! Money: what a request costs, by which prices, and within which budgets. Pure: values and `now` in, amounts out.
//!
//! ```text
//!  Record ─▶ Measured ─┐
//!                      ├─▶ bill: lines ─▶ their sum is the cost     (receipt, ledger, explanation, budgets: all the same)
//!  Book ── at a time ─▶ Prices
//!
//!  Budget ─▶ Accounts:  reserve(worst case) ─▶ Grant ─▶ the request runs ─▶ settle(what it cost)
//! ```
//!
//! Invariants: an amount is a whole number of nano-units, 10^-9 of the currency, and never a float; sums and products
//! that do not fit are the greatest amount there is, and never wrap; what is spent and reserved of a hard budget is never
//! more than it. Left out: reading a price book's text (`appliance/config`), files, clocks, locks.

#![forbid(unsafe_code)]

mod account;
mod bill;
mod book;
mod budget;
pub mod calendar;

pub use account::{Accounts, Alarm, Exhausted, Grant, Level, Owner, ParseOwnerError, Stake, Standing};
pub use bill::{Bill, Line, Measured, What};
pub use book::{Book, BookError, Currency, ParseCurrencyError, Prices, TokenPrices, VERSIONS_MAX};
pub use budget::{Budget, ParseBudgetError, Period, amount_nanos, amount_text};
