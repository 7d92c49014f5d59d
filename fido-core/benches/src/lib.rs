//! The benchmarks of Fido's data path, for the command `fido bench`, and the reports that they write.
//!
//! A benchmark runs between two processes: the *leading* side, which measures, and the *other* side, which the same
//! program is once more ([`other_side`]). What it measured goes into the tables of a [`report`], with the [`machine`]
//! that it was measured on.

pub mod blk;
pub mod machine;
pub mod net;
mod notified;
pub mod other_side;
mod pair;
pub mod plot;
pub mod report;
pub mod ring;
pub mod wait;

/// An error of the benchmark itself.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;
