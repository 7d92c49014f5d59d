//! The messages of vhost-user: what a front end asks, parsed from bytes and file descriptors, and our answers.
//!
//! Everything is checked here that can be checked without the device: sizes, numbers of descriptors, flags. Source:
//! `docs/interop/vhost-user.rst` of QEMU.

use std::os::fd::OwnedFd;

use super::wire::Reader;

/// Length of a message's head.
pub const HEAD_BYTES: usize = 12;
/// The longest body that is taken: a memory table of [`MAX_TABLE`] regions is far shorter.
pub const MAX_BODY: usize = 1024;
/// The most file descriptors with one message, and so the most regions of a memory table.
pub const MAX_TABLE: usize = 8;
/// The longest piece of configuration space.
pub const MAX_CONFIG: usize = 256;

const VERSION: u32 = 1;
const VERSION_MASK: u32 = 3;
const REPLY: u32 = 1 << 2;
const NEED_REPLY: u32 = 1 << 3;
/// In the messages that carry a ring's descriptor: there is none.
const NO_FD: u64 = 1 << 8;

/// Why a message is not understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// A head that is none.
    #[error("a message of {size} bytes with flags {flags:#x}")]
    Head {
        /// The flags.
        flags: u32,
        /// The body's length.
        size: u32,
    },
    /// A request that is not known, or not offered.
    #[error("request {0} is not supported")]
    Unknown(u32),
    /// A body of the wrong length.
    #[error("request {request} with a body of {found} bytes")]
    Size {
        /// Which.
        request: u32,
        /// Its body's length.
        found: usize,
    },
    /// Too few or too many file descriptors.
    #[error("request {request} with {found} file descriptors; it takes {wanted}")]
    Fds {
        /// Which.
        request: u32,
        /// How many there are.
        found: usize,
        /// How many there should be.
        wanted: usize,
    },
    /// A value that cannot be.
    #[error("request {request}: {what} is {value:#x}")]
    Value {
        /// Which.
        request: u32,
        /// Of what.
        what: &'static str,
        /// What it is.
        value: u64,
    },
}

/// A message's head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Which request.
    pub request: u32,
    /// Whether an acknowledgement is wanted where the request has no answer.
    pub need_reply: bool,
    /// Length of the body.
    pub size: usize,
}

/// A region of the front end's memory table. Its file comes with the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TableEntry {
    /// Where the guest has it.
    pub guest: u64,
    /// How many bytes.
    pub len: u64,
    /// Where the front end has it.
    pub user: u64,
    /// Where it begins in its file.
    pub offset: u64,
}

/// Where the parts of a ring are, as the front end has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingAddresses {
    /// The descriptors.
    pub descriptors: u64,
    /// What is used.
    pub used: u64,
    /// What is available.
    pub available: u64,
}

/// The memory in which requests under way are noted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InflightPlan {
    /// Its length, in bytes.
    pub bytes: u64,
    /// Where it begins in its file.
    pub offset: u64,
    /// Queues.
    pub queues: u16,
    /// Places of each.
    pub places: u16,
    /// The body's length in the request: front ends differ in its padding, and want it back as they sent it.
    pub body: usize,
}

/// What a front end asks.
#[derive(Debug)]
#[allow(missing_docs, reason = "the names are those of the specification")]
pub enum Request {
    GetFeatures,
    SetFeatures(u64),
    SetOwner,
    ResetOwner,
    ResetDevice,
    GetProtocolFeatures,
    SetProtocolFeatures(u64),
    GetQueueNum,
    SetMemTable(Vec<(TableEntry, OwnedFd)>),
    SetVringNum { ring: u32, places: u32 },
    SetVringAddr { ring: u32, addresses: RingAddresses },
    SetVringBase { ring: u32, base: u32 },
    GetVringBase { ring: u32 },
    SetVringEnable { ring: u32, enable: bool },
    SetVringKick { ring: u32, fd: Option<OwnedFd> },
    SetVringCall { ring: u32, fd: Option<OwnedFd> },
    SetVringErr { ring: u32, fd: Option<OwnedFd> },
    SetBackendReqFd(OwnedFd),
    GetConfig { offset: usize, size: usize, flags: u32 },
    SetConfig { offset: usize, size: usize },
    GetInflightFd(InflightPlan),
    SetInflightFd(InflightPlan, OwnedFd),
}

/// What is answered.
#[derive(Debug)]
pub enum Reply {
    /// Nothing but an acknowledgement, if one is wanted.
    Done,
    /// A number.
    Number(u64),
    /// A ring's position.
    Base {
        /// Which ring.
        ring: u32,
        /// The next descriptor chain to take.
        base: u16,
    },
    /// Configuration space; empty for an error.
    Config {
        /// Where it begins.
        offset: usize,
        /// As in the request.
        flags: u32,
        /// The bytes.
        bytes: Vec<u8>,
    },
    /// Memory for requests under way.
    Inflight(InflightPlan, OwnedFd),
}

impl Head {
    /// Parses a head.
    ///
    /// # Errors
    /// [`MessageError::Head`] if the version or length is wrong, or it is an answer.
    pub fn parse(bytes: &[u8; HEAD_BYTES]) -> Result<Self, MessageError> {
        let mut reader = Reader::new(bytes);
        let (request, flags, size) = (reader.u32(), reader.u32(), reader.u32());
        let length = usize::try_from(size).ok().filter(|size| *size <= MAX_BODY);
        match length {
            Some(size) if flags & VERSION_MASK == VERSION && flags & REPLY == 0 => {
                Ok(Self { request, need_reply: flags & NEED_REPLY != 0, size })
            }
            _ => Err(MessageError::Head { flags, size }),
        }
    }
}

impl Request {
    /// Parses a request from its body and the descriptors that came with it.
    ///
    /// # Errors
    /// [`MessageError`] that says what is wrong.
    pub fn parse(request: u32, body: &[u8], fds: Vec<OwnedFd>) -> Result<Self, MessageError> {
        let message = Message { request, body, fds };
        Ok(match request {
            1 => message.plain(|_| Self::GetFeatures, 0)?,
            2 => message.plain(|body| Self::SetFeatures(body.u64()), 8)?,
            3 => message.plain(|_| Self::SetOwner, 0)?,
            4 => message.plain(|_| Self::ResetOwner, 0)?,
            5 => message.mem_table()?,
            8 => message.plain(|body| Self::SetVringNum { ring: body.u32(), places: body.u32() }, 8)?,
            9 => message.ring_addresses()?,
            10 => message.plain(|body| Self::SetVringBase { ring: body.u32(), base: body.u32() }, 8)?,
            11 => message.plain(|body| Self::GetVringBase { ring: body.u32() }, 8)?,
            12 => message.ring_fd(|ring, fd| Self::SetVringKick { ring, fd })?,
            13 => message.ring_fd(|ring, fd| Self::SetVringCall { ring, fd })?,
            14 => message.ring_fd(|ring, fd| Self::SetVringErr { ring, fd })?,
            15 => message.plain(|_| Self::GetProtocolFeatures, 0)?,
            16 => message.plain(|body| Self::SetProtocolFeatures(body.u64()), 8)?,
            17 => message.plain(|_| Self::GetQueueNum, 0)?,
            18 => message.ring_enable()?,
            21 => Self::SetBackendReqFd(message.sized(&[0])?.one_fd()?),
            24 | 25 => message.config()?,
            31 => Self::GetInflightFd(message.without_fds()?.inflight()?),
            32 => Self::SetInflightFd(message.inflight()?, message.one_fd()?),
            34 => message.plain(|_| Self::ResetDevice, 0)?,
            other => return Err(MessageError::Unknown(other)),
        })
    }
}

struct Message<'a> {
    request: u32,
    body: &'a [u8],
    fds: Vec<OwnedFd>,
}

impl Message<'_> {
    fn sized(self, sizes: &[usize]) -> Result<Self, MessageError> {
        if sizes.contains(&self.body.len()) {
            return Ok(self);
        }
        Err(MessageError::Size { request: self.request, found: self.body.len() })
    }

    fn with_fds(self, wanted: usize) -> Result<Self, MessageError> {
        if self.fds.len() == wanted {
            return Ok(self);
        }
        Err(MessageError::Fds { request: self.request, found: self.fds.len(), wanted })
    }

    fn without_fds(self) -> Result<Self, MessageError> {
        self.with_fds(0)
    }

    fn one_fd(self) -> Result<OwnedFd, MessageError> {
        let (request, found) = (self.request, self.fds.len());
        let mut fds = self.with_fds(1)?.fds;
        fds.pop().ok_or(MessageError::Fds { request, found, wanted: 1 })
    }

    fn value(&self, what: &'static str, value: u64) -> MessageError {
        MessageError::Value { request: self.request, what, value }
    }

    /// A body of fixed length, without descriptors.
    fn plain(self, make: impl FnOnce(&mut Reader<'_>) -> Request, bytes: usize) -> Result<Request, MessageError> {
        let message = self.sized(&[bytes])?.without_fds()?;
        Ok(make(&mut Reader::new(message.body)))
    }

    fn mem_table(self) -> Result<Request, MessageError> {
        let mut body = Reader::new(self.body);
        let (count, _padding) = (body.u32() as usize, body.u32());
        if count == 0 || count > MAX_TABLE {
            return Err(self.value("the number of regions", count as u64));
        }
        let message = self.sized(&[8 + 32 * count])?.with_fds(count)?;
        let mut entry = || TableEntry { guest: body.u64(), len: body.u64(), user: body.u64(), offset: body.u64() };
        Ok(Request::SetMemTable(message.fds.into_iter().map(|fd| (entry(), fd)).collect()))
    }

    fn ring_addresses(self) -> Result<Request, MessageError> {
        let message = self.sized(&[40])?.without_fds()?;
        let mut body = Reader::new(message.body);
        let (ring, flags) = (body.u32(), body.u32());
        if flags != 0 {
            return Err(message.value("a ring's flags", flags.into()));
        }
        let addresses = RingAddresses { descriptors: body.u64(), used: body.u64(), available: body.u64() };
        Ok(Request::SetVringAddr { ring, addresses })
    }

    fn ring_enable(self) -> Result<Request, MessageError> {
        let message = self.sized(&[8])?.without_fds()?;
        let mut body = Reader::new(message.body);
        match (body.u32(), body.u32()) {
            (ring, enable @ (0 | 1)) => Ok(Request::SetVringEnable { ring, enable: enable == 1 }),
            (_, other) => Err(message.value("enable", other.into())),
        }
    }

    fn ring_fd(self, make: fn(u32, Option<OwnedFd>) -> Request) -> Result<Request, MessageError> {
        let message = self.sized(&[8])?;
        let number = Reader::new(message.body).u64();
        if number & !(NO_FD | 0xff) != 0 {
            return Err(message.value("a ring", number));
        }
        let ring = (number & 0xff) as u32;
        if number & NO_FD != 0 {
            message.without_fds()?;
            return Ok(make(ring, None));
        }
        Ok(make(ring, Some(message.one_fd()?)))
    }

    fn config(self) -> Result<Request, MessageError> {
        let message = self.without_fds()?;
        let mut body = Reader::new(message.body);
        let (offset, size, flags) = (body.u32() as usize, body.u32() as usize, body.u32());
        if offset > MAX_CONFIG || size > MAX_CONFIG - offset {
            return Err(message.value("the end of the configuration", offset as u64 + size as u64));
        }
        let get = message.request == 24;
        message.sized(&[12 + size])?;
        Ok(if get { Request::GetConfig { offset, size, flags } } else { Request::SetConfig { offset, size } })
    }

    fn inflight(&self) -> Result<InflightPlan, MessageError> {
        // Two 64-bit and two 16-bit numbers, with or without padding to a multiple of eight.
        if ![20, 24].contains(&self.body.len()) {
            return Err(MessageError::Size { request: self.request, found: self.body.len() });
        }
        let mut body = Reader::new(self.body);
        let (bytes, offset, queues, places) = (body.u64(), body.u64(), body.u16(), body.u16());
        Ok(InflightPlan { bytes, offset, queues, places, body: self.body.len() })
    }
}

impl Reply {
    /// The bytes of an answer to `request`, head included. `None` if nothing is to be sent.
    #[must_use]
    pub fn bytes(&self, request: u32, acknowledge: bool) -> Option<Vec<u8>> {
        let mut body = Vec::new();
        match self {
            Self::Done if !acknowledge => return None,
            Self::Done => body.extend_from_slice(&0_u64.to_le_bytes()),
            Self::Number(number) => body.extend_from_slice(&number.to_le_bytes()),
            Self::Base { ring, base } => {
                body.extend_from_slice(&ring.to_le_bytes());
                body.extend_from_slice(&u32::from(*base).to_le_bytes());
            }
            Self::Config { offset, flags, bytes } => {
                for word in [*offset as u32, bytes.len() as u32, *flags] {
                    body.extend_from_slice(&word.to_le_bytes());
                }
                body.extend_from_slice(bytes);
            }
            Self::Inflight(plan, _) => {
                body.extend_from_slice(&plan.bytes.to_le_bytes());
                body.extend_from_slice(&plan.offset.to_le_bytes());
                body.extend_from_slice(&plan.queues.to_le_bytes());
                body.extend_from_slice(&plan.places.to_le_bytes());
                body.resize(plan.body, 0);
            }
        }
        let mut message = head(request, VERSION | REPLY, body.len());
        message.append(&mut body);
        Some(message)
    }

    /// The descriptor that goes with the answer.
    #[must_use]
    pub fn fd(&self) -> Option<&OwnedFd> {
        match self {
            Self::Inflight(_, fd) => Some(fd),
            _ => None,
        }
    }
}

/// An acknowledgement that says no.
#[must_use]
pub fn refusal(request: u32) -> Vec<u8> {
    let mut message = head(request, VERSION | REPLY, 8);
    message.extend_from_slice(&1_u64.to_le_bytes());
    message
}

/// To the front end: the configuration space has changed.
#[must_use]
pub fn config_changed() -> Vec<u8> {
    head(2, VERSION, 0)
}

fn head(request: u32, flags: u32, size: usize) -> Vec<u8> {
    [request, flags, size as u32].into_iter().flat_map(u32::to_le_bytes).collect()
}
