//! The platform of plain Linux processes.

pub mod memory;
pub mod protocol;
