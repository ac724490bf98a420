//! Many boxes in one database: what each has metered, pulled from its telemetry listener, each record exactly once.
//!
//! ```text
//!  roster (boxes.json) ─▶ pull ─▶ session: TCP, TLS 1.3 with certificates on both sides, HTTP/1.1, on tokio-uring
//!                          │        ▲ inventory, page at the cursor
//!                          ▼        │
//!                        follow ────┘  pure: does the page follow from what is known, is it the box's?
//!                          │ ├─ records, next cursor ─▶ store: one transaction of SQLite (fleet.db) ─▶ usage, exports
//!                          │ └─ fault ────────────────▶ store: a flag: what, where, since when
//!  roster ─▶ discovery: Prometheus' HTTP service discovery
//! ```
//!
//! Invariants: the cursor moves with the records before it, in one transaction, and only forward; what a box said once is
//! never overwritten by what it says later; a fault of one box ends the pull of that box and of no other. A box is not
//! trusted: all that it sends has a limit of length and time, and what of it is shown has no control characters.
//! Left out: printing, and prices but those that boxes tell.

#![forbid(unsafe_code)]

mod discovery;
mod enrol;
mod follow;
mod name;
mod pull;
mod roster;
mod session;
mod store;
mod usage;

pub use appliance_edge::authority::check_enrolment;
pub use discovery::{Discovery, targets};
pub use enrol::{EnrolError, Enrolled, certificate_days, enrol, renew_client};
pub use follow::{FLAG_KINDS, Fault, Flag, Followed, Known, follow};
pub use name::{Address, BoxName, host};
pub use pull::{Outcome, Progress, PullError, Pulled, Settings, pull};
pub use roster::{BOXES_MAX, Member, Roster, RosterError};
pub use store::{FlagRow, Seen, Standing, Store, StoreError};
pub use usage::{By, Sums, Usage};

use std::time::{SystemTime, UNIX_EPOCH};

/// Wall clock, milliseconds since the Unix epoch.
pub fn unix_ms() -> u64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX)
}
