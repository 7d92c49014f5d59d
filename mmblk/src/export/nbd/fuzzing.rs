//! The body of the fuzz target over what a client says. `fuzz/` feeds it from a fuzzer, the test below where there is none.

#![expect(clippy::expect_used, reason = "a fuzz target says by a panic that a promise is broken")]

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;

use fido_core::testing::private_memory;

use super::{Export, Limits, Server, Worker};
use crate::backend::memory::{MemoryDevice, MemoryQueue};
use crate::nbd::haggling::{encode_go, encode_meta, encode_option, option};
use crate::nbd::transmission::{CommandFlags, Request, command};
use crate::queue::Geometry;

const GEOMETRY: Geometry = Geometry { bytes: 64 << 10, block: 512, depth: 4 };
/// Turns without anything to do after which nothing more comes.
const QUIET: usize = 3;
/// The most turns for one piece of what a client says.
const TURNS: usize = 10_000;

/// A client that says anything: in the negotiation, or, if the first byte is odd, after one that has gone well. The
/// server answers or leaves it, keeps nothing of it, and serves another client all the while.
pub fn server(data: &[u8]) {
    let memory = private_memory(16 << 20);
    let device = MemoryDevice::new(GEOMETRY).expect("a small device");
    let export = Export { name: "disk".into(), description: String::new(), read_only: false };
    let mut server = Server::bind(&[], vec![export], Limits::default()).expect("sane limits");
    let queue = device.queue(memory.clone()).expect("a queue");
    let mut worker = server.worker(memory.clone(), vec![queue]).expect("a worker");
    let mut good = Client::admit(&server, &hello(true), &mut worker);
    let (first, rest) = data.split_first().unwrap_or((&0, &[]));
    let mut bad = Client::admit(&server, &if first & 1 == 1 { hello(first & 2 == 2) } else { Vec::new() }, &mut worker);
    for piece in rest.chunks(1 + usize::from(first >> 2) * 16) {
        bad.say(piece, &mut worker);
    }
    let read = Request { flags: CommandFlags::empty(), command: command::READ, cookie: 7, offset: 512, len: 512 };
    let before = good.heard;
    good.say(&read.encode(), &mut worker);
    assert_eq!(good.heard - before, 28 + 512, "the other client is served");
    drop((bad, good));
    settle(&mut worker);
    assert_eq!(server.served(), 0, "both are gone");
    drop(worker);
    assert_eq!(memory.heap().used(), 0, "nothing is kept");
    assert_eq!(memory.stats().payload_bytes_copied.get(), 0);
}

/// What a client says to enter.
fn hello(structured: bool) -> Vec<u8> {
    let mut all = 3u32.to_be_bytes().to_vec();
    if structured {
        all.extend(encode_option(option::STRUCTURED_REPLY, &[]));
        all.extend(encode_option(option::SET_META_CONTEXT, &encode_meta("disk", &["base:allocation"])));
    }
    all.extend(encode_option(option::GO, &encode_go("disk", &[])));
    all
}

/// A client's end of a connection.
struct Client {
    socket: UnixStream,
    /// Bytes it has got.
    heard: usize,
}

impl Client {
    fn admit(server: &Server, hello: &[u8], worker: &mut Worker<MemoryQueue>) -> Self {
        let (ours, theirs) = UnixStream::pair().expect("a connection");
        ours.set_nonblocking(true).expect("no waiting");
        theirs.set_nonblocking(true).expect("no waiting");
        server.admit(theirs.into());
        let mut client = Self { socket: ours, heard: 0 };
        client.say(hello, worker);
        client
    }

    /// Says something, as far as it is heard, and takes all answers.
    fn say(&mut self, mut bytes: &[u8], worker: &mut Worker<MemoryQueue>) {
        loop {
            match self.socket.write(bytes) {
                Ok(count) => bytes = &bytes[count..],
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                // The server has hung up.
                Err(_) => bytes = &[],
            }
            settle(worker);
            let mut heard = 0;
            let mut space = [0; 4096];
            while let Ok(count) = self.socket.read(&mut space)
                && count > 0
            {
                heard += count;
            }
            self.heard += heard;
            // A server that takes nothing although it is heard would be stuck; one that leaves room for more is not.
            if bytes.is_empty() && heard == 0 {
                return;
            }
        }
    }
}

fn settle(worker: &mut Worker<MemoryQueue>) {
    let mut quiet = 0;
    for _ in 0..TURNS {
        quiet = if worker.poll() { 0 } else { quiet + 1 };
        if quiet == QUIET {
            return;
        }
    }
    panic!("it does not come to rest");
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Requests that are nearly right, one after the other.
    fn requests() -> impl Strategy<Value = Vec<u8>> {
        let request = (0u16..9, 0u16..32, 0u64..140, 0u32..20, any::<u64>()).prop_map(
            |(command, flags, block, blocks, cookie)| {
                let flags = CommandFlags::from_bits_retain(if flags < 24 { 0 } else { flags });
                let request = Request { flags, command, cookie, offset: block * 512, len: blocks * 512 };
                let payload = if command == command::WRITE { vec![7; request.len as usize] } else { Vec::new() };
                [request.encode().to_vec(), payload].concat()
            },
        );
        prop::collection::vec(request, 0..30).prop_map(|all| all.concat())
    }

    /// Options that are nearly right.
    fn options() -> impl Strategy<Value = Vec<u8>> {
        let data = prop_oneof![
            Just(Vec::new()),
            Just(encode_go("disk", &[3])),
            Just(encode_meta("disk", &["base:"])),
            prop::collection::vec(any::<u8>(), 0..40),
        ];
        let option = (0u32..13, data).prop_map(|(option, data)| encode_option(option, &data));
        prop::collection::vec(option, 0..10).prop_map(|all| [vec![0, 0, 0, 3], all.concat()].concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn any_client(data: Vec<u8>) {
            server(&data);
        }

        #[test]
        fn any_requests(first: u8, data in requests(), cut: prop::sample::Index) {
            server(&[&[first | 1][..], &data].concat());
            server(&[&[first | 1][..], &data[..cut.index(data.len() + 1)]].concat());
        }

        #[test]
        fn any_options(first: u8, data in options()) {
            server(&[&[first & !1][..], &data].concat());
        }
    }
}
