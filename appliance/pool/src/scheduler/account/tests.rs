//! What the account of a life keeps, whatever happens in it.

use super::*;
use proptest::prelude::*;
use std::time::Duration;

const BYTES: u64 = 3 << 20;

fn born(began: Instant) -> Born {
    Born { began, cpu_before_us: 0, reserved_bytes: BYTES }
}

#[derive(Clone, Debug)]
enum Step {
    Join,
    Leave(usize),
    /// The caller leaves, so long before the account hears of it.
    Close(usize, u64),
    Void(usize),
    Pause(usize, bool),
    Prompt(usize, u32),
    Text(usize, u32),
    Settle,
}

fn step() -> impl Strategy<Value = Step> {
    let who = 0..6_usize;
    prop_oneof![
        3 => Just(Step::Join),
        2 => who.clone().prop_map(Step::Leave),
        1 => (who.clone(), 0..50_u64).prop_map(|(who, early)| Step::Close(who, early)),
        1 => who.clone().prop_map(Step::Void),
        1 => (who.clone(), any::<bool>()).prop_map(|(who, paused)| Step::Pause(who, paused)),
        2 => (who.clone(), any::<u32>()).prop_map(|(who, tokens)| Step::Prompt(who, tokens)),
        6 => (who, prop_oneof![Just(0), 0..5_u32, Just(u32::MAX)]).prop_map(|(who, tokens)| Step::Text(who, tokens)),
        1 => Just(Step::Settle),
    ]
}

#[derive(Default)]
struct Life {
    bills: Share,
    /// Of those in work: when each joined.
    running: Vec<(Ticket, Arc<Tab>, Instant)>,
    next: Ticket,
    cpu_us: u64,
    system: System,
}

impl Life {
    fn reading(&mut self, more: u64) -> Option<Reading> {
        self.cpu_us += more;
        Some(Reading { cpu_us: self.cpu_us, used_bytes: 1 << 20 | more })
    }

    fn end(&mut self, account: &mut Account, now: Instant, at: usize, void: bool) -> Result<(), TestCaseError> {
        let (ticket, tab, joined) = self.running.remove(at);
        account.leave(ticket);
        account.publish(now);
        if void {
            self.system.waste.add(tab.void());
        }
        let used = tab.close(now);
        prop_assert!(u128::from(used.run.us) <= now.duration_since(joined).as_micros(), "{used:?}");
        self.bills.add(used.total());
        self.system.waste.add(tab.unbilled());
        Ok(())
    }

    fn apply(&mut self, account: &mut Account, now: Instant, cpu: u64, step: &Step) -> Result<(), TestCaseError> {
        let at = |who: &usize| (!self.running.is_empty()).then(|| who % self.running.len());
        let ticket = |who: &usize| at(who).map(|at| self.running[at].0);
        match step {
            Step::Prompt(who, tokens) => ticket(who).into_iter().for_each(|it| account.prompt(it, *tokens)),
            Step::Text(who, tokens) => ticket(who).into_iter().for_each(|it| account.text(it, *tokens)),
            Step::Close(who, early) => {
                if let Some(at) = at(who) {
                    let (_, tab, joined) = &self.running[at];
                    let left = (now - Duration::from_micros(*early)).max(*joined);
                    self.bills.add(tab.close(left).total());
                }
            }
            _ => {
                let (at, ticket) = match step {
                    Step::Leave(who) | Step::Void(who) | Step::Pause(who, _) => (at(who), ticket(who)),
                    _ => (None, None),
                };
                let reading = self.reading(cpu);
                account.settle(now, reading, &mut self.system);
                match (step, at, ticket) {
                    (Step::Join, ..) if self.running.len() < 6 => {
                        let tab = Arc::<Tab>::default();
                        self.next += 1;
                        account.join(self.next, &tab, true, 2048, 1000);
                        account.publish(now);
                        self.running.push((self.next, tab, now));
                    }
                    (Step::Pause(_, paused), _, Some(ticket)) => {
                        account.pause(ticket, *paused);
                        account.publish(now);
                    }
                    (Step::Leave(_), Some(at), _) => self.end(account, now, at, false)?,
                    (Step::Void(_), Some(at), _) => self.end(account, now, at, true)?,
                    _ => {}
                }
            }
        }
        Ok(())
    }
}

proptest! {
    #[test]
    fn bills_and_the_boxs_own_account_add_up_to_the_life(
        wake_us in 0..100_000_u64,
        came in prop::collection::vec((0..100_000_u64, any::<bool>()), 0..5),
        steps in prop::collection::vec((0..10_000_u64, 0..9_000_u64, step()), 0..120),
        early_us in prop_oneof![Just(0), 0..20_000_u64],
    ) {
        let began = Instant::now();
        let mut now = began + Duration::from_micros(wake_us);
        let mut life = Life::default();
        let tabs: Vec<_> = came.iter().map(|_| Tab::default()).collect();
        let waiters: Vec<_> = came
            .iter()
            .zip(&tabs)
            .map(|((us, billed), tab)| Waiter { tab, came: began + Duration::from_micros(*us), billed: *billed })
            .collect();
        let reading = life.reading(1_234);
        let mut account = Account::woken(born(began), now, reading, &waiters, &mut life.system);
        for ((us, _), tab) in came.iter().zip(&tabs) {
            prop_assert!(tab.dispatch());
            let wake = tab.close(now).wake;
            prop_assert!(wake.us <= wake_us.saturating_sub(*us), "nobody pays for more than he waited: {wake:?}");
            life.bills.add(wake);
        }
        for (us, cpu, step) in &steps {
            now += Duration::from_micros(*us);
            life.apply(&mut account, now, *cpu, step)?;
        }
        // It was over some time before it is heard of, and what the callers who are left do later is nobody's.
        life.cpu_us += 7;
        let us = (now.duration_since(began).as_micros() as u64).saturating_sub(early_us);
        account.end(Spent { us, cpu_us: life.cpu_us, ..Spent::default() }, &mut life.system);
        now += Duration::from_micros(500);
        account.settle(now, life.reading(0), &mut life.system);
        while !life.running.is_empty() {
            life.end(&mut account, now, 0, false)?;
        }
        let System { idle, provision, waste, life: whole, late, .. } = life.system;
        let mut sum = life.bills;
        [idle, provision, waste].into_iter().for_each(|part| sum.add(part));
        prop_assert_eq!(sum, whole);
        prop_assert_eq!(whole.us, us + late.us);
        prop_assert!(early_us > 0 || late == Share::default(), "{:?}", late);
        prop_assert_eq!((whole.cpu_us, late.cpu_us), (life.cpu_us, 0));
        prop_assert_eq!(whole.reserved_byte_us, u128::from(whole.us) * u128::from(BYTES));
    }

    #[test]
    fn parts_add_up_and_do_not_depend_on_order_but_for_rounding(
        total in 0..u64::MAX / 2,
        weights in prop::collection::vec(1..1_000_000_u128, 1..9),
    ) {
        let sum = weights.iter().sum();
        let parts = |weights: &mut dyn Iterator<Item = &u128>| {
            let mut split = Split::new(total, sum);
            weights.map(|weight| split.next(*weight)).collect::<Vec<_>>()
        };
        let (there, mut back) = (parts(&mut weights.iter()), parts(&mut weights.iter().rev()));
        back.reverse();
        prop_assert_eq!(there.iter().sum::<u64>(), total);
        for (a, b) in there.iter().zip(&back) {
            prop_assert!(a.abs_diff(*b) <= 1, "{} {}", a, b);
        }
    }
}

#[test]
fn two_that_share_an_instance_pay_for_it_together() {
    let began = Instant::now();
    let ms = |ms| began + Duration::from_millis(ms);
    let mut system = System::default();
    let mut account = Account::woken(born(began), ms(0), None, &[], &mut system);
    let [a, b] = [1, 2].map(|ticket| {
        let tab = Arc::<Tab>::default();
        account.join(ticket, &tab, true, 100, 100);
        tab
    });
    account.publish(ms(0));
    (0..3).for_each(|_| account.text(1, 1));
    account.text(2, 1);
    account.settle(ms(100), None, &mut system);
    assert_eq!((a.peek(ms(100)).run.us, b.peek(ms(100)).run.us), (75_000, 25_000));
    // Nothing is known of the next interval, at whose end one caller leaves.
    assert_eq!(a.close(ms(110)).run.us, 80_000);
    account.settle(ms(120), None, &mut system);
    assert_eq!(b.peek(ms(120)).run.us, 40_000, "the rest of it");
    // What the runner does for a caller who has left is nobody's.
    account.text(1, 1);
    account.text(2, 1);
    account.settle(ms(140), None, &mut system);
    assert_eq!((b.peek(ms(140)).run.us, system.waste.us), (50_000, 10_000));
}

/// The runner's claims: nothing for one request, all that it could for the other.
#[test]
fn what_a_runner_claims_moves_no_more_than_what_was_asked_for() {
    let began = Instant::now();
    let mut system = System::default();
    let mut account = Account::woken(born(began), began, None, &[], &mut system);
    let [a, b] = [1, 2].map(|ticket| {
        let tab = Arc::<Tab>::default();
        account.join(ticket, &tab, true, 10, 20);
        tab
    });
    account.publish(began);
    (0..10).for_each(|_| account.text(1, 0));
    account.prompt(2, u32::MAX);
    account.prompt(2, u32::MAX);
    (0..10).for_each(|_| account.text(2, u32::MAX));
    let now = began + Duration::from_millis(40);
    account.settle(now, None, &mut system);
    assert_eq!((a.peek(now).run.us, b.peek(now).run.us), (10_000, 30_000), "10 pieces, and 10 + 20 tokens at most");
}

#[test]
fn who_never_had_a_slot_pays_nothing() {
    let began = Instant::now();
    let up = began + Duration::from_millis(30);
    let (mut system, tab) = (System::default(), Tab::default());
    let waiter = Waiter { tab: &tab, came: began, billed: true };
    Account::woken(born(began), up, None, &[waiter], &mut system);
    assert_eq!(tab.close(up), crate::Used::default());
    assert_eq!(tab.unbilled().us, 30_000);
}

/// A process that was there before it was called for: what it used until then is the box's.
#[test]
fn a_spares_cpu_time_is_in_no_bill() {
    let began = Instant::now();
    let up = began + Duration::from_millis(2);
    let (mut system, tab) = (System::default(), Tab::default());
    system.lived(Purpose::Spare, Spent { us: 90_000, cpu_us: 40_000, ..Spent::default() });
    let waiter = Waiter { tab: &tab, came: began, billed: true };
    let reading = Some(Reading { cpu_us: 41_500, used_bytes: 1 });
    let born = Born { cpu_before_us: 40_000, ..born(began) };
    let mut account = Account::woken(born, up, reading, &[waiter], &mut system);
    assert!(tab.dispatch());
    account.end(Spent { us: 3_000, cpu_us: 1_900, ..Spent::default() }, &mut system);
    let wake = tab.close(up).wake;
    assert_eq!((wake.us, wake.cpu_us), (2_000, 1_500));
    assert_eq!((system.idle.us, system.idle.cpu_us), (1_000, 400));
    assert_eq!((system.life.us, system.life.cpu_us), (93_000, 41_900));
}
