//! What the testbed's scenarios run in guests. The first argument names the part that it plays.

use std::io;
use std::process::ExitCode;

use fido_core::conformance;
use fido_core::domain::Domain;
use fido_core::platform::xen::LAYER;
use fido_core::platform::xen::store::Store;
use xen_guest::{chain, handshake, memory, pace};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match *words {
        ["hello"] => hello(),
        ["memory"] => memory::obey().map_err(io::Error::other),
        [memory::TRESPASS, slot, domain, bytes, root] => {
            memory::trespass(slot, domain, bytes, root).map_err(io::Error::other)
        }
        ["conformance"] => conformance(),
        ["chain"] => chain::run(),
        ["pace"] => pace::run(),
        ["handshake"] => handshake::run(),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, format!("no part is called {words:?}"))),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Asks xenstore who it is, and leaves the answer there.
fn hello() -> io::Result<()> {
    let store = Store::connect().map_err(io::Error::other)?;
    let id = store.now().read("domid").map_err(io::Error::other)?;
    println!("hello from domain {}", String::from_utf8_lossy(&id));
    store.now().write("data/layer", LAYER.as_bytes()).map_err(io::Error::other)?;
    store.now().write("data/hello", &id).map_err(io::Error::other)
}

/// Plays the role of the conformance suite that its name in the appliance is.
fn conformance() -> io::Result<()> {
    let domain = Domain::join().map_err(io::Error::other)?;
    conformance::run(&domain, domain.name()).map_err(io::Error::other)
}
