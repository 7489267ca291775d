//! Splitmix64: repeatable choices from a seed, good enough to spread load and free of dependencies.

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014.
pub(crate) struct Random(u64);

impl Random {
    /// The numbers of one `stream` under `seed`; neighbouring streams do not resemble each other.
    pub(crate) fn new(seed: u64, stream: u64) -> Self {
        Self(seed ^ mix(stream.wrapping_add(GOLDEN)))
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GOLDEN);
        mix(self.0)
    }

    /// A number in `0..bound`; 0 if `bound` is 0.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::Random;

    #[test]
    fn choices_repeat_under_one_seed_and_reach_every_value() {
        let draw = |seed| (0..1_000).map(|n| Random::new(seed, n).below(10)).collect::<Vec<_>>();
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
        assert!((0..10).all(|value| draw(7).contains(&value)));
        assert_eq!(Random::new(7, 0).below(0), 0);
    }
}
