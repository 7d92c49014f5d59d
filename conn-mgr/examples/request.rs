//! A whole appliance in one file: a client that lends a request, a server that reads it where it lies and replies.
//!
//! ```text
//! cargo run -p conn-mgr --example request
//! ```
//!
//! Started by hand, this program is the connection manager; the manager starts it twice more, as the two domains. Each is
//! a process with an arena of its own, and sees the other's through a read-only window.

use std::error::Error;
use std::time::Duration;

use conn_mgr::manager::{Manager, Options};
use conn_mgr::manifest::Manifest;
use fido_core::domain::{Domain, Notice};
use fido_core::lane::{Change, Lane};
use fido_core::message::Head;
use fido_core::payload::Payload;

/// The protocol of this link: a request carries text, the reply its number of words.
const COUNT_WORDS: u8 = 1;
const WORDS: u8 = 2;

const TEXT: &str = "nobody may ever write another's memory";

fn main() -> Result<(), Box<dyn Error>> {
    match std::env::args().nth(1).as_deref() {
        None => appliance(),
        Some("client") => serve(&Domain::join()?, client),
        Some("server") => serve(&Domain::join()?, server),
        Some(other) => Err(format!("no component {other:?}").into()),
    }
}

/// Starts the appliance, waits until the client has its reply, and shuts it down.
fn appliance() -> Result<(), Box<dyn Error>> {
    let program = std::env::current_exe()?;
    let text = format!(
        r#"
        appliance = "request"
        [domain.client]
        program = {program:?}
        args = ["client"]
        arena = "1MiB"
        [domain.server]
        program = {program:?}
        args = ["server"]
        arena = "1MiB"
        [[link]]
        name = "words"
        between = ["client", "server"]
        slots = 16
        "#
    );
    let manager = Manager::start(Manifest::parse(&text, "request.rs")?, Options::default())?;
    let patience = Duration::from_secs(30);
    let status = manager.wait_ready(patience)?;
    let notes = status.domain("client").map(|client| client.notes.clone()).unwrap_or_default();
    let copied = manager.stats("server").map_or(0, |stats| stats.payload_bytes_copied);
    println!("{TEXT:?} has {} words; bytes of payload copied: {copied}", notes["words"]);
    Ok(manager.shutdown(patience)?)
}

/// What a component does when the lane's peer comes or a message is there; whether it did anything.
type Step = fn(&Domain, &mut Lane) -> Result<bool, Box<dyn Error>>;

/// The loop of either domain: work while there is some, else wait on all sources at once.
fn serve(domain: &Domain, step: Step) -> Result<(), Box<dyn Error>> {
    let mut lane = domain.take_lane("words", 0)?;
    let (mut notices, mut waiter) = (domain.notices()?, domain.waiter()?);
    if domain.name() == "server" {
        domain.ready(&[])?;
    }
    loop {
        if notices.poll() == Some(Notice::Shutdown) {
            return Ok(());
        }
        let worked = step(domain, &mut lane)?;
        lane.flush();
        if worked {
            waiter.busy();
        } else {
            waiter.idle(&mut [&mut lane, &mut notices], None)?;
        }
    }
}

/// Sends the request when the server is there, and is ready once it has the reply.
fn client(domain: &Domain, lane: &mut Lane) -> Result<bool, Box<dyn Error>> {
    if let Some(Change::Up(_)) = lane.change() {
        let mut buf = lane.memory().alloc(TEXT.len())?;
        buf.as_mut_slice().copy_from_slice(TEXT.as_bytes());
        lane.send(Head { kind: COUNT_WORDS, flags: 0, args: [0; 4] }, buf.into_payload())?;
        return Ok(true);
    }
    match lane.recv() {
        Some(Ok((head, _))) if head.kind == WORDS => domain.ready(&[("words", head.args[0].to_string())])?,
        Some(other) => return Err(format!("{other:?} instead of a reply").into()),
        None => return Ok(false),
    }
    Ok(true)
}

/// Counts the words of each request, in the client's memory, and replies. The loan ends with the payload.
fn server(_domain: &Domain, lane: &mut Lane) -> Result<bool, Box<dyn Error>> {
    let _ = lane.change();
    let Some(message) = lane.recv() else { return Ok(false) };
    // A refusal is the client's mistake: a wild address, too many segments. It is answered, not served.
    let words = message.map_or(0, |(_, payload)| count_words(lane, &payload));
    lane.send(Head { kind: WORDS, flags: 0, args: [words, 0, 0, 0] }, Payload::new())?;
    Ok(true)
}

/// Reads a payload piece by piece, as a component parses headers.
fn count_words(lane: &Lane, payload: &Payload) -> u32 {
    let (mut words, mut before, mut at) = (0, b' ', 0);
    let mut piece = [0; 16];
    while let Ok(count @ 1..) = lane.memory().read_header(payload, at, &mut piece) {
        for &byte in &piece[..count] {
            words += u32::from(before == b' ' && byte != b' ');
            before = byte;
        }
        at += count as u64;
    }
    words
}
