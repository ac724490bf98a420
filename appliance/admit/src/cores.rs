//! How busy instances share the inference cores: each at least one, nobody more than it can use, the rest evenly
//! (max-min fairness). Pure.

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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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
