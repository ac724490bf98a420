//! One line for each request that was given to an instance, in the words of AWS Lambda's `REPORT`.
//!
//! `Billed Duration` and `Billed Restore Duration` add up to the time of the bill: the whole is rounded up once, and what
//! the work alone would be billed is the former's. `Max Memory Used` is the most that was read of its instance, by intervals
//! of a tenth of a second at most while that speaks; it is left out where nobody read any.

use appliance_price::{Measured, Prices};
use appliance_types::Record;
use std::fmt;

/// The line of a record that was charged by `prices`.
pub(super) struct Report<'r> {
    pub(super) record: &'r Record,
    pub(super) prices: &'r Prices,
}

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let used = Measured::from(self.record);
        let billed_ms = self.prices.billed_ms(&used);
        let work_ms = self.prices.billed_ms(&Measured { wake_us: 0, ..used });
        let memory_mib = used.memory_bytes.div_ceil(1 << 20);
        write!(f, "REPORT RequestId: {} Duration: {} ms ", self.record.request, Ms(used.work_us))?;
        write!(f, "Billed Duration: {work_ms} ms Memory Size: {memory_mib} MB")?;
        if self.record.peak_kib > 0 {
            write!(f, " Max Memory Used: {} MB", self.record.peak_kib.div_ceil(1_024))?;
        }
        if used.wake_us > 0 {
            let restore_ms = billed_ms - work_ms;
            write!(f, " Restore Duration: {} ms Billed Restore Duration: {restore_ms} ms", Ms(used.wake_us))?;
        }
        Ok(())
    }
}

/// Microseconds, as milliseconds with two decimals.
struct Ms(u64);

impl fmt::Display for Ms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:02}", self.0 / 1_000, self.0 % 1_000 / 10)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use appliance_types::RequestId;

    #[test]
    fn the_words_are_lambdas() {
        let record = Record {
            share_us: 320_504,
            wake_share_us: 100_001,
            memory_bytes: 1 << 30,
            ..Record::new(RequestId::from_random(1), "app".parse().unwrap(), "assistant".parse().unwrap())
        };
        let report = |record, prices| Report { record: &record, prices: &prices }.to_string();
        let warm = "REPORT RequestId: req-00000000000000000000000000000001 Duration: 320.50 ms Billed Duration: 321 ms Memory Size: 1024 MB";
        assert_eq!(report(Record { wake_share_us: 0, ..record.clone() }, Prices::default()), warm);
        let woken = format!("{warm} Restore Duration: 100.00 ms Billed Restore Duration: 100 ms");
        assert_eq!(report(record.clone(), Prices::default()), woken, "420.505 ms are 421, of which 321 are the work's");
        let free = format!("{warm} Restore Duration: 100.00 ms Billed Restore Duration: 0 ms");
        assert_eq!(report(record.clone(), Prices { bill_wake: false, ..Prices::default() }), free);
        let measured = Record { wake_share_us: 0, peak_kib: 120 * 1_024 + 1, ..record };
        assert_eq!(report(measured, Prices::default()), format!("{warm} Max Memory Used: 121 MB"));
    }
}
