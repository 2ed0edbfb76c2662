//! Which of several strands carries which bytes of a stream.
//!
//! It follows from the place in the stream alone, so both ends know it, and nothing is said beside the bytes.

/// Units of bytes in turn, the heavier strands more often.
#[derive(Debug)]
pub(crate) struct Schedule {
    /// By unit, over and over.
    turns: Box<[u8]>,
    /// What goes over one before it is the turn of the next.
    unit_bytes: u64,
}

impl Schedule {
    /// Spreads the turns of each evenly over all (smooth weighted round robin, as nginx has it).
    pub(crate) fn new(weights: &[u8], unit_bytes: u64) -> Self {
        let total: i32 = weights.iter().copied().map(i32::from).sum();
        let mut credits = vec![0; weights.len()];
        let mut next = || {
            for (credit, weight) in credits.iter_mut().zip(weights) {
                *credit += i32::from(*weight);
            }
            // The first of equals, at both ends.
            let richest = (0..credits.len()).rev().max_by_key(|place| credits[*place]);
            let place = richest.unwrap_or(0);
            credits[place] -= total;
            place as u8
        };
        Self {
            turns: (0..total).map(|_| next()).collect(),
            unit_bytes,
        }
    }

    /// Returns which one carries the byte at `offset`, and how many bytes from there on.
    pub(crate) fn turn(&self, offset: u64) -> (usize, usize) {
        let unit = offset / self.unit_bytes % self.turns.len() as u64;
        let room = self.unit_bytes - offset % self.unit_bytes;
        (
            usize::from(self.turns[unit as usize]),
            usize::try_from(room).unwrap_or(usize::MAX),
        )
    }

    /// Returns how many strands carry bytes.
    pub(crate) fn width(&self) -> usize {
        let carries = |place: &u8| self.turns.contains(place);
        (0..=u8::MAX).filter(carries).count()
    }

    /// Returns how many strands like the fastest one would carry as much as all of them.
    pub(crate) fn breadth(&self) -> f64 {
        let of = |place: u8| self.turns.iter().filter(|turn| **turn == place).count();
        let most = self.turns.iter().map(|place| of(*place)).max();
        most.map_or(1.0, |most| self.turns.len() as f64 / most as f64)
    }
}

/// Why a strand carries nothing although it could.
pub(crate) const TOO_SLOW: &str = "it has less than an eighth of the best one's speed";

/// Returns how much each strand carries: in proportion to their speeds, or the same where one is not known (0). Nothing is
/// carried by one that does not exist, or is too slow.
pub(crate) fn weights(speeds: &[Option<u32>]) -> Vec<u8> {
    let fastest = speeds.iter().flatten().max().copied().unwrap_or(0);
    let is_known = speeds.iter().flatten().all(|speed| *speed > 0);
    let weight = |speed: &Option<u32>| match speed {
        None => 0,
        Some(_) if !is_known => 1,
        // Never more than its share, so that the slower ones hold nobody up.
        Some(speed) => (u64::from(WEIGHT_MAX) * u64::from(*speed) / u64::from(fastest)) as u8,
    };
    speeds.iter().map(weight).collect()
}

/// The most strands of one link.
pub(crate) const STRANDS_MAX: usize = 8;
/// Weight of the fastest: one that has less than an eighth of its speed would hold up more than it carries.
pub(crate) const WEIGHT_MAX: u8 = 8;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const UNIT_BYTES: u64 = 65_440;

    fn check_turns(weights: &[u8], expected: &[u8], width: usize) {
        let schedule = Schedule::new(weights, UNIT_BYTES);
        assert_eq!(*schedule.turns, *expected, "{weights:?}");
        assert_eq!(schedule.width(), width, "{weights:?}");
    }

    #[test]
    fn turns_are_spread_evenly() {
        check_turns(&[1, 1], &[0, 1], 2);
        check_turns(&[1, 1, 1], &[0, 1, 2], 3);
        check_turns(&[8, 2], &[0, 0, 1, 0, 0, 0, 0, 1, 0, 0], 2);
        check_turns(&[0, 8, 4], &[1, 2, 1, 1, 2, 1, 1, 2, 1, 1, 2, 1], 2);
        check_turns(&[0, 1], &[1], 1);
    }

    fn check_weights(speeds: &[Option<u32>], expected: &[u8]) {
        assert_eq!(weights(speeds), expected);
    }

    #[test]
    fn faster_ones_carry_more() {
        check_weights(&[Some(1000)], &[8]);
        check_weights(&[Some(10_000), Some(10_000)], &[8, 8]);
        check_weights(&[Some(25_000), Some(10_000), None], &[8, 3, 0]);
        check_weights(&[Some(1000), Some(10_000)], &[0, 8]);
        check_weights(&[None, Some(10_000), Some(5000)], &[0, 8, 4]);
        check_weights(&[Some(0), Some(10_000), None], &[1, 1, 0]);
        check_weights(&[None, None], &[0, 0]);
    }

    proptest! {
        #[test]
        fn every_byte_has_its_turn(
            weights in prop::collection::vec(0..=8_u8, 1..=STRANDS_MAX),
            offset in any::<u64>(),
        ) {
            prop_assume!(weights.iter().any(|weight| *weight > 0));
            let schedule = Schedule::new(&weights, UNIT_BYTES);
            for (place, weight) in weights.iter().enumerate() {
                let turns = schedule.turns.iter().filter(|turn| usize::from(**turn) == place);
                prop_assert_eq!(turns.count(), usize::from(*weight));
            }
            // The rest of a unit is carried by the same, and no more than that.
            let (strand, room) = schedule.turn(offset);
            prop_assert!(weights[strand] > 0 && room > 0 && room as u64 <= UNIT_BYTES);
            if let Some(last) = offset.checked_add(room as u64 - 1) {
                prop_assert_eq!(schedule.turn(last), (strand, 1));
            }
        }

        #[test]
        fn no_strand_makes_the_link_slower_than_the_fastest_alone(
            speeds in prop::collection::vec(1..400_000_u32, 1..8),
        ) {
            let known: Vec<Option<u32>> = speeds.iter().copied().map(Some).collect();
            let shares = weights(&known);
            let total: f64 = shares.iter().copied().map(f64::from).sum();
            // The slowest for its share sets the pace of all.
            let carrying = speeds.iter().zip(&shares).filter(|(_, share)| **share > 0);
            let pace = carrying.map(|(speed, share)| f64::from(*speed) / f64::from(*share));
            let together = total * pace.fold(f64::INFINITY, f64::min);
            let fastest = f64::from(speeds.iter().copied().max().expect("one"));
            prop_assert!(together >= fastest * 0.999_999);
        }
    }
}
