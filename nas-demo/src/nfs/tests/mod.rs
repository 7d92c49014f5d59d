//! The server as a whole, against test doubles.

mod arbitrary;
mod flow;
mod procedures;
mod repeats;
