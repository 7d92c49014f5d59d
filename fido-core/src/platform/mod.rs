//! Platforms: how memory is shared and bells are rung where the domains run.

pub mod host;
