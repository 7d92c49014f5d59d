//! The server as a whole, against test doubles.

mod arbitrary;
mod flow;
mod over_tcp;
mod procedures;
mod repeats;
