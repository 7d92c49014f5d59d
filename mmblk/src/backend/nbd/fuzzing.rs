//! The body of the fuzz target over what a server answers. `fuzz/` feeds it from a fuzzer, the test below where there is
//! none.

#![expect(clippy::expect_used, reason = "a fuzz target says by a panic that a promise is broken")]

use std::io::Write;
use std::os::unix::net::UnixStream;

use fido_core::memory::Memory;
use fido_core::testing::private_memory;

use super::replies::Replies;
use super::table::{Next, Table};
use crate::nbd::ExportFlags;
use crate::nbd::incoming::{Incoming, Received};
use crate::nbd::transmission::{Chunk, SIMPLE_BYTES, simple};
use crate::queue::BlockOp;

/// Requests under way.
const REQUESTS: u64 = 4;
const READ_BYTES: u32 = 4096;

/// A server that answers four requests with anything: each ends once at most, a read with as many bytes as it is long, and
/// nothing is kept. What the data says are replies that are nearly right, or bytes.
pub fn replies(data: &[u8]) {
    let memory = private_memory(4 << 20);
    let (first, mut rest) = data.split_first().unwrap_or((&0, &[]));
    let mut table = Table::new(8, ExportFlags::all());
    let mut cookies = Vec::new();
    for id in 0..REQUESTS {
        let op = match id {
            0 => BlockOp::Read { offset: 512, len: READ_BYTES },
            1 => BlockOp::Read { offset: 0, len: READ_BYTES },
            2 => BlockOp::Extents { offset: 512, len: 1 << 20 },
            _ => BlockOp::Flush,
        };
        let index = table.insert(id, op).expect("there is room");
        cookies.extend(table.ask(index).map(|(request, _)| request.cookie));
    }
    let structured = first & 1 == 1;
    let mut line = Line::new(Replies::new(structured, structured.then_some(1), 512), &memory);
    let mut ended = Vec::new();
    while !rest.is_empty() {
        let said = reply(&mut rest, &cookies);
        if !line.says(&said, &mut table, &mut ended) {
            break;
        }
    }
    ended.sort_unstable();
    let count = ended.len();
    ended.dedup();
    assert_eq!(ended.len(), count, "a request has ended twice");
    drop((table, line));
    assert_eq!(memory.heap().used(), 0, "nothing is kept");
}

/// The next thing that the server says.
fn reply(rest: &mut &[u8], cookies: &[u64]) -> Vec<u8> {
    let mut byte = || {
        let (first, tail) = rest.split_first().unwrap_or((&0, &[]));
        *rest = tail;
        *first
    };
    let (what, which) = (byte(), byte());
    let cookie = cookies.get(usize::from(which & 3)).copied().unwrap_or(0) ^ u64::from(which >> 7);
    match what % 4 {
        0 => simple(u32::from(byte() % 3), cookie).to_vec(),
        1 | 2 => {
            let kind = u16::from(byte());
            let kind = if kind > 8 { 0x8000 | (kind & 3) } else { kind };
            let (len, offset) = (u32::from(byte()), 512 * u64::from(byte() % 10));
            let head = Chunk { flags: u16::from(what >> 7), kind, cookie, len: 8 + len * 8 };
            let mut all = [&head.encode()[..], &offset.to_be_bytes()].concat();
            all.extend((0..len * 8).map(|_| byte()));
            all
        }
        _ => (0..which).map(|_| byte()).collect(),
    }
}

/// A connection, both ends of it.
struct Line<'a> {
    memory: &'a Memory,
    ours: UnixStream,
    theirs: UnixStream,
    incoming: Incoming,
    replies: Replies,
}

impl<'a> Line<'a> {
    fn new(replies: Replies, memory: &'a Memory) -> Self {
        let (ours, theirs) = UnixStream::pair().expect("a connection");
        Self { memory, ours, theirs, incoming: Incoming::new(1 << 20, SIMPLE_BYTES), replies }
    }

    /// Whether what the server says leaves the connection good.
    fn says(&mut self, bytes: &[u8], table: &mut Table, ended: &mut Vec<u64>) -> bool {
        self.theirs.write_all(bytes).expect("it fits into the socket");
        loop {
            loop {
                match self.replies.next(&mut self.incoming, table, self.memory) {
                    Err(_) => return false,
                    Ok(None) => break,
                    Ok(Some(cookie)) => {
                        if let Some(Next::End(id, result, _)) = table.answered(cookie, self.memory) {
                            if let (0 | 1, Ok(data)) = (id, &result) {
                                assert_eq!(data.len(), u64::from(READ_BYTES));
                                self.memory.translate_all(data).expect("there is memory behind it");
                            }
                            ended.push(id);
                        }
                    }
                }
            }
            if !matches!(self.incoming.receive(&self.ours, self.replies.expected(), self.memory), Received::Some) {
                return true;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_server(data in prop::collection::vec(any::<u8>(), 0..600)) {
            super::replies(&data);
        }
    }
}
