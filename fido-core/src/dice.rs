//! Choices that a seed repeats, whatever the version of any library.

/// A source of choices: SplitMix64, after Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (2014).
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    /// The choices of this seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ z >> 31
    }

    /// A number from 0 to `most`, each as likely as the others (but for less than one in 2^32 if `most` is below that).
    pub fn roll(&mut self, most: u64) -> u64 {
        let wide = u128::from(self.next()) * (u128::from(most) + 1);
        (wide >> 64) as u64
    }

    /// Whether something comes about that does so `millionths` times in a million.
    pub fn happens(&mut self, millionths: u32) -> bool {
        self.roll(999_999) < millionths.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_repeats_itself_and_all_numbers_come() {
        let rolls = |seed| {
            let mut dice = Dice::new(seed);
            (0..100).map(|_| dice.roll(5)).collect::<Vec<_>>()
        };
        assert_eq!(rolls(1), rolls(1));
        assert_ne!(rolls(1), rolls(2));
        assert!((0..=5).all(|number| rolls(3).contains(&number)) && rolls(3).iter().all(|number| *number <= 5));
        let mut dice = Dice::new(7);
        assert!((0..1000).all(|_| !dice.happens(0) && dice.happens(1_000_000)));
        let often = (0..10_000).filter(|_| dice.happens(100_000)).count();
        assert!((800..1200).contains(&often), "{often} of 10000 at one in ten");
    }
}
