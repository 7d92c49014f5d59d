//! What a guest's virtio-blk driver asks, in terms of a block device.
//!
//! A request is a head of 16 bytes that the guest has written, its data, and a byte for the status at the very end of
//! what the device may write. How these lie in the pieces of a chain is the driver's business. Source: VIRTIO 1.2,
//! section 5.2.6.

use fido_core::foreign::{Area, Landing};
use fido_core::payload::Payload;

use super::chain::Chain;
use super::wire::Reader;
use crate::queue::BlockError;

/// The unit of all positions.
pub const SECTOR: u64 = 512;
/// How long a device's identification is.
pub const ID_BYTES: usize = 20;

/// It was done.
pub const OK: u8 = 0;
/// It failed.
pub const FAILED: u8 = 1;
/// It is not supported.
pub const UNSUPPORTED: u8 = 2;

const HEAD: usize = 16;
const RANGE: usize = 16;
const UNMAP: u32 = 1;

/// What a request is about.
#[derive(Debug)]
pub enum Work {
    /// Read into the guest's memory.
    Read {
        /// First byte on the device.
        offset: u64,
        /// Where to.
        landing: Landing,
    },
    /// Write from the guest's memory.
    Write {
        /// First byte on the device.
        offset: u64,
        /// The data.
        data: Payload,
    },
    /// Make writes durable.
    Flush,
    /// The content is no longer needed.
    Discard {
        /// First byte.
        offset: u64,
        /// How many.
        len: u64,
    },
    /// The content shall be zeros.
    Zeroes {
        /// First byte.
        offset: u64,
        /// How many.
        len: u64,
        /// The space may be given back.
        unmap: bool,
    },
    /// The device's identification.
    Identify(Landing),
    /// Nothing that could be done: the status says why.
    Refused(u8),
}

/// A request.
#[derive(Debug)]
pub struct Request {
    /// What is asked.
    pub work: Work,
    /// Where the status goes.
    pub status: Area,
}

impl Request {
    /// Parses what is in a chain. `None` if it has no place for a status: then nobody can be told anything.
    pub fn parse(chain: &Chain) -> Option<Self> {
        let (last, before) = chain.writable.split_last()?;
        let room = last.len() as u32 - 1;
        let status = last.slice(room, 1)?;
        let mut landing = Landing::default();
        before.iter().cloned().for_each(|area| landing.push(area));
        landing.push(last.slice(0, room)?);
        Some(Self { work: work(chain, landing), status })
    }
}

fn work(chain: &Chain, landing: Landing) -> Work {
    let mut head = [0; HEAD];
    if read(&chain.readable, 0, &mut head) < HEAD {
        return Work::Refused(FAILED);
    }
    let mut reader = Reader::new(&head);
    let (kind, _priority, sector) = (reader.u32(), reader.u32(), reader.u64());
    let Some(offset) = sector.checked_mul(SECTOR) else { return Work::Refused(FAILED) };
    match kind {
        0 => Work::Read { offset, landing },
        1 => Work::Write { offset, data: payload(&chain.readable) },
        4 => Work::Flush,
        8 => Work::Identify(landing),
        11 | 13 => range(chain, kind == 13),
        _ => Work::Refused(UNSUPPORTED),
    }
}

/// What follows the head, by address.
fn payload(readable: &[Area]) -> Payload {
    let mut data = Payload::new();
    readable.iter().for_each(|area| data.push(area.segment(), None));
    drop(data.split_to(HEAD as u64));
    data
}

/// The one range of a discard or write-zeroes: more are not offered.
fn range(chain: &Chain, zeroes: bool) -> Work {
    let mut bytes = [0; RANGE + 1];
    if read(&chain.readable, HEAD, &mut bytes) != RANGE {
        return Work::Refused(UNSUPPORTED);
    }
    let mut reader = Reader::new(&bytes);
    let (sector, sectors, flags) = (reader.u64(), reader.u32(), reader.u32());
    let Some(offset) = sector.checked_mul(SECTOR) else { return Work::Refused(FAILED) };
    let len = u64::from(sectors) * SECTOR;
    match (zeroes, flags) {
        (true, 0 | UNMAP) => Work::Zeroes { offset, len, unmap: flags == UNMAP },
        (false, 0) => Work::Discard { offset, len },
        _ => Work::Refused(UNSUPPORTED),
    }
}

fn read(areas: &[Area], start: usize, out: &mut [u8]) -> usize {
    let (mut skip, mut have) = (start, 0);
    for area in areas {
        if skip < area.len() {
            have += area.read(skip, out.get_mut(have..).unwrap_or_default());
            skip = 0;
        } else {
            skip -= area.len();
        }
    }
    have
}

/// The status that tells a guest how a request ended.
pub fn status(result: &Result<Payload, BlockError>) -> u8 {
    match result {
        Ok(_) => OK,
        Err(BlockError::Unsupported) => UNSUPPORTED,
        Err(_) => FAILED,
    }
}
