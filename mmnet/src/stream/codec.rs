//! The stream protocol over a lane: what the two ends say to each other, as numbers in a message's head.
//!
//! ```text
//! kind              args[0] args[1]  args[2]        args[3]  flags  payload
//! outside → inside
//! 0x01 Opened       id      serial   IPv4 address   port     4      none
//!                   id      serial   scope          port     6      the 16 bytes of the IPv6 address
//! 0x02 Data         id      serial                                  the bytes
//! 0x03 Finished     id      serial
//! 0x04 Closed       id      serial
//! 0x05 Sent         id      serial   bytes
//! 0x06 Called       id      serial   port
//! inside → outside
//! 0x11 Send         id      serial                                  the bytes
//! 0x12 Finish       id      serial
//! 0x13 Reset        id      serial
//! 0x14 Accept       id      serial
//! ```
//! A connection is named by an id, which comes back after a while, and a serial number, which tells the connections
//! apart that had it: a message about an old one never reaches a new one. What is empty above is zero and ignored.
//!
//! The decoders are total: every head is a message or a [`CodecError`].

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

use fido_core::lane::{Lane, SendError as LaneError};
use fido_core::message::{Head, INLINE_SEGMENTS};
use fido_core::payload::{MAX_SEGMENTS, Payload};

use super::StreamId;

/// The most bytes that go into one message; a longer payload goes in several, so that each returns by itself.
pub const MAX_MESSAGE_BYTES: u64 = 1 << 20;

const OPENED: u8 = 0x01;
const DATA: u8 = 0x02;
const FINISHED: u8 = 0x03;
const CLOSED: u8 = 0x04;
const SENT: u8 = 0x05;
const CALLED: u8 = 0x06;
const SEND: u8 = 0x11;
const FINISH: u8 = 0x12;
const RESET: u8 = 0x13;
const ACCEPT: u8 = 0x14;
const IPV4: u8 = 4;
const IPV6: u8 = 6;

/// Why a message is none of this protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// No such kind in this direction.
    #[error("message kind {0:#04x} is unknown in this direction")]
    Kind(u8),
    /// Neither IPv4 nor IPv6.
    #[error("address family {0}; it must be 4 or 6")]
    Family(u8),
    /// Not a port number.
    #[error("port {0}; it must be below 65536")]
    Port(u32),
    /// A payload of the wrong length.
    #[error("a payload of {len} bytes in a message of kind {kind:#04x}, which must have {expected}")]
    Payload {
        /// The message's kind.
        kind: u8,
        /// The payload's length.
        len: u64,
        /// What it must be.
        expected: &'static str,
    },
}

/// Names one connection, and no later one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Name {
    /// What it is called while it lives.
    pub id: StreamId,
    /// Which of those that had this id it is.
    pub serial: u32,
}

impl Name {
    /// The name in a head; also in one whose payload was refused.
    pub fn of(head: &Head) -> Self {
        Self { id: StreamId(head.args[0]), serial: head.args[1] }
    }

    fn head(self, kind: u8, flags: u8, a: u32, b: u32) -> Head {
        Head { kind, flags, args: [self.id.0, self.serial, a, b] }
    }
}

/// What the outside's end says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Report {
    /// A connection from there.
    Opened(SocketAddr),
    /// The payload has arrived.
    Data,
    /// The other end sends no more.
    Finished,
    /// The connection is gone, and its name spent.
    Closed,
    /// So many bytes more have been handed to the outside.
    Sent(u32),
    /// A connection from that domain itself, to a port of this one.
    Called(u16),
}

impl Report {
    /// The message, and the bytes that it needs as its payload.
    pub fn encode(&self, name: Name) -> (Head, Option<[u8; 16]>) {
        let head = match self {
            Self::Opened(SocketAddr::V4(from)) => {
                name.head(OPENED, IPV4, u32::from(*from.ip()), u32::from(from.port()))
            }
            Self::Opened(SocketAddr::V6(from)) => {
                let head = name.head(OPENED, IPV6, from.scope_id(), u32::from(from.port()));
                return (head, Some(from.ip().octets()));
            }
            Self::Data => name.head(DATA, 0, 0, 0),
            Self::Finished => name.head(FINISHED, 0, 0, 0),
            Self::Closed => name.head(CLOSED, 0, 0, 0),
            Self::Sent(bytes) => name.head(SENT, 0, *bytes, 0),
            Self::Called(port) => name.head(CALLED, 0, u32::from(*port), 0),
        };
        (head, None)
    }

    /// Whether the payload of this message is part of it, and to be copied out for [`Report::decode`].
    pub fn has_header(head: &Head) -> bool {
        head.kind == OPENED
    }

    /// What a head with a payload of `len` bytes says; `header` is the front of that payload if
    /// [`Report::has_header`].
    ///
    /// # Errors
    /// [`CodecError`] if it is no such message.
    pub fn decode(head: &Head, len: u64, header: &[u8]) -> Result<(Name, Self), CodecError> {
        let report = match head.kind {
            OPENED => Self::Opened(decode_address(head, len, header)?),
            DATA => some_payload(head, len, Self::Data)?,
            FINISHED => no_payload(head, len, Self::Finished)?,
            CLOSED => no_payload(head, len, Self::Closed)?,
            SENT => no_payload(head, len, Self::Sent(head.args[2]))?,
            CALLED => {
                let port = u16::try_from(head.args[2]).map_err(|_| CodecError::Port(head.args[2]))?;
                no_payload(head, len, Self::Called(port))?
            }
            kind => return Err(CodecError::Kind(kind)),
        };
        Ok((Name::of(head), report))
    }
}

/// What the inside's end says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Send the payload.
    Send,
    /// Send no more after that.
    Finish,
    /// Drop the connection.
    Reset,
    /// The connection that was called for stands.
    Accept,
}

impl Command {
    /// The message.
    pub fn encode(self, name: Name) -> Head {
        let kind = match self {
            Self::Send => SEND,
            Self::Finish => FINISH,
            Self::Reset => RESET,
            Self::Accept => ACCEPT,
        };
        name.head(kind, 0, 0, 0)
    }

    /// What a head with a payload of `len` bytes says.
    ///
    /// # Errors
    /// [`CodecError`] if it is no such message.
    pub fn decode(head: &Head, len: u64) -> Result<(Name, Self), CodecError> {
        let command = match head.kind {
            SEND => some_payload(head, len, Self::Send)?,
            FINISH => no_payload(head, len, Self::Finish)?,
            RESET => no_payload(head, len, Self::Reset)?,
            ACCEPT => no_payload(head, len, Self::Accept)?,
            kind => return Err(CodecError::Kind(kind)),
        };
        Ok((Name::of(head), command))
    }
}

fn no_payload<T>(head: &Head, len: u64, message: T) -> Result<T, CodecError> {
    if len == 0 { Ok(message) } else { Err(CodecError::Payload { kind: head.kind, len, expected: "none" }) }
}

fn some_payload<T>(head: &Head, len: u64, message: T) -> Result<T, CodecError> {
    if len > 0 { Ok(message) } else { Err(CodecError::Payload { kind: head.kind, len, expected: "some" }) }
}

fn decode_address(head: &Head, len: u64, header: &[u8]) -> Result<SocketAddr, CodecError> {
    let port = u16::try_from(head.args[3]).map_err(|_| CodecError::Port(head.args[3]))?;
    match head.flags {
        IPV4 => {
            let ip = no_payload(head, len, Ipv4Addr::from(head.args[2]))?;
            Ok(SocketAddrV4::new(ip, port).into())
        }
        IPV6 => {
            let wrong = CodecError::Payload { kind: head.kind, len, expected: "the 16 bytes of an address" };
            let octets: [u8; 16] = header.try_into().map_err(|_| wrong)?;
            if len != 16 {
                return Err(wrong);
            }
            Ok(SocketAddrV6::new(Ipv6Addr::from(octets), port, 0, head.args[2]).into())
        }
        family => Err(CodecError::Family(family)),
    }
}

/// Cuts off as much of a payload as goes into one message of at most `parts` parts.
pub(super) fn next_message(data: &mut Payload, parts: usize) -> Payload {
    let fits: u64 = data.segments().take(parts.min(MAX_SEGMENTS)).map(|segment| u64::from(segment.len)).sum();
    data.split_to(fits.min(MAX_MESSAGE_BYTES))
}

/// Sends one message of what `data` begins with and takes that off; false, and nothing taken off, if the lane takes
/// none now. A message of many parts needs a buffer for their list. Where the heap has none, one of as many parts as
/// need no list goes instead: what is to be sent may be all that fills the heap, and then nothing else could free it.
pub(super) fn send_next(lane: &mut Lane, head: Head, data: &mut Payload) -> Result<bool, LaneError> {
    for parts in [MAX_SEGMENTS, INLINE_SEGMENTS] {
        match lane.send(head, next_message(data, parts)) {
            Ok(()) => return Ok(true),
            Err(LaneError::Full(mut back) | LaneError::Down(mut back)) => {
                let listed = back.parts().len() > INLINE_SEGMENTS;
                back.append(std::mem::take(data));
                *data = back;
                if !listed {
                    break;
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

/// Body of the fuzz target and of the property test: any bytes, taken as a head, a length and a header, are decoded in
/// both directions; what is a message is the same message when it is encoded and decoded again.
///
/// # Panics
/// If it is not.
pub fn fuzz(bytes: &[u8]) {
    let byte = |at: usize| bytes.get(at).copied().unwrap_or(0);
    let word = |at: usize| u32::from_le_bytes([byte(at), byte(at + 1), byte(at + 2), byte(at + 3)]);
    let head = Head { kind: byte(0), flags: byte(1), args: [word(3), word(7), word(11), word(15)] };
    let len = u64::from(byte(2));
    let header = bytes.get(19..).unwrap_or(&[]);
    if let Ok((name, report)) = Report::decode(&head, len, header) {
        let (again, header) = report.encode(name);
        let header = header.as_ref().map_or(&[][..], |header| &header[..]);
        let len = if again.kind == DATA { len } else { header.len() as u64 };
        assert_eq!(Report::decode(&again, len, header), Ok((name, report)));
    }
    if let Ok((name, command)) = Command::decode(&head, len) {
        assert_eq!(Command::decode(&command.encode(name), len), Ok((name, command)));
    }
}

#[cfg(test)]
mod tests {
    use fido_core::addr::{GlobalAddr, Segment};
    use proptest::prelude::*;

    use super::*;

    const NAME: Name = Name { id: StreamId(0x1234_5678), serial: 0x9abc_def0 };

    #[test]
    fn every_report_survives() {
        let reports = [
            Report::Opened("127.0.0.1:2049".parse().unwrap()),
            Report::Opened("[2001:db8::7]:65535".parse().unwrap()),
            Report::Opened(SocketAddrV6::new(Ipv6Addr::LOCALHOST, 1, 0, 3).into()),
            Report::Finished,
            Report::Closed,
            Report::Sent(u32::MAX),
            Report::Called(0),
            Report::Called(u16::MAX),
        ];
        for report in reports {
            let (head, header) = report.encode(NAME);
            let header = header.as_ref().map_or(&[][..], |header| &header[..]);
            assert_eq!(Report::decode(&head, header.len() as u64, header), Ok((NAME, report)));
        }
        assert_eq!(Report::decode(&Report::Data.encode(NAME).0, 1, &[]), Ok((NAME, Report::Data)));
    }

    #[test]
    fn every_command_survives() {
        for (command, len) in [(Command::Send, 1), (Command::Finish, 0), (Command::Reset, 0), (Command::Accept, 0)] {
            assert_eq!(Command::decode(&command.encode(NAME), len), Ok((NAME, command)));
            assert!(matches!(Command::decode(&command.encode(NAME), 1 - len), Err(CodecError::Payload { .. })));
        }
    }

    #[test]
    fn wrong_messages_are_named() {
        let (v6, header) = Report::Opened("[::1]:1".parse().unwrap()).encode(NAME);
        let header = header.unwrap();
        assert!(matches!(Report::decode(&v6, 15, &header[..15]), Err(CodecError::Payload { len: 15, .. })));
        assert!(matches!(Report::decode(&v6, 17, &header), Err(CodecError::Payload { len: 17, .. })));
        assert_eq!(Report::decode(&Head { flags: 5, ..v6 }, 16, &header), Err(CodecError::Family(5)));
        let beyond = Head { args: [0, 0, 0, 65536], ..v6 };
        assert_eq!(Report::decode(&beyond, 16, &header), Err(CodecError::Port(65536)));
        let beyond = Head { kind: CALLED, args: [0, 0, 65536, 0], ..Head::default() };
        assert_eq!(Report::decode(&beyond, 0, &[]), Err(CodecError::Port(65536)));
        for kind in [0, 7, 0x10, 0x15, 0xff] {
            let head = Head { kind, ..Head::default() };
            assert_eq!(Report::decode(&head, 0, &[]), Err(CodecError::Kind(kind)));
            assert_eq!(Command::decode(&head, 0), Err(CodecError::Kind(kind)));
        }
    }

    #[test]
    fn messages_are_cut_at_both_limits() {
        let segment = |at: u64, len| Segment::new(GlobalAddr::from_bits(1 << 40 | at), len);
        let mut long = Payload::new();
        long.push(segment(0, MAX_MESSAGE_BYTES as u32 + 1), None);
        assert_eq!((next_message(&mut long, MAX_SEGMENTS).len(), long.len()), (MAX_MESSAGE_BYTES, 1));
        let mut many = Payload::new();
        for at in 0..=MAX_SEGMENTS as u64 {
            many.push(segment(at * 10, 1), None);
        }
        assert_eq!((next_message(&mut many, usize::MAX).parts().len(), many.parts().len()), (MAX_SEGMENTS, 1));
        assert!(next_message(&mut Payload::new(), 1).is_empty());
    }

    proptest! {
        #[test]
        fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            fuzz(&bytes);
        }

        #[test]
        fn any_bytes_near_a_message(
            kind in prop::sample::select(vec![1u8, 2, 3, 4, 5, 6, 0x11, 0x12, 0x13, 0x14]),
            flags in prop::sample::select(vec![0u8, 4, 6]),
            len in prop::sample::select(vec![0u8, 1, 16]),
            rest in prop::collection::vec(any::<u8>(), 16..36),
        ) {
            let mut bytes = vec![kind, flags, len];
            bytes.extend(rest);
            fuzz(&bytes);
            // A port below 65536, and exactly an address behind it.
            bytes.resize(35, 0);
            bytes[17] = 0;
            bytes[18] = 0;
            fuzz(&bytes);
        }
    }
}
