//! PID 1 of the appliance: from the kernel's first process to `emberd serve`, and back to a machine that is off.
//!
//! ```text
//!  kernel ─▶ /init ─▶ root: what lies in the initramfs moves to a tmpfs (pivot_root refuses the initramfs itself)
//!                       │ executes itself there
//!                       ▼
//!            file systems ─▶ modules ─▶ disks: esp, data ─▶ machine.toml ─▶ network ─▶ emberd serve
//!                                                                                          │ reaps all that ends
//!                                        data unmounted ◀── the service ended, or a signal ┘
//!                                              └─▶ reboot, or power off
//! ```
//!
//! Invariants: nothing here needs a shell or another program; a wrong `machine.toml` never keeps the machine from
//! starting; whatever fails is a line on the console with its reason, and then the machine starts again, so that boot
//! counting sees it. Left out so far: choosing and blessing slots, the clock by network, the watchdog.

mod boot;
mod console;
mod dhcp;
mod disks;
mod error;
mod machine;
mod modules;
mod mounts;
mod network;
mod root;

pub use boot::run;

/// Says what is wrong with a fleet's CA, a box's certificate and its key, each PEM. Given by who is called: nothing here knows
/// certificates.
pub type CheckFleet = fn(ca: &str, certificate: &str, key: &str) -> Result<(), String>;

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
