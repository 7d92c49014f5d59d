//! Data whose every byte can be told, and files compared byte by byte.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::Path;

const CHUNK_BYTES: usize = 1 << 16;

/// An endless stream of random-looking bytes; the same for the same seed.
#[derive(Debug, Clone)]
pub struct Noise(u64);

impl Noise {
    /// The stream with this seed.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// The next 64 bits (xorshift64*).
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// The next bytes.
    pub fn fill(&mut self, out: &mut [u8]) {
        for chunk in out.chunks_mut(8) {
            let word = self.next().to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
    }

    /// The next `len` bytes.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        self.fill(&mut out);
        out
    }
}

/// Writes a file of `len` bytes of noise.
pub fn write_noise(path: &Path, seed: u64, len: u64) {
    let (mut noise, mut left) = (Noise::new(seed), len);
    let mut out = BufWriter::new(File::create(path).expect("a local file"));
    let mut chunk = vec![0; CHUNK_BYTES];
    while left > 0 {
        let now = left.min(CHUNK_BYTES as u64) as usize;
        noise.fill(&mut chunk[..now]);
        out.write_all(&chunk[..now]).expect("room in the temporary directory");
        left -= now as u64;
    }
    out.flush().expect("room in the temporary directory");
}

/// Checks that two files have the same bytes.
///
/// # Panics
/// With the place of the first difference.
pub fn assert_same(expected: &Path, found: &Path) {
    if let Some(difference) = difference(expected, found) {
        panic!("{} differs from {}: {difference}", found.display(), expected.display());
    }
}

/// What is different between two files, if anything is.
pub fn difference(expected: &Path, found: &Path) -> Option<String> {
    let open = |path: &Path| BufReader::with_capacity(CHUNK_BYTES, File::open(path).expect("a local file"));
    let len = |path: &Path| std::fs::metadata(path).expect("a local file").len();
    let (expected_len, found_len) = (len(expected), len(found));
    if expected_len != found_len {
        return Some(format!("{found_len} bytes instead of {expected_len}"));
    }
    let (mut a, mut b) = (open(expected), open(found));
    let (mut left, mut right) = (vec![0; CHUNK_BYTES], vec![0; CHUNK_BYTES]);
    let mut at = 0;
    while at < expected_len {
        let now = (expected_len - at).min(CHUNK_BYTES as u64) as usize;
        a.read_exact(&mut left[..now]).expect("as long as it was");
        b.read_exact(&mut right[..now]).expect("as long as it was");
        if left[..now] != right[..now] {
            let inside = left.iter().zip(&right).position(|(l, r)| l != r).unwrap_or(0);
            return Some(format!("byte {} is the first that is not the same", at + inside as u64));
        }
        at += now as u64;
    }
    None
}
