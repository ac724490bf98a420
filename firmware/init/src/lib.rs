//! PID 1 of the appliance: from the kernel's first process to `emberd serve`, and back to a machine that is off.
//!
//! ```text
//!  kernel ─▶ /init ─▶ root: what lies in the initramfs moves to a tmpfs (pivot_root refuses the initramfs itself)
//!                       │ executes itself there
//!                       ▼
//!            file systems ─▶ modules ─▶ watchdog, clock ─▶ disks: esp, data (grown) ─▶ machine.toml ─▶ slots, boot entries
//!                                                                                                          │
//!                        data unmounted ◀── the service ended, gave no answer, or a signal ◀── emberd serve ◀── network
//!                              │                                       asked how it does, trusted ──┘
//!                              └─▶ reboot, or power off
//! ```
//!
//! Invariants: nothing here needs a shell or another program; a wrong `machine.toml` never keeps the machine from
//! starting; whatever fails is a line on the console with its reason, and then the machine starts again, so that boot
//! counting sees it; a version is trusted only after it has answered.

mod boot;
mod boot_entries;
mod clock;
mod console;
mod dhcp;
mod disks;
mod efi;
mod error;
mod grow;
mod health;
mod listen;
mod machine;
mod modules;
mod mounts;
mod network;
mod preload;
mod root;
mod service;
mod slots;
mod watchdog;

pub use boot::run;

/// Says what is wrong with a fleet's CA, a box's certificate and its key, each PEM. Given by who is called: nothing here knows
/// certificates.
pub type CheckFleet = fn(ca: &str, certificate: &str, key: &str) -> Result<(), String>;

/// SHA-256 of a certificate, PEM, as people compare it.
pub type Fingerprint = fn(pem: &str) -> Result<String, String>;

/// What is to be known of certificates.
#[derive(Clone, Copy, Debug)]
pub struct Certificates {
    /// Whether what a fleet gave is of use.
    pub check_fleet: CheckFleet,
    /// What the console shows of the box's CA.
    pub fingerprint: Fingerprint,
}

/// Whether a box would take `text` as its `machine.toml`.
///
/// # Errors
/// What is wrong with it, and where.
pub fn check_machine(text: &str, fleet: CheckFleet) -> Result<(), String> {
    machine::Machine::parse(text, fleet).map(drop)
}

/// Whether this process is the machine's first.
pub fn is_init() -> bool {
    std::process::id() == 1
}
