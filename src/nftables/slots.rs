//! Slots: which endpoint sits where in a group that is drawn from at random.
//!
//! Pure arithmetic. Keeps what can stay where it is, so that a change of one endpoint is a change of one or two slots.

/// More slots than this are not used to express weights.
const WEIGHTED_SLOTS: u64 = 1024;

/// How many slots each of these weights gets, in proportion as far as possible. Weight 0 gets none, unless all are 0:
/// then all get one.
pub fn shares(weights: &[u16]) -> Vec<usize> {
    let divisor = weights.iter().fold(0, |a, &b| greatest_common_divisor(a, u64::from(b)));
    if divisor == 0 {
        return vec![1; weights.len()];
    }
    let total: u64 = weights.iter().map(|&weight| u64::from(weight) / divisor).sum();
    weights
        .iter()
        .map(|&weight| match u64::from(weight) / divisor {
            0 => 0,
            share if total <= WEIGHTED_SLOTS.max(weights.len() as u64) => share as usize,
            share => ((share * WEIGHTED_SLOTS + total / 2) / total).max(1) as usize,
        })
        .collect()
}

/// Fills slots 0, 1, 2, … with the wanted items, each as often as it says, moving as few as possible of those in `old`.
pub fn arrange<T: Copy + Ord>(old: &[Option<T>], wanted: &[(T, usize)]) -> Vec<T> {
    let size = wanted.iter().map(|(_, count)| count).sum();
    let mut missing: Vec<(T, usize)> = wanted.to_vec();
    missing.sort_unstable();
    let mut take = |item: T| match missing.binary_search_by(|(other, _)| other.cmp(&item)) {
        Ok(at) if missing[at].1 > 0 => {
            missing[at].1 -= 1;
            true
        }
        _ => false,
    };
    let mut slots: Vec<Option<T>> = old.iter().take(size).map(|slot| slot.filter(|&item| take(item))).collect();
    slots.resize(size, None);
    let mut rest = wanted.iter().flat_map(|&(item, _)| {
        let left =
            missing.binary_search_by(|(other, _)| other.cmp(&item)).map_or(0, |at| std::mem::take(&mut missing[at].1));
        std::iter::repeat_n(item, left)
    });
    // As many are left as there are gaps: both counts come from `wanted`.
    slots.into_iter().filter_map(|slot| slot.or_else(|| rest.next())).collect()
}

/// Gives every wanted item a slot below `limit` that it keeps for as long as it is wanted: what it has in `old`, sorted,
/// if nobody else has that, or the first free one from its choice on, round about. `None` where no slot is free.
pub fn settle<T: Copy + Ord>(
    old: &[(T, usize)],
    wanted: &[T],
    choice: impl Fn(T) -> usize,
    limit: usize,
) -> Vec<(T, Option<usize>)> {
    let mut taken = vec![false; limit];
    let mut take = |seat: usize| taken.get_mut(seat).is_some_and(|taken| !std::mem::replace(taken, true));
    let kept = |item| old.binary_search_by_key(&item, |(kept, _)| *kept).ok().map(|at| old[at].1);
    let mut seats: Vec<(T, Option<usize>)> =
        wanted.iter().map(|&item| (item, kept(item).filter(|&seat| take(seat)))).collect();
    for (item, seat) in seats.iter_mut().filter(|(_, seat)| seat.is_none()) {
        let first = choice(*item);
        *seat = (0..limit).map(|step| (first + step) % limit).find(|&seat| take(seat));
    }
    seats
}

fn greatest_common_divisor(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_become_slots_in_proportion() {
        for (weights, expected) in [
            (&[1, 1, 1][..], &[1, 1, 1][..]),
            (&[100, 100], &[1, 1]),
            (&[2, 4, 6], &[1, 2, 3]),
            (&[0, 3], &[0, 1]),
            (&[0, 0], &[1, 1]),
            (&[], &[]),
            (&[1, 65535], &[1, 1024]),
        ] {
            assert_eq!(shares(weights), expected, "{weights:?}");
        }
        assert_eq!(shares(&vec![1; 3000]).iter().sum::<usize>(), 3000, "equal weights are never thinned out");
    }

    #[test]
    fn who_stays_keeps_the_slot_and_the_last_fills_the_gap() {
        let old = [Some('a'), Some('b'), Some('c'), Some('d')];
        assert_eq!(arrange(&old, &[('a', 1), ('c', 1), ('d', 1)]), ['a', 'd', 'c']);
        assert_eq!(arrange(&old, &[('a', 1), ('b', 1), ('c', 1), ('d', 1), ('e', 1)]), ['a', 'b', 'c', 'd', 'e']);
        assert_eq!(arrange(&old, &[('e', 1), ('b', 2)]), ['e', 'b', 'b']);
        assert_eq!(arrange(&[None, Some('a')], &[('a', 1)]), ['a']);
        assert!(arrange(&old, &[]).is_empty());
    }

    #[test]
    fn a_seat_is_kept_for_life() {
        let old = [('a', 0), ('c', 2)];
        let choice = |item| item as usize - 'a' as usize;
        assert_eq!(settle(&old, &['c', 'd', 'e'], choice, 8), [('c', Some(2)), ('d', Some(3)), ('e', Some(4))]);
        let contested = [('a', 2), ('c', 2)];
        assert_eq!(settle(&contested, &['a', 'c'], choice, 8), [('a', Some(2)), ('c', Some(3))]);
        assert_eq!(settle(&old, &['a', 'c', 'k'], choice, 8), [('a', Some(0)), ('c', Some(2)), ('k', Some(3))]);
        assert_eq!(
            settle(&old, &['a', 'b', 'd', 'h'], choice, 3).into_iter().map(|(_, seat)| seat).collect::<Vec<_>>(),
            [Some(0), Some(1), Some(2), None]
        );
    }
}
