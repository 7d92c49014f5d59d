//! A reply on its way out: a head of its own and data that stays where it is.

use fido_core::memory::Memory;
use fido_core::payload::Payload;

use super::budget::Permit;
use super::rpc;
use super::xdr::padded;

/// A reply that has been written but lies in private memory yet.
#[derive(Debug)]
pub struct Reply {
    head: Vec<u8>,
    data: Payload,
    permit: Option<Permit>,
}

impl Reply {
    /// A reply of `head`, which began with [`rpc::begin_reply`], and the data that follows it.
    pub fn new(mut head: Vec<u8>, data: Payload, permit: Option<Permit>) -> Self {
        rpc::finish_reply(&mut head, data.len() + padding(&data));
        Self { head, data, permit }
    }

    /// The reply without its data.
    pub fn head(&self) -> &[u8] {
        &self.head
    }

    /// The reply as it can be sent: the head copied to the own arena, then the data by address, padded from `zeros`.
    ///
    /// # Errors
    /// The reply comes back if there is no room in the arena now.
    pub fn seal(self, memory: &Memory, zeros: &Payload) -> Result<Payload, Self> {
        let mut buf = match memory.alloc(self.head.len()) {
            Ok(buf) => buf,
            Err(error) => {
                tracing::debug!(%error, "a reply waits");
                return Err(self);
            }
        };
        buf.as_mut_slice().copy_from_slice(&self.head);
        let mut payload = buf.into_payload();
        let padding = zeros.slice(0, padding(&self.data)).unwrap_or_default();
        payload.append(self.data);
        payload.append(padding);
        Ok(match self.permit {
            Some(permit) => permit.ride(payload),
            None => payload,
        })
    }
}

/// The bytes that fill `data` up to a multiple of four.
fn padding(data: &Payload) -> u64 {
    let odd = (data.len() % 4) as usize;
    (padded(odd) - odd) as u64
}
