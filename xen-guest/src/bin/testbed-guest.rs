//! What the testbed's scenarios run in guests. The first argument names the part that it plays.

use std::io;
use std::process::ExitCode;

use xen_guest::store::Store;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match *words {
        ["hello"] => hello(),
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
    let mut store = Store::open()?;
    let id = store.read("domid")?;
    println!("hello from domain {id}");
    store.write("data/hello", &id)
}
