//! Does data arrive as it was sent? Every rank draws what every rank brings from the seed, and compares each byte it gets.

use shoal_fabric::{FabricError, Group, Rank};

use super::links::pairs;
use super::report::{Checked, Fault, Operation};

/// What a rank brings to a round: so many values.
pub(crate) type Brings<'a> = dyn Fn(Rank, u64, usize) -> Vec<f32> + 'a;

/// Compares what one rank gets.
pub(crate) struct Checker<'a> {
    own: Rank,
    brings: &'a Brings<'a>,
    pub(crate) checked: Checked,
}

impl<'a> Checker<'a> {
    pub(crate) fn new(own: Rank, brings: &'a Brings<'a>) -> Self {
        Self {
            own,
            brings,
            checked: Checked::default(),
        }
    }

    /// Goes through every operation once, with about `len` values of each rank. All ranks call it with the same arguments.
    pub(crate) fn round(
        &mut self,
        group: &mut Group,
        round: u64,
        len: usize,
    ) -> Result<(), FabricError> {
        // Uneven lengths, where an operation takes them.
        let of_rank = |rank: usize| (self.brings)(Rank(rank as u16), round, len + rank);
        let all: Vec<Vec<f32>> = (0..group.world()).map(of_rank).collect();
        self.all_reduce(group, &all, len)?;
        self.gathers(group, &all)?;
        self.broadcast(group, &all, round)?;
        self.messages(group, &all)
    }

    fn all_reduce(
        &mut self,
        group: &mut Group,
        all: &[Vec<f32>],
        len: usize,
    ) -> Result<(), FabricError> {
        let mut sum = all[self.own.index()][..len].to_vec();
        group.all_reduce_sum(&mut sum)?;
        // The fabric promises sums in rank order: the same bits on every rank.
        let mut expected = all[0][..len].to_vec();
        for term in &all[1..] {
            expected
                .iter_mut()
                .zip(term)
                .for_each(|(sum, term)| *sum += term);
        }
        self.compare(Operation::AllReduce, None, bytes(&sum), bytes(&expected));
        Ok(())
    }

    fn gathers(&mut self, group: &mut Group, all: &[Vec<f32>]) -> Result<(), FabricError> {
        let mine = &all[self.own.index()];
        let mut gathered = Vec::new();
        group.all_gather(bytes(mine), &mut gathered)?;
        for (from, (got, expected)) in (0..).zip(gathered.iter().zip(all)) {
            self.compare(Operation::AllGather, Some(from), got, bytes(expected));
        }
        drop(gathered);
        let lens: Vec<usize> = all.iter().map(Vec::len).collect();
        let mut row = vec![0.0; lens.iter().sum()];
        group.all_gather_f32(mine, &lens, &mut row)?;
        let mut rest = &row[..];
        for (from, expected) in (0..).zip(all) {
            let (got, after) = rest.split_at(expected.len());
            self.compare(
                Operation::AllGatherF32,
                Some(from),
                bytes(got),
                bytes(expected),
            );
            rest = after;
        }
        Ok(())
    }

    fn broadcast(
        &mut self,
        group: &mut Group,
        all: &[Vec<f32>],
        round: u64,
    ) -> Result<(), FabricError> {
        let root = (round % all.len() as u64) as u16;
        let expected = bytes(&all[usize::from(root)]);
        let mut data = Vec::new();
        if self.own == Rank(root) {
            data.extend_from_slice(expected);
        }
        group.broadcast(Rank(root), &mut data)?;
        self.compare(Operation::Broadcast, Some(root), &data, expected);
        Ok(())
    }

    /// A message there and one back over each link. All ranks take the links in the same order, so none waits in a circle.
    fn messages(&mut self, group: &mut Group, all: &[Vec<f32>]) -> Result<(), FabricError> {
        let mine = bytes(&all[self.own.index()]);
        let mut got = Vec::new();
        for (low, high) in pairs(group.world()) {
            let peer = match self.own {
                own if own == low => high,
                own if own == high => low,
                _ => continue,
            };
            if self.own == low {
                group.send(peer, mine)?;
                group.recv(peer, &mut got)?;
            } else {
                group.recv(peer, &mut got)?;
                group.send(peer, mine)?;
            }
            let expected = bytes(&all[peer.index()]);
            self.compare(Operation::SendRecv, Some(peer.0), &got, expected);
        }
        Ok(())
    }

    fn compare(&mut self, operation: Operation, from: Option<u16>, got: &[u8], expected: &[u8]) {
        let checked = &mut self.checked;
        checked.checks += 1;
        checked.bytes += expected.len() as u64;
        if got == expected {
            return;
        }
        checked.wrong += 1;
        if checked.faults.len() >= FAULTS_MAX {
            return;
        }
        let mut pairs = got.iter().zip(expected);
        let common = got.len().min(expected.len());
        let differing = |(got, expected): &(&u8, &u8)| got != expected;
        checked.faults.push(Fault {
            seen_by: self.own.0,
            from,
            operation,
            bytes: expected.len(),
            offset: pairs
                .clone()
                .position(|pair| differing(&pair))
                .unwrap_or(common),
            wrong_bytes: pairs.by_ref().filter(differing).count()
                + got.len().abs_diff(expected.len()),
        });
    }
}

/// Returns what `rank` brings to a round: values from -0.5 to 0.5, so that sums round, and differ where their order does.
pub(crate) fn drawn(seed: u64, rank: Rank, round: u64, len: usize) -> Vec<f32> {
    let mut state = mixed(mixed(mixed(seed) ^ u64::from(rank.0)) ^ round);
    let next = || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        (mixed(state) >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    std::iter::repeat_with(next).take(len).collect()
}

/// SplitMix64's output function: every bit of the result depends on every bit of `z`.
fn mixed(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

fn bytes(values: &[f32]) -> &[u8] {
    bytemuck::cast_slice(values)
}

/// Enough to see a pattern.
const FAULTS_MAX: usize = 8;

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::Duration;

    use shoal_fabric::in_process;

    use super::*;

    const SEED: u64 = 4;
    const LEN: usize = 1000;

    /// Three ranks check two rounds each; rank 1's data passes through `on_the_way`, which the others know nothing of.
    fn check(on_the_way: impl Fn(u64, &mut [f32]) + Sync) -> Vec<Checked> {
        let on_the_way = &on_the_way;
        let check = |mut group: Group| {
            let own = group.rank();
            let brings = move |rank, round, len| {
                let mut values = drawn(SEED, rank, round, len);
                if (own, rank) == (Rank(1), Rank(1)) {
                    on_the_way(round, &mut values);
                }
                values
            };
            let mut checker = Checker::new(own, &brings);
            for round in 0..2 {
                checker.round(&mut group, round, LEN).expect("links hold");
            }
            checker.checked
        };
        thread::scope(|scope| {
            let groups = in_process(3, Duration::from_secs(60)).into_iter();
            let running: Vec<_> = groups.map(|it| scope.spawn(move || check(it))).collect();
            let joined = running.into_iter().map(|it| it.join().expect("no panic"));
            joined.collect()
        })
    }

    #[test]
    fn whole_data_is_found_whole() {
        for checked in check(|_, _| {}) {
            // Sum, three parts of each gather, broadcast, and a message of each peer.
            assert_eq!((checked.checks, checked.wrong), (2 * 10, 0));
            assert!(checked.bytes > 20 * 4 * LEN as u64);
        }
    }

    #[test]
    fn one_flipped_bit_is_seen_by_everybody_else_and_placed() {
        let checked = check(|round, values| {
            if round == 1 {
                values[700] = f32::from_bits(values[700].to_bits() ^ 1);
            }
        });
        let of = |operation, seen_by| Fault {
            seen_by,
            from: Some(1),
            operation,
            bytes: 4 * (LEN + 1),
            offset: 2800,
            wrong_bytes: 1,
        };
        for rank in [0, 2] {
            let checked = &checked[usize::from(rank)];
            let placed: Vec<_> = checked
                .faults
                .iter()
                .filter(|it| it.from.is_some())
                .collect();
            let expected = [
                of(Operation::AllGather, rank),
                of(Operation::AllGatherF32, rank),
                of(Operation::Broadcast, rank),
                of(Operation::SendRecv, rank),
            ];
            assert_eq!(placed, expected.iter().collect::<Vec<_>>());
        }
        assert_eq!(checked[1].wrong, 0, "rank 1 has sent what it believes in");
    }

    #[test]
    fn a_wrong_sum_is_a_fault_of_no_single_rank() {
        let checked = check(|_, values| values[0] += 1.0);
        let sums = |it: &&Fault| it.operation == Operation::AllReduce;
        let sum = checked[0].faults.iter().find(sums).expect("seen");
        assert_eq!((sum.from, sum.offset), (None, 0));
    }

    #[test]
    fn faults_are_counted_beyond_those_that_are_kept() {
        let checked = check(|_, values| values.fill(9.0));
        assert!(checked[0].wrong > FAULTS_MAX as u64);
        assert_eq!(checked[0].faults.len(), FAULTS_MAX);
    }

    #[test]
    fn a_result_that_is_cut_short_is_a_fault() {
        let nothing = |_, _, _| Vec::new();
        let mut checker = Checker::new(Rank(0), &nothing);
        checker.compare(Operation::Broadcast, Some(1), &[1, 2], &[1, 2, 3, 4]);
        let fault = &checker.checked.faults[0];
        assert_eq!((fault.offset, fault.wrong_bytes), (2, 2));
    }
}
