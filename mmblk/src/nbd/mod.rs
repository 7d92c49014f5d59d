//! The NBD protocol, as far as both its ends need it: what is on the wire, and how it is received.
//!
//! Written from the protocol's specification (`doc/proto.md` of the NetworkBlockDevice project): fixed newstyle
//! negotiation, simple and structured replies, `base:allocation`. Not here: the old style of negotiation, TLS, extended
//! headers.
//!
//! * [`haggling`]: the options and their replies, before the first request;
//! * [`transmission`]: requests and replies;
//! * [`place`]: where a server listens, as `host:port`, path or URI;
//! * [`incoming`]: a byte stream received straight into the own arena, of which headers are read and payload is lent.
//!
//! The server is [`crate::export::nbd`], the client [`crate::backend::nbd`].

pub mod haggling;
pub mod incoming;
pub(crate) mod outgoing;
pub mod place;
pub mod transmission;

/// The longest name of an export, or any other string of the protocol, in bytes.
pub const MAX_STRING: usize = 4096;
/// The payload that a client may send in one request before it is taken for gone wild, whatever it was told.
pub const MAX_PAYLOAD: u32 = 32 << 20;
/// The metadata context that says what is allocated.
pub const BASE_ALLOCATION: &str = "base:allocation";

bitflags::bitflags! {
    /// What an export can do: the transmission flags of the protocol.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct ExportFlags: u16 {
        /// Always there.
        const HAS_FLAGS = 1;
        /// Nothing may be changed.
        const READ_ONLY = 1 << 1;
        /// `Flush` is understood.
        const SEND_FLUSH = 1 << 2;
        /// Durable requests (force unit access) are understood.
        const SEND_FUA = 1 << 3;
        /// `Trim` is understood.
        const SEND_TRIM = 1 << 5;
        /// `WriteZeroes` is understood.
        const SEND_WRITE_ZEROES = 1 << 6;
        /// Reads may ask not to be answered in fragments.
        const SEND_DF = 1 << 7;
        /// A flush covers the writes that were answered on every connection.
        const CAN_MULTI_CONN = 1 << 8;
        const _ = !0;
    }
}

/// Reads big-endian fields from the front of some bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fields<'a>(pub(crate) &'a [u8]);

impl<'a> Fields<'a> {
    pub(crate) fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*first)
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.take().map(u16::from_be_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_be_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_be_bytes)
    }

    /// A string with its length, 32 bits, before it.
    pub(crate) fn string(&mut self) -> Option<&'a [u8]> {
        let len = self.u32()? as usize;
        let (string, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(string)
    }
}
