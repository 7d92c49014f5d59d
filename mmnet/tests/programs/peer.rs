//! A client and a server over the kernel's TCP: this program, started again in a namespace.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::Duration;

use crate::rig::{PATIENCE, Running, Space};

/// What it shall do.
const ROLE: &str = "FIDO_PEER";
pub const PORT: u16 = 7000;
const PIECE: usize = 64 << 10;
/// Threads that make connections.
const CLIENTS: usize = 4;
/// One of so many connections is reset, and one is left half open for a while.
const ODD: usize = 10;

/// Becomes a client or the server when it is started as such.
#[test]
fn peer() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let words: Vec<_> = role.split(' ').collect();
    match *words {
        ["serve"] => serve(),
        ["send", host, mib] => send(host, mib.parse().unwrap()),
        ["churn", host, count] => churn(host, count.parse().unwrap()),
        _ => panic!("{role:?}"),
    }
    std::process::exit(0);
}

fn words(role: &str) -> [String; 6] {
    let program = std::env::current_exe().unwrap().display().to_string();
    ["env", &*format!("{ROLE}={role}"), &program, "peer::peer", "--exact", "--nocapture"].map(str::to_owned)
}

/// A server in that namespace.
pub fn server(space: &Space) -> Running {
    let words = words("serve");
    let running = space.start(&words.each_ref().map(|word| &**word));
    space.wait_for_port(PORT);
    running
}

/// A client in that namespace, until it has done what it shall, within so many seconds.
pub fn client(space: &Space, role: &str, seconds: usize) -> String {
    let words = words(role);
    space.run_for(&words.each_ref().map(|word| &**word), seconds)
}

/// The bytes of a stream from `at` on: other ones everywhere.
fn pattern(at: u64) -> Vec<u8> {
    (at..at + PIECE as u64).map(|at| (at.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8).collect()
}

fn serve() {
    let listener = TcpListener::bind(("::", PORT)).unwrap();
    for stream in listener.incoming() {
        let stream = stream.unwrap();
        std::thread::spawn(move || answer(stream));
    }
}

/// The first byte says what for: to compare a stream with what it is to be and tell its length, or to echo one byte.
fn answer(mut stream: TcpStream) {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut kind = [0];
    // A client may have reset its connection.
    if stream.read_exact(&mut kind).is_err() {
        return;
    }
    if kind == *b"e" {
        let _ = stream.read_exact(&mut kind).and_then(|()| stream.write_all(&kind));
        return;
    }
    let (mut at, mut found) = (0, vec![0; PIECE]);
    loop {
        match stream.read_exact(&mut found) {
            Ok(()) => assert!(found == pattern(at), "other bytes from {at} on"),
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => break,
            Err(error) => panic!("{error}"),
        }
        at += PIECE as u64;
    }
    stream.write_all(&at.to_be_bytes()).unwrap();
}

fn send(host: &str, mib: u64) {
    let mut stream = TcpStream::connect((host, PORT)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"s").unwrap();
    let bytes = mib << 20;
    for at in (0..bytes).step_by(PIECE) {
        stream.write_all(&pattern(at)).unwrap();
    }
    stream.shutdown(Shutdown::Write).unwrap();
    let mut got = [0; 8];
    stream.read_exact(&mut got).unwrap();
    assert_eq!(u64::from_be_bytes(got), bytes);
}

fn churn(host: &str, count: usize) {
    std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            scope.spawn(move || {
                let mut half_open = None;
                for number in (client..count).step_by(CLIENTS) {
                    let mut stream = TcpStream::connect((host, PORT)).unwrap();
                    stream.set_read_timeout(Some(PATIENCE)).unwrap();
                    match number / CLIENTS % ODD {
                        // Closing it resets it: the server finds out in the middle of reading.
                        0 => rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap(),
                        // Nothing is sent; the server waits.
                        1 => half_open = Some(stream),
                        _ => {
                            let byte = number as u8;
                            stream.write_all(&[b'e', byte]).unwrap();
                            let mut back = [0];
                            stream.read_exact(&mut back).unwrap();
                            assert_eq!(back, [byte]);
                        }
                    }
                }
                drop(half_open);
            });
        }
    });
}
