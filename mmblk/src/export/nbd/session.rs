//! The conversation with one client after the negotiation: requests in, replies out.
//!
//! It has no socket and no device: it takes bytes from [`Incoming`], says what is to be submitted, and makes replies.

use fido_core::memory::Memory;
use fido_core::payload::Payload;

use super::haggle::{ALLOCATION_ID, Agreement};
use super::{Facts, Limits};
use crate::extents::{self, Extent};
use crate::nbd::incoming::Incoming;
use crate::nbd::outgoing::Outgoing;
use crate::nbd::transmission::{
    Chunk, CommandFlags, REQUEST_BYTES, Request, allocation, chunk, command, error, simple,
};
use crate::nbd::{ExportFlags, MAX_PAYLOAD};
use crate::queue::{BlockError, BlockOp, MAX_REQUEST_BYTES};

/// A request that is not answered yet, as far as its answer needs it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Open {
    cookie: u64,
    command: u16,
    offset: u64,
    len: u32,
    /// One extent is enough.
    one: bool,
    /// It is to be durable, and the device has no such operation: a flush follows.
    pub(super) then_flush: bool,
}

/// What a client has said.
#[derive(Debug)]
pub(super) enum Said {
    /// Something for the device.
    Submit(Open, BlockOp),
    /// Something that has been answered already.
    Refused,
    /// It leaves.
    Leaves,
    /// It does not speak the protocol (any more): there is no way to go on.
    Nonsense(&'static str),
}

/// A write whose payload is on its way.
#[derive(Debug)]
struct Body {
    request: Request,
    data: Payload,
    left: u32,
    /// Why the payload is not wanted; it has to be read all the same.
    refused: Option<u32>,
}

/// The conversation with one client.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) agreement: Agreement,
    pub(super) incoming: Incoming,
    pub(super) outgoing: Outgoing,
    head: [u8; REQUEST_BYTES],
    have: usize,
    body: Option<Body>,
    /// Requests at the device.
    at_device: usize,
    /// Bytes that those will read.
    reading: u64,
    /// It has a request for which the device has no place.
    pub(super) stalled: bool,
    /// It has taken its leave: what it has asked for is still done and answered.
    leaving: bool,
}

impl Session {
    pub(super) fn new(agreement: Agreement, limits: &Limits) -> Self {
        Self {
            agreement,
            incoming: Incoming::new(limits.client_bytes as usize, REQUEST_BYTES),
            outgoing: Outgoing::default(),
            head: [0; REQUEST_BYTES],
            have: 0,
            body: None,
            at_device: 0,
            reading: 0,
            stalled: false,
            leaving: false,
        }
    }

    /// Whether it has left and got all its answers.
    pub(super) fn is_over(&self) -> bool {
        self.leaving && self.at_device == 0 && !self.stalled && self.outgoing.len() == 0
    }

    /// Whether its next request may be read.
    pub(super) fn has_room(&self, limits: &Limits) -> bool {
        !self.leaving
            && !self.stalled
            && self.at_device + self.outgoing.len() < limits.requests
            && self.reading + self.outgoing.payload_bytes() < limits.client_bytes
    }

    /// Whether more of what it says may be received: the rest of a payload, or another request.
    pub(super) fn wants_bytes(&self, limits: &Limits) -> bool {
        self.incoming.pending() == 0 && (self.body.is_some() || self.has_room(limits))
    }

    /// How many bytes of the present request are known to come: 0 between requests.
    pub(super) fn expected(&self) -> usize {
        match &self.body {
            Some(body) => body.left as usize,
            None if self.have > 0 => REQUEST_BYTES - self.have,
            None => 0,
        }
    }

    /// What the client says next, as far as it has arrived.
    pub(super) fn next(&mut self, facts: &Facts, limits: &Limits, memory: &Memory) -> Option<Said> {
        if self.body.is_none() {
            if !self.has_room(limits) {
                return None;
            }
            self.have += self.incoming.take(&mut self.head[self.have..], memory);
            if self.have < REQUEST_BYTES {
                return None;
            }
            self.have = 0;
            let Some(request) = Request::decode(&self.head) else {
                return Some(Said::Nonsense("what it says is no request"));
            };
            let refused = self.admit(&request, facts).err();
            if request.command == command::DISC {
                self.leaving = true;
                return Some(Said::Leaves);
            }
            if request.command != command::WRITE {
                return Some(self.without_payload(request, refused, memory));
            }
            if request.len > MAX_PAYLOAD {
                return Some(Said::Nonsense("a payload beyond all limits"));
            }
            self.body = Some(Body { request, data: Payload::new(), left: request.len, refused });
        }
        self.payload(memory)
    }

    fn payload(&mut self, memory: &Memory) -> Option<Said> {
        let body = self.body.as_mut()?;
        let left = body.left as usize;
        let count = if body.refused.is_some() {
            self.incoming.skip(left)
        } else {
            let piece = self.incoming.lend(left);
            let count = piece.len() as usize;
            body.data.append(piece);
            count
        };
        body.left -= count as u32;
        if body.left > 0 {
            return None;
        }
        let Body { request, data, refused, .. } = self.body.take()?;
        if let Some(error) = refused {
            self.refuse(&request, error, memory);
            return Some(Said::Refused);
        }
        let durable = request.flags.contains(CommandFlags::FUA);
        let op = BlockOp::Write { offset: request.offset, data, durable };
        Some(Said::Submit(open(&request, false), op))
    }

    fn without_payload(&mut self, request: Request, refused: Option<u32>, memory: &Memory) -> Said {
        if let Some(error) = refused {
            self.refuse(&request, error, memory);
            return Said::Refused;
        }
        let Request { flags, offset, len, .. } = request;
        let durable = flags.contains(CommandFlags::FUA);
        let op = match request.command {
            command::READ => BlockOp::Read { offset, len },
            command::TRIM => BlockOp::Discard { offset, len: len.into() },
            command::WRITE_ZEROES => {
                let unmap = !flags.contains(CommandFlags::NO_HOLE);
                BlockOp::WriteZeroes { offset, len: len.into(), durable, unmap }
            }
            command::BLOCK_STATUS => BlockOp::Extents { offset, len: len.into() },
            _ => BlockOp::Flush,
        };
        Said::Submit(open(&request, durable && request.command == command::TRIM), op)
    }

    /// Whether a request makes sense here; if not, the error to answer with.
    fn admit(&self, request: &Request, facts: &Facts) -> Result<(), u32> {
        let Request { flags, command, offset, len, .. } = *request;
        let known = match command {
            command::READ if self.agreement.structured => CommandFlags::FUA | CommandFlags::DF,
            command::WRITE_ZEROES => CommandFlags::FUA | CommandFlags::NO_HOLE,
            command::BLOCK_STATUS => CommandFlags::FUA | CommandFlags::REQ_ONE,
            _ => CommandFlags::FUA,
        };
        let changes = matches!(command, command::WRITE | command::TRIM | command::WRITE_ZEROES);
        if changes && facts.flags.contains(ExportFlags::READ_ONLY) {
            return Err(error::EPERM);
        }
        if flags.intersects(known.complement()) {
            return Err(error::EINVAL);
        }
        let whole = BlockOp::Discard { offset, len: len.into() };
        let op = match command {
            command::FLUSH | command::DISC => return Ok(()),
            command::READ | command::WRITE if len > MAX_REQUEST_BYTES => return Err(error::EINVAL),
            command::READ | command::WRITE => whole,
            command::TRIM if facts.flags.contains(ExportFlags::SEND_TRIM) => whole,
            command::WRITE_ZEROES if facts.flags.contains(ExportFlags::SEND_WRITE_ZEROES) => whole,
            command::BLOCK_STATUS if self.agreement.allocation => whole,
            _ => return Err(error::EINVAL),
        };
        facts.geometry.check(&op).map_err(|error| number(&error, command))
    }

    /// A request has been given to the device.
    pub(super) fn submitted(&mut self, open: &Open) {
        self.at_device += 1;
        if open.command == command::READ {
            self.reading += u64::from(open.len);
        }
    }

    /// A request's end at the device: queues the answer.
    pub(super) fn finished(&mut self, open: &Open, result: Result<Payload, BlockError>, memory: &Memory) {
        self.at_device = self.at_device.saturating_sub(1);
        if open.command == command::READ {
            self.reading = self.reading.saturating_sub(open.len.into());
        }
        let answered = match (open.command, result) {
            (command::READ, Ok(data)) if data.len() == u64::from(open.len) => self.data(open, data, memory),
            (command::READ, Ok(_)) => Err(error::EIO),
            (command::BLOCK_STATUS, Ok(list)) => self.extents(open, &list, memory),
            // A device that cannot say has all of it.
            (command::BLOCK_STATUS, Err(BlockError::Unsupported)) => {
                self.status(open, &[(open.len, 0)], memory);
                Ok(())
            }
            (_, Ok(_)) => {
                self.put(&simple(0, open.cookie), Vec::new(), memory);
                Ok(())
            }
            (command, Err(error)) => Err(number(&error, command)),
        };
        if let Err(error) = answered {
            self.error(open.command, open.cookie, error, memory);
        }
    }

    fn data(&mut self, open: &Open, data: Payload, memory: &Memory) -> Result<(), u32> {
        let pushed = if self.agreement.structured {
            let head = Chunk { flags: chunk::DONE, kind: chunk::OFFSET_DATA, cookie: open.cookie, len: open.len + 8 };
            let mut bytes = [0; 28];
            bytes[..20].copy_from_slice(&head.encode());
            bytes[20..].copy_from_slice(&open.offset.to_be_bytes());
            self.outgoing.push(&bytes, Vec::new(), data, memory)
        } else {
            self.outgoing.push(&simple(0, open.cookie), Vec::new(), data, memory)
        };
        pushed.map_err(|error| {
            tracing::warn!(%error, "the device lends what cannot be reached");
            error::EIO
        })
    }

    fn extents(&mut self, open: &Open, list: &Payload, memory: &Memory) -> Result<(), u32> {
        let list = extents::read(list, memory).map_err(|_| error::EIO)?;
        let mut extents: Vec<(u32, u32)> = Vec::new();
        let mut left = open.len;
        for Extent { len, hole } in list {
            let len = u32::try_from(len).unwrap_or(u32::MAX).min(left);
            left -= len;
            if len > 0 {
                extents.push((len, if hole { allocation::HOLE | allocation::ZERO } else { 0 }));
            }
        }
        extents.truncate(if open.one { 1 } else { extents.len() });
        if extents.is_empty() {
            return Err(error::EIO);
        }
        self.status(open, &extents, memory);
        Ok(())
    }

    fn status(&mut self, open: &Open, extents: &[(u32, u32)], memory: &Memory) {
        let mut text = ALLOCATION_ID.to_be_bytes().to_vec();
        for (len, state) in extents {
            text.extend(len.to_be_bytes());
            text.extend(state.to_be_bytes());
        }
        let len = text.len() as u32;
        let head = Chunk { flags: chunk::DONE, kind: chunk::BLOCK_STATUS, cookie: open.cookie, len };
        self.put(&head.encode(), text, memory);
    }

    fn refuse(&mut self, request: &Request, error: u32, memory: &Memory) {
        memory.stats().refusals.add(1);
        self.error(request.command, request.cookie, error, memory);
    }

    fn error(&mut self, command: u16, cookie: u64, error: u32, memory: &Memory) {
        if !self.agreement.structured || !matches!(command, command::READ | command::BLOCK_STATUS) {
            return self.put(&simple(error, cookie), Vec::new(), memory);
        }
        let head = Chunk { flags: chunk::DONE, kind: chunk::ERROR, cookie, len: 6 };
        // The error, and the length of a message that says no more than the number.
        let text = [&error.to_be_bytes()[..], &[0, 0]].concat();
        self.put(&head.encode(), text, memory);
    }

    fn put(&mut self, head: &[u8], text: Vec<u8>, memory: &Memory) {
        // Without payload there is no address that could be wrong.
        let _ = self.outgoing.push(head, text, Payload::new(), memory);
    }
}

fn open(request: &Request, then_flush: bool) -> Open {
    let one = request.flags.contains(CommandFlags::REQ_ONE);
    let Request { cookie, command, offset, len, .. } = *request;
    Open { cookie, command, offset, len, one, then_flush }
}

/// The number on the wire.
fn number(error: &BlockError, command: u16) -> u32 {
    match error {
        BlockError::OutOfRange { .. } if matches!(command, command::WRITE | command::WRITE_ZEROES) => error::ENOSPC,
        BlockError::OutOfRange { .. } | BlockError::Misaligned { .. } | BlockError::Size { .. } => error::EINVAL,
        BlockError::NoBuffer => error::ENOMEM,
        BlockError::NoSpace => error::ENOSPC,
        BlockError::ReadOnly => error::EPERM,
        BlockError::Unsupported => error::ENOTSUP,
        BlockError::Address(_) | BlockError::Io { .. } | BlockError::Protocol(_) => error::EIO,
    }
}
