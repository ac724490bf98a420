//! How the box stands when somebody asks: plain values, given by whoever knows them. What could not be learnt in time is
//! absent, and [`Standing::silent`] names who did not say it.

use appliance_types::{FunctionName, Tier};

/// How the box stands.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Standing {
    /// This build.
    pub version: &'static str,
    /// When the server began, s since the Unix epoch.
    pub started_unix_s: f64,
    /// Where deployed functions stand; none where that is not known.
    pub functions: Option<Vec<FunctionTier>>,
    /// Instances that are up; none where the pool did not say.
    pub instances: Option<Instances>,
    /// Requests that wait, by function.
    pub queues: Vec<Queue>,
    /// Wakes since the server began, by where they found their functions.
    pub wakes: Vec<Wakes>,
    /// Wakes that failed since then.
    pub wakes_failed: u64,
    /// Cores for inference.
    pub cores: Option<Cores>,
    /// Memory for functions.
    pub memory: Option<Memory>,
    /// Processes in sandboxes, those that start or end included; none where the warden did not say.
    pub sandboxes: Option<u64>,
    /// Snapshots; none where the warden did not say.
    pub snapshots: Option<Snapshots>,
    /// Snapshots that could not be used, since the server began.
    pub snapshots_retired: u64,
    /// The meter's rings, one a core.
    pub rings: Vec<Ring>,
    /// The ledger.
    pub ledger: Ledger,
    /// Budgets, [`Standing::budgets_total`] at most shown.
    pub budgets: Vec<Budget>,
    /// How many budgets there are, those that are not shown included.
    pub budgets_total: u64,
    /// Times that a soft limit was reached, since the server began.
    pub budget_alarms_soft: u64,
    /// Times that a budget was used up.
    pub budget_alarms_hard: u64,
    /// Requests that were refused for want of money.
    pub budget_refusals: u64,
    /// Currency of the amounts.
    pub currency: String,
    /// Connections of clients.
    pub connections: Connections,
    /// Who did not answer in time.
    pub silent: Vec<&'static str>,
}

/// Where a function stands.
#[derive(Clone, Debug, PartialEq)]
pub struct FunctionTier {
    /// The function.
    pub function: FunctionName,
    /// How ready it is.
    pub tier: Tier,
}

/// Instances that are up.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Instances {
    /// Those that run something.
    pub busy: u64,
    /// Those that do not.
    pub idle: u64,
    /// Those that are being woken.
    pub waking: u64,
    /// Requests that they can run at once.
    pub slots: u64,
    /// Requests that they run.
    pub slots_busy: u64,
}

/// A function's queue.
#[derive(Clone, Debug, PartialEq)]
pub struct Queue {
    /// The function.
    pub function: FunctionName,
    /// Requests that wait and that somebody waits for.
    pub interactive: u64,
    /// Others.
    pub batch: u64,
}

/// Wakes that found their functions in one tier.
#[derive(Clone, Debug, PartialEq)]
pub struct Wakes {
    /// Where.
    pub tier: Tier,
    /// How many.
    pub count: u64,
    /// What parts of them took together, µs.
    pub parts_us: Vec<(&'static str, u64)>,
}

/// Cores for inference.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cores {
    /// All.
    pub total: u64,
    /// Leased to busy instances and wakes.
    pub leased: u64,
}

/// Memory for functions, bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Memory {
    /// All.
    pub total: u64,
    /// Less of it while the kernel reports pressure.
    pub usable: u64,
    /// Promised to instances, wakes, models and parked functions.
    pub leased: u64,
}

/// Snapshots.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Snapshots {
    /// How many there are.
    pub count: u64,
    /// Of their files, bytes.
    pub file_bytes: u64,
    /// Of those in memory, bytes.
    pub parked_bytes: u64,
}

/// A core's ring, in entries.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Ring {
    /// Said, and not durable yet.
    pub used: u64,
    /// What fits.
    pub capacity: u64,
}

/// The ledger, as the server knows it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Ledger {
    /// Whether its disk is so full that nothing is admitted.
    pub low: bool,
    /// Free on its disk, bytes; none where that cannot be read.
    pub free_bytes: Option<u64>,
}

/// A budget and what is left of it, 10^-9 of the currency.
#[derive(Clone, Debug, PartialEq)]
pub struct Budget {
    /// Whose: `key:NAME`, `project:NAME` or `function:NAME`.
    pub of: String,
    /// `day` or `month`.
    pub period: String,
    /// What may be spent.
    pub limit_nanos: u64,
    /// What is spent.
    pub spent_nanos: u64,
    /// What is reserved by requests that run.
    pub reserved_nanos: u64,
}

/// Connections of clients.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Connections {
    /// Alive.
    pub open: u64,
    /// Accepted.
    pub accepted: u64,
    /// Closed at once, for a limit.
    pub refused: u64,
    /// Cut for a deadline.
    pub cut: u64,
    /// Handshakes that failed.
    pub handshakes_failed: u64,
    /// Requests taken from them.
    pub requests: u64,
    /// Handlers that panicked.
    pub panics: u64,
}
