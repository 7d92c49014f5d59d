//! The cost of handing a cache line over, for every ordered pair of processors.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::MAX_CPU;

/// A hand-over that takes longer than this was not measured, whatever a file says.
const MAX_NS: f64 = 1e9;

/// Where a figure comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// From this pair.
    Measured,
    /// The median of the pairs that were measured at the same distance.
    Estimated,
    /// Nothing at this distance could be measured: a stand-in ([`super::Distance::nominal_ns`]).
    Nominal,
}

/// The cost of handing one cache line from a processor that writes it to one that reads it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HandOver {
    /// The median over all rounds of both halves together, in nanoseconds.
    pub ns: f64,
    /// A tenth of the rounds took at most this.
    pub low_ns: f64,
    /// A tenth of the rounds took at least this.
    pub high_ns: f64,
    /// The half that the writer waits: to own the line again, which the reader has a copy of. Median.
    pub write_ns: f64,
    /// The half that the reader waits: to get what the writer has written. Median.
    pub read_ns: f64,
    /// How many rounds that rests on; 0 if it was not measured.
    pub rounds: u32,
    /// Where it comes from.
    pub origin: Origin,
}

impl HandOver {
    /// A figure without a spread.
    pub(super) fn stand_in(ns: f64, origin: Origin) -> Self {
        Self { ns, low_ns: ns, high_ns: ns, write_ns: ns / 2.0, read_ns: ns / 2.0, rounds: 0, origin }
    }

    fn is_sane(&self) -> bool {
        let values = [self.ns, self.low_ns, self.high_ns, self.write_ns, self.read_ns];
        values.iter().all(|ns| ns.is_finite() && (0.0..=MAX_NS).contains(ns)) && self.ns > 0.0
    }
}

/// Why something is no matrix.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MatrixError {
    /// The processors are not in rising order, or too many or too large.
    #[error("its processors are not numbers up to {MAX_CPU} in rising order")]
    Cpus,
    /// A pair that is missing.
    #[error("the pair {0}-{1} is missing")]
    Missing(u32, u32),
    /// A pair that is there twice or names a processor that is not listed.
    #[error("the pair {0}-{1} does not belong there")]
    Surplus(u32, u32),
    /// A value that cannot be a duration.
    #[error("the pair {0}-{1} has a value that is no sensible duration")]
    Value(u32, u32),
}

/// A [`HandOver`] for every ordered pair of some processors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Raw", into = "Raw")]
pub struct Matrix {
    cpus: Vec<u32>,
    pairs: BTreeMap<(u32, u32), HandOver>,
}

impl Matrix {
    /// A matrix of these pairs.
    ///
    /// # Errors
    /// [`MatrixError`] unless there is exactly one sensible entry for each ordered pair of different processors.
    pub fn new(cpus: Vec<u32>, entries: impl IntoIterator<Item = ((u32, u32), HandOver)>) -> Result<Self, MatrixError> {
        if !cpus.is_sorted_by(|a, b| a < b) || cpus.last().is_some_and(|&last| last > MAX_CPU) {
            return Err(MatrixError::Cpus);
        }
        let mut pairs = BTreeMap::new();
        for ((from, to), hand_over) in entries {
            let listed = |cpu| cpus.binary_search(&cpu).is_ok();
            if from == to || !listed(from) || !listed(to) || pairs.contains_key(&(from, to)) {
                return Err(MatrixError::Surplus(from, to));
            }
            if !hand_over.is_sane() {
                return Err(MatrixError::Value(from, to));
            }
            pairs.insert((from, to), hand_over);
        }
        let ordered = cpus.iter().flat_map(|&from| cpus.iter().map(move |&to| (from, to)));
        if let Some((from, to)) = ordered.filter(|(from, to)| from != to).find(|pair| !pairs.contains_key(pair)) {
            return Err(MatrixError::Missing(from, to));
        }
        Ok(Self { cpus, pairs })
    }

    /// The processors, by rising number.
    pub fn cpus(&self) -> &[u32] {
        &self.cpus
    }

    /// The hand-over from one processor to another; `None` for the same one, and for one that is not in the matrix.
    pub fn get(&self, from: u32, to: u32) -> Option<&HandOver> {
        self.pairs.get(&(from, to))
    }

    /// All ordered pairs.
    pub fn pairs(&self) -> impl Iterator<Item = ((u32, u32), &HandOver)> {
        self.pairs.iter().map(|(pair, hand_over)| (*pair, hand_over))
    }

    /// How many pairs have this origin.
    pub fn count(&self, origin: Origin) -> usize {
        self.pairs.values().filter(|hand_over| hand_over.origin == origin).count()
    }
}

/// How it is written down.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    cpus: Vec<u32>,
    pairs: Vec<RawPair>,
}

#[derive(Serialize, Deserialize)]
struct RawPair {
    from: u32,
    to: u32,
    #[serde(flatten)]
    hand_over: HandOver,
}

impl From<Matrix> for Raw {
    fn from(matrix: Matrix) -> Self {
        let pair = |((from, to), hand_over)| RawPair { from, to, hand_over };
        Self { cpus: matrix.cpus, pairs: matrix.pairs.into_iter().map(pair).collect() }
    }
}

impl TryFrom<Raw> for Matrix {
    type Error = MatrixError;

    fn try_from(raw: Raw) -> Result<Self, MatrixError> {
        Self::new(raw.cpus, raw.pairs.into_iter().map(|pair| ((pair.from, pair.to), pair.hand_over)))
    }
}
