//! How busy instances share the inference cores: each at least one, nobody more than it can use, the rest evenly
//! (max-min fairness); and which cores those are. Pure.

use std::collections::BTreeSet;

/// Inference cores by number, from 0.
pub type CoreSet = BTreeSet<u32>;

/// Shares of `cores`, one for each of `wants`. Whoever comes past as many as there are cores gets none.
pub fn shares(cores: u32, wants: &[u32]) -> Vec<u32> {
    let mut shares = vec![0; wants.len()];
    let mut left = cores;
    while left > 0 {
        let before = left;
        for (share, want) in shares.iter_mut().zip(wants) {
            if left > 0 && *share < (*want).max(1) {
                *share += 1;
                left -= 1;
            }
        }
        if left == before {
            break;
        }
    }
    shares
}

/// Which `count` of `cores` an instance computes on from now on: those that fewest of `others` hold, of these the ones that
/// it was on, since its caches are there.
pub fn choose(count: u32, cores: u32, was_on: &CoreSet, others: &[&CoreSet]) -> CoreSet {
    let rank = |core: &u32| {
        let holders = others.iter().filter(|held| held.contains(core)).count();
        (holders, !was_on.contains(core), *core)
    };
    let mut all: Vec<u32> = (0..cores).collect();
    all.sort_by_cached_key(rank);
    all.into_iter().take(count as usize).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn who_is_on_a_core_stays_there_unless_another_holds_it() {
        let set = |cores: &[u32]| cores.iter().copied().collect::<CoreSet>();
        assert_eq!(choose(1, 4, &set(&[2, 3]), &[]), set(&[2]));
        assert_eq!(choose(2, 4, &set(&[2, 3]), &[&set(&[2])]), set(&[0, 3]));
        assert_eq!(choose(4, 4, &set(&[3]), &[]), set(&[0, 1, 2, 3]));
        // More are promised than there are: the least held is shared.
        assert_eq!(choose(1, 2, &set(&[0]), &[&set(&[0]), &set(&[0, 1])]), set(&[1]));
    }

    #[test]
    fn one_each_then_evenly() {
        assert_eq!(shares(2, &[2]), [2]);
        assert_eq!(shares(2, &[2, 2]), [1, 1]);
        assert_eq!(shares(8, &[2, 8, 8]), [2, 3, 3]);
        assert_eq!(shares(2, &[2, 2, 2]), [1, 1, 0]);
        assert_eq!(shares(4, &[1, 1]), [1, 1]);
        assert_eq!(shares(4, &[]), []);
    }

    proptest! {
        #[test]
        fn what_fits_beside_others_is_disjoint_from_them_and_moves_least(
            cores in 1_u32..16, count in 1_u32..16,
            was_on in prop::collection::btree_set(0_u32..16, 0..8),
            others in prop::collection::btree_set(0_u32..16, 0..8),
        ) {
            let chosen = choose(count, cores, &was_on, &[&others]);
            prop_assert_eq!(chosen.len() as u32, count.min(cores));
            prop_assert!(chosen.iter().all(|core| *core < cores));
            let free: CoreSet = (0..cores).filter(|core| !others.contains(core)).collect();
            if count as usize <= free.len() {
                prop_assert!(chosen.is_disjoint(&others), "{:?}", chosen);
                let kept = was_on.intersection(&free).count().min(count as usize);
                prop_assert_eq!(chosen.intersection(&was_on).count(), kept);
            }
        }

        #[test]
        fn no_core_is_given_twice_and_none_is_idle_that_is_wanted(
            cores in 0_u32..64, wants in prop::collection::vec(0_u32..16, 0..16),
        ) {
            let shares = shares(cores, &wants);
            let given: u32 = shares.iter().sum();
            prop_assert!(given <= cores);
            prop_assert!(given == cores || shares.iter().zip(&wants).all(|(share, want)| *share == (*want).max(1)));
            for (a, wants_a) in shares.iter().zip(&wants) {
                prop_assert!(shares.iter().all(|b| *a + 1 >= *b || *a == (*wants_a).max(1)), "{:?}", shares);
            }
        }
    }
}
