//! `ember usage machine`: whose the time of the box's processes was, and that nothing of it is missing.
//!
//! ```text
//!  lives = requests + idle + provision + capture + trial + spare + waste      the server's account, by process
//!  lives − late    against    machine: the warden's clock, the kernel's count of CPU time
//! ```
//! Requests' part is what of the lives is nobody else's; what each was billed of it is in the ledger.

use crate::output;
use serde::Deserialize;

/// A part of the lives.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq)]
struct Share {
    us: u64,
    cpu_us: u64,
    reserved_byte_s: u64,
    used_byte_s: u64,
}

/// The parts of one function's processes.
#[derive(Debug, Deserialize)]
struct Own {
    idle: Share,
    provision: Share,
    capture: Share,
    trial: Share,
    spare: Share,
    waste: Share,
    late: Share,
    life: Share,
}

/// A part's name, and where it is.
type Part = (&'static str, fn(&Own) -> Share);

/// Both sides.
#[derive(Debug, Deserialize)]
pub(crate) struct Machine {
    system: Vec<Own>,
    machine: Share,
}

impl Share {
    fn zip(self, other: Self, op: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            us: op(self.us, other.us),
            cpu_us: op(self.cpu_us, other.cpu_us),
            reserved_byte_s: op(self.reserved_byte_s, other.reserved_byte_s),
            used_byte_s: op(self.used_byte_s, other.used_byte_s),
        }
    }

    fn cells(self, name: &str) -> [String; 5] {
        let seconds = |us: u64| format!("{:.3}", us as f64 / 1e6);
        let gib_seconds = |byte_s: u64| format!("{:.3}", byte_s as f64 / f64::from(1 << 30));
        let memory = [self.reserved_byte_s, self.used_byte_s].map(gib_seconds);
        let [reserved, used] = memory;
        [name.to_owned(), seconds(self.us), seconds(self.cpu_us), reserved, used]
    }
}

/// A row a part, their sum, the machine's count, and how far the two are apart.
pub(crate) fn table(both: &Machine) -> String {
    let sum = |of: fn(&Own) -> Share| {
        both.system.iter().map(of).fold(Share::default(), |sum, share| sum.zip(share, u64::saturating_add))
    };
    let own: [Part; 6] = [
        ("idle", |own| own.idle),
        ("provision", |own| own.provision),
        ("capture", |own| own.capture),
        ("trial", |own| own.trial),
        ("spare", |own| own.spare),
        ("waste", |own| own.waste),
    ];
    let parts = own.map(|(name, of)| (name, sum(of)));
    let (life, late) = (sum(|own| own.life), sum(|own| own.late));
    let requests = parts.iter().fold(life, |left, (_, part)| left.zip(*part, u64::saturating_sub));
    let mut rows = vec![requests.cells("requests")];
    rows.extend(parts.iter().map(|(name, part)| part.cells(name)));
    rows.extend([life.cells("sum"), late.cells("of it late")]);
    let mut machine = both.machine.cells("machine");
    // The machine does not know what of it is used at a time.
    machine[4] = output::NONE.into();
    let told = life.zip(late, u64::saturating_sub);
    let apart = |told: u64, machine: u64| match machine {
        0 => output::NONE.into(),
        _ => format!("{:+.4} %", (told as f64 - machine as f64) * 100.0 / machine as f64),
    };
    let Share { us, cpu_us, reserved_byte_s, .. } = both.machine;
    let apart = [apart(told.us, us), apart(told.cpu_us, cpu_us), apart(told.reserved_byte_s, reserved_byte_s)];
    let [time, cpu, memory] = apart;
    rows.extend([machine, ["apart".into(), time, cpu, memory, output::NONE.into()]]);
    output::table(["PART", "TIME-S", "CPU-S", "RESERVED-GIB-S", "USED-GIB-S"], rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_the_sum_and_what_is_missing_are_told() {
        let share = |us| Share { us, cpu_us: us / 2, reserved_byte_s: us << 10, used_byte_s: us };
        let zero = Share::default();
        let own = Own {
            idle: share(1_000_000),
            provision: zero,
            capture: share(2_000_000),
            trial: zero,
            spare: zero,
            waste: zero,
            late: share(500_000),
            life: share(5_500_000),
        };
        let table = table(&Machine { system: vec![own], machine: share(4_000_000) });
        let row = |name: &str| {
            let line = table.lines().find(|line| line.starts_with(name)).unwrap();
            line[name.len()..].split_whitespace().map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(row("requests")[..2], ["2.500", "1.250"]);
        assert_eq!(row("sum")[0], "5.500");
        assert_eq!(row("machine"), ["4.000", "2.000", "3.815", "-"]);
        assert_eq!(row("apart")[..2], ["+25.0000", "%"]);
    }
}
