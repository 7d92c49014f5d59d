//! Reading XDR (RFC 4506) that a client wrote: a cursor over a bounded private copy.
//!
//! Replies are written with the codec of `nfs3_types`. Calls are not read with it: it allocates whatever length a
//! client states before it looks whether the bytes are there. This cursor borrows, checks first, and never panics.

/// The bytes are not what the procedure takes; the answer is `GARBAGE_ARGS`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed XDR at byte {at}")]
pub struct Malformed {
    /// Where reading stopped.
    pub at: usize,
}

/// A place in bytes that are being read.
#[derive(Debug, Clone)]
pub struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

/// `len` rounded up to the four bytes that everything in XDR is aligned to.
pub const fn padded(len: usize) -> usize {
    len.next_multiple_of(4)
}

impl<'a> Cursor<'a> {
    /// Starts reading at the first byte.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// How many bytes have been read.
    pub fn position(&self) -> usize {
        self.at
    }

    /// What has not been read.
    pub fn rest(&self) -> &'a [u8] {
        self.bytes.get(self.at..).unwrap_or_default()
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        let taken = self.rest().get(..len).ok_or(Malformed { at: self.at })?;
        self.at += len;
        Ok(taken)
    }

    /// A fixed number of bytes that needs no padding.
    ///
    /// # Errors
    /// [`Malformed`] if they are not all there.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let at = self.at;
        self.take(N)?.try_into().map_err(|_| Malformed { at })
    }

    /// An unsigned integer.
    ///
    /// # Errors
    /// [`Malformed`] if it is not all there.
    pub fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_be_bytes)
    }

    /// An unsigned hyper.
    ///
    /// # Errors
    /// [`Malformed`] if it is not all there.
    pub fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_be_bytes)
    }

    /// A boolean.
    ///
    /// # Errors
    /// [`Malformed`] if it is not all there, or neither 0 nor 1.
    pub fn bool(&mut self) -> Result<bool, Malformed> {
        let at = self.at;
        match self.u32()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Malformed { at }),
        }
    }

    /// Variable-length opaque data, or a string; its padding is skipped and may be missing at the very end.
    ///
    /// # Errors
    /// [`Malformed`] if it is not all there or longer than `max`.
    pub fn opaque(&mut self, max: usize) -> Result<&'a [u8], Malformed> {
        let at = self.at;
        let len = self.u32()? as usize;
        if len > max {
            return Err(Malformed { at });
        }
        let data = self.take(len)?;
        self.at = (self.at + padded(len) - len).min(self.bytes.len());
        Ok(data)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opaque_takes_its_padding_and_respects_the_limit() {
        let bytes = [0, 0, 0, 5, b'a', b'b', b'c', b'd', b'e', 0, 0, 0, 0, 0, 0, 7];
        let mut cursor = Cursor::new(&bytes);
        assert_eq!(cursor.opaque(5), Ok(&b"abcde"[..]));
        assert_eq!(cursor.u32(), Ok(7));
        assert!(Cursor::new(&bytes).opaque(4).is_err());
    }

    #[test]
    fn a_stated_length_beyond_the_bytes_is_malformed() {
        assert_eq!(Cursor::new(&[0xff; 8]).opaque(usize::MAX), Err(Malformed { at: 4 }));
        assert_eq!(Cursor::new(&[0, 0]).u32(), Err(Malformed { at: 0 }));
        assert_eq!(Cursor::new(&[0, 0, 0, 2]).bool(), Err(Malformed { at: 0 }));
    }
}
