//! Captures: frames written to a file in the format that tcpdump and Wireshark read.
//!
//! The format is pcap with times in nanoseconds, in this machine's byte order. A frame goes to the file from the windows it
//! lies in, with one system call. Large frames are in it whole and checksums that are still to be computed are not in it:
//! that is how they cross the appliance.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use fido_core::memory::Memory;
use fido_core::packets;
use fido_core::socket::Piece;

use crate::frame::{Frame, MAX_FRAME_BYTES};

/// Times are in nanoseconds.
const MAGIC: u32 = 0xA1B2_3C4D;
const VERSION: [u16; 2] = [2, 4];
const ETHERNET: u32 = 1;
/// Bytes of the file's header, and of each record's.
const FILE_HEADER: usize = 24;
const RECORD_HEADER: usize = 16;

/// A file that frames are written to.
#[derive(Debug)]
pub struct Capture {
    file: File,
    /// Bytes of a frame that are kept.
    snap: u32,
    /// The most bytes of the file.
    limit: u64,
    bytes: u64,
    frames: u64,
    beyond: u64,
}

impl Capture {
    /// A new file in place of what is at `path`, of at most `limit` bytes, with the first `snap` bytes of each frame.
    ///
    /// # Errors
    /// The kernel's.
    pub fn create(path: &Path, snap: u32, limit: u64) -> io::Result<Self> {
        let mut file = File::create(path)?;
        let mut header = Vec::with_capacity(FILE_HEADER);
        header.extend(MAGIC.to_ne_bytes());
        header.extend(VERSION.iter().flat_map(|part| part.to_ne_bytes()));
        header.extend([0; 8]);
        header.extend(snap.min(MAX_FRAME_BYTES as u32).to_ne_bytes());
        header.extend(ETHERNET.to_ne_bytes());
        io::Write::write_all(&mut file, &header)?;
        Ok(Self { file, snap, limit, bytes: FILE_HEADER as u64, frames: 0, beyond: 0 })
    }

    /// The place for the capture of a domain's incarnation: the first has the name that was asked for, each later one its
    /// generation behind it, so that a successor does not take away what its predecessor has seen.
    pub fn place(path: &Path, generation: u16) -> PathBuf {
        let mut name = path.as_os_str().to_owned();
        if generation > 1 {
            name.push(format!(".{generation}"));
        }
        name.into()
    }

    /// Writes a frame. One that would exceed the limit is counted; one that lies nowhere any more is passed over.
    ///
    /// # Errors
    /// The kernel's. What has been written of the frame is then the torn end of the file.
    pub fn record(&mut self, frame: &Frame, memory: &Memory) -> io::Result<()> {
        let len = frame.payload.len();
        let kept = len.min(u64::from(self.snap));
        if self.bytes + RECORD_HEADER as u64 + kept > self.limit {
            self.beyond += 1;
            return Ok(());
        }
        let Some(payload) = frame.payload.slice(0, kept) else { return Ok(()) };
        let Ok(spans) = memory.translate_all(&payload) else { return Ok(()) };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut header = [0; RECORD_HEADER];
        let fields = [now.as_secs() as u32, now.subsec_nanos(), kept as u32, len as u32];
        for (place, field) in header.chunks_exact_mut(4).zip(fields) {
            place.copy_from_slice(&field.to_ne_bytes());
        }
        let pieces = spans.iter().map(|span| Piece::Span { span, skip: 0 });
        let written = packets::write(&self.file, std::iter::once(Piece::Bytes(&header)).chain(pieces), memory.stats())?;
        if written as u64 != RECORD_HEADER as u64 + kept {
            return Err(io::Error::new(io::ErrorKind::StorageFull, "the file system took only a part of a frame"));
        }
        self.bytes += written as u64;
        self.frames += 1;
        Ok(())
    }

    /// Frames in the file, its bytes, and frames that were beyond its limit.
    pub fn counts(&self) -> (u64, u64, u64) {
        (self.frames, self.bytes, self.beyond)
    }
}

#[cfg(test)]
mod tests {
    use fido_core::testing::private_memory;

    use super::*;

    fn frame(memory: &Memory, parts: &[&[u8]]) -> Frame {
        let mut payload = fido_core::payload::Payload::new();
        for part in parts {
            let mut buf = memory.alloc(part.len()).unwrap();
            buf.as_mut_slice().copy_from_slice(part);
            payload.append(buf.into_payload());
        }
        payload.into()
    }

    #[test]
    fn records_have_a_length_a_time_and_the_bytes_up_to_a_limit() {
        let folder = tempfile::tempdir().unwrap();
        let (path, memory) = (folder.path().join("capture"), private_memory(1 << 20));
        let limit = FILE_HEADER + 2 * RECORD_HEADER + 14 + 20;
        let mut capture = Capture::create(&path, 20, limit as u64).unwrap();
        let (short, long) = ([1; 14], [2; 30]);
        capture.record(&frame(&memory, &[&short]), &memory).unwrap();
        capture.record(&frame(&memory, &[&short, &long]), &memory).unwrap();
        capture.record(&frame(&memory, &[&short]), &memory).unwrap();
        assert_eq!(capture.counts(), (2, limit as u64, 1));
        let bytes = std::fs::read(&path).unwrap();
        let word = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
        assert_eq!((bytes.len(), word(0), word(16), word(20)), (limit, MAGIC, 20, 1));
        assert_eq!((word(32), word(36), &bytes[40..54]), (14, 14, &short[..]));
        assert_eq!((word(62), word(66), &bytes[70..84], &bytes[84..]), (20, 44, &short[..], &long[..6]));
        assert_eq!(memory.stats().payload_bytes_copied.get(), 0);
    }

    #[test]
    fn a_successor_leaves_what_its_predecessor_has_seen() {
        let place = |generation| Capture::place(Path::new("/var/lan.pcap"), generation);
        assert_eq!((place(1), place(3)), ("/var/lan.pcap".into(), "/var/lan.pcap.3".into()));
    }
}
