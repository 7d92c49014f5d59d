//! File handles: which volume, which inode, and a checksum that tells a foreign handle from an old one.
//!
//! A handle is no secret and grants nothing. It is the same after a restart, so clients go on over one.

use crate::volume::ops::Ino;

/// The length of a handle, in bytes.
pub const HANDLE_BYTES: usize = 24;

/// What a handle begins with.
const MAGIC: [u8; 4] = *b"FIDO";

/// What is wrong with a handle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HandleError {
    /// Not made here.
    #[error("not a file handle of this server")]
    Bad,
    /// Of another volume.
    #[error("a file handle of another volume")]
    Stale,
}

/// The handle of an inode of the volume `fsid`.
pub fn encode(fsid: u64, ino: Ino) -> [u8; HANDLE_BYTES] {
    let mut bytes = [0; HANDLE_BYTES];
    let numbers = fsid.to_be_bytes().into_iter().chain(ino.to_be_bytes());
    let fields = MAGIC.into_iter().chain(numbers).chain(checksum(fsid, ino).to_be_bytes());
    for (to, from) in bytes.iter_mut().zip(fields) {
        *to = from;
    }
    bytes
}

/// The inode that a handle of the volume `fsid` names.
///
/// # Errors
/// [`HandleError`] if it is none.
pub fn decode(fsid: u64, bytes: &[u8]) -> Result<Ino, HandleError> {
    let (magic, rest) = bytes.split_first_chunk::<4>().ok_or(HandleError::Bad)?;
    let (volume, rest) = rest.split_first_chunk::<8>().ok_or(HandleError::Bad)?;
    let (ino, rest) = rest.split_first_chunk::<8>().ok_or(HandleError::Bad)?;
    let (volume, ino) = (u64::from_be_bytes(*volume), u64::from_be_bytes(*ino));
    if *magic != MAGIC || rest != checksum(volume, ino).to_be_bytes() {
        return Err(HandleError::Bad);
    }
    if volume == fsid { Ok(ino) } else { Err(HandleError::Stale) }
}

/// FNV-1a over both numbers.
fn checksum(fsid: u64, ino: Ino) -> u32 {
    let bytes = fsid.to_be_bytes().into_iter().chain(ino.to_be_bytes());
    bytes.fold(0x811c_9dc5, |sum, byte| (sum ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lengths_other_than_that_of_a_handle_are_bad() {
        let mut handle = encode(1, 2).to_vec();
        assert_eq!(decode(1, &handle[..HANDLE_BYTES - 1]), Err(HandleError::Bad));
        handle.push(0);
        assert_eq!(decode(1, &handle), Err(HandleError::Bad));
        assert_eq!(decode(1, &[]), Err(HandleError::Bad));
    }

    proptest! {
        #[test]
        fn a_handle_names_its_inode_on_its_volume_only(fsid: u64, other: u64, ino: u64) {
            let handle = encode(fsid, ino);
            prop_assert_eq!(decode(fsid, &handle), Ok(ino));
            if other != fsid {
                prop_assert_eq!(decode(other, &handle), Err(HandleError::Stale));
            }
        }

        #[test]
        fn any_flipped_bit_is_noticed(fsid: u64, ino: u64, bit in 0..HANDLE_BYTES * 8) {
            let mut handle = encode(fsid, ino);
            handle[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(decode(fsid, &handle), Err(HandleError::Bad));
        }

        #[test]
        fn arbitrary_bytes_do_no_harm(bytes: Vec<u8>, fsid: u64) {
            let _ = decode(fsid, &bytes);
        }
    }
}
