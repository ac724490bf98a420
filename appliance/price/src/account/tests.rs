//! Budgets hold, whatever the order in which requests come, end and cost.

use super::*;
use calendar::DAY_MS;
use proptest::prelude::*;

const NOW: u64 = 20_782 * DAY_MS + 5;

fn key(name: &str) -> Owner {
    Owner::Key(name.parse().unwrap())
}

fn daily(hard_nanos: u64) -> Budget {
    Budget { hard_nanos, soft_nanos: Some(hard_nanos / 2), period: Period::Day }
}

fn stake(owner: Owner, hard_nanos: u64) -> Stake {
    Stake { owner, budget: Some(daily(hard_nanos)) }
}

#[test]
fn owners_read_what_they_write() {
    for text in ["key:app", "project:shop", "function:assistant"] {
        assert_eq!(text.parse::<Owner>().unwrap().to_string(), text);
    }
    for bad in ["", "app", "user:app", "key:", "key:A"] {
        assert!(bad.parse::<Owner>().is_err(), "{bad}");
    }
}

#[test]
fn the_worst_case_is_reserved_and_the_rest_comes_back() {
    let mut accounts = Accounts::default();
    let ask = |accounts: &mut Accounts| accounts.reserve(NOW, vec![stake(key("app"), 100)], 60, 10);
    let first = ask(&mut accounts).unwrap();
    let second = ask(&mut accounts).unwrap();
    assert_eq!((first.cap_nanos, second.cap_nanos), (Some(60), Some(40)), "what is left");
    let refused = ask(&mut accounts).unwrap_err();
    assert_eq!((refused.spent_up, refused.reserved_nanos), (false, 100));
    assert_eq!(accounts.settle(NOW, first, 20, 10), []);
    assert_eq!(accounts.standing(NOW, &key("app"), Period::Day), Standing { spent_nanos: 20, reserved_nanos: 40 });
    assert_eq!(ask(&mut accounts).unwrap().cap_nanos, Some(40));
}

#[test]
fn levels_are_told_once_in_a_period() {
    let mut accounts = Accounts::default();
    let mut spend = |now, cost| {
        let grant = accounts.reserve(now, vec![stake(key("app"), 100)], 100, 10).unwrap();
        let levels: Vec<_> = accounts.settle(now, grant, cost, 10).into_iter().map(|alarm| alarm.level).collect();
        levels
    };
    assert_eq!([spend(NOW, 49), spend(NOW, 1), spend(NOW, 1)], [vec![], vec![Level::Soft], vec![]]);
    assert_eq!(spend(NOW, 40), [Level::Hard], "9 are left, and the least is 10");
    assert_eq!(spend(NOW + DAY_MS, 91), [Level::Hard], "the next day begins anew, and soft goes without saying");
    let refused = accounts.reserve(NOW + DAY_MS, vec![stake(key("app"), 100)], 100, 10).unwrap_err();
    assert!(refused.spent_up && refused.resets_unix_ms == 20_784 * DAY_MS, "{refused:?}");
}

#[test]
fn all_accounts_of_a_request_pay() {
    let mut accounts = Accounts::default();
    let function = Owner::Function("assistant".parse().unwrap());
    let stakes = |name| vec![stake(key(name), 100), stake(function.clone(), 150)];
    let grant = accounts.reserve(NOW, stakes("a"), 100, 1).unwrap();
    let _alarms = accounts.settle(NOW, grant, 100, 1);
    assert_eq!(accounts.reserve(NOW, stakes("b"), 100, 1).unwrap().cap_nanos, Some(50));
    let refused = accounts.reserve(NOW, stakes("c"), 100, 1).unwrap_err();
    assert_eq!(refused.owner, function);
    assert_eq!(accounts.standing(NOW, &key("c"), Period::Day), Standing::default(), "it reserved nothing");
}

#[test]
fn what_was_spent_before_counts() {
    let mut accounts = Accounts::default();
    accounts.remember(NOW, key("app"), NOW - 1, 30);
    accounts.remember(NOW, key("app"), NOW - DAY_MS, 20);
    accounts.remember(NOW, key("app"), NOW - 40 * DAY_MS, 1);
    let spent = |period| accounts.standing(NOW, &key("app"), period).spent_nanos;
    assert_eq!((spent(Period::Day), spent(Period::Month)), (30, 50));
}

#[test]
fn a_clock_that_goes_back_gives_no_money() {
    let mut accounts = Accounts::default();
    let mut spend = |now| {
        let grant = accounts.reserve(now, vec![stake(key("app"), 100)], 100, 1)?;
        accounts.settle(now, grant, 60, 1);
        Ok::<_, Exhausted>(())
    };
    spend(NOW + 400 * DAY_MS).unwrap();
    spend(NOW).unwrap();
    assert!(spend(NOW).unwrap_err().spent_up);
    spend(NOW + DAY_MS).unwrap();
}

proptest! {
    /// At no time is more spent and reserved than the budget, however requests come and end; and nothing stays reserved.
    #[test]
    fn budgets_are_never_overshot(
        hard in 1u64..1_000,
        steps in prop::collection::vec((0u64..400, 0u64..50, 0u64..500, 0usize..4, any::<bool>()), 1..120),
    ) {
        let (mut accounts, mut running, mut spent) = (Accounts::default(), Vec::new(), 0);
        for (worst, least, cost, which, common) in steps {
            let owner = if common { key("a") } else { key("b") };
            let stakes = vec![stake(owner, hard), Stake { owner: Owner::Function("f".parse().unwrap()), budget: Some(daily(hard)) }];
            match accounts.reserve(NOW, stakes, worst, least) {
                Ok(grant) => running.push(grant),
                Err(refused) => prop_assert!(refused.spent_nanos + refused.reserved_nanos + least.max(1) > hard),
            }
            if which < running.len() {
                let grant = running.swap_remove(which);
                spent += cost.min(grant.cap_nanos.unwrap());
                accounts.settle(NOW, grant, cost, least);
            }
            let all = accounts.standing(NOW, &Owner::Function("f".parse().unwrap()), Period::Day);
            prop_assert!(all.spent_nanos == spent && spent + all.reserved_nanos <= hard, "{:?}", all);
        }
        running.drain(..).for_each(|grant| drop(accounts.settle(NOW, grant, 0, 0)));
        prop_assert_eq!(accounts.standing(NOW, &key("a"), Period::Day).reserved_nanos, 0);
    }
}
