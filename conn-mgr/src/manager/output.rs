//! What domains print: each line with the domain and generation before it, so that lines of several domains can be
//! told apart. One thread per incarnation, which ends when the last holder of the pipe is gone; a slow terminal holds
//! up the domain that prints, never the manager.

use std::io::{self, BufRead, BufReader, PipeReader, Read, Write};
use std::sync::Arc;
use std::thread::JoinHandle;

/// The longest line that is passed on in one piece, in bytes.
const MAX_LINE: u64 = 8192;

/// Takes a line of a domain's output: the domain's name, its generation, the line without its end.
pub type LineSink = Arc<dyn Fn(&str, u16, &str) + Send + Sync>;

/// Where the output of domains goes.
#[derive(Clone, Default)]
pub enum Output {
    /// To this process's standard error, as `[domain generation] line`.
    #[default]
    Prefixed,
    /// To this process's standard output and standard error, unchanged.
    Inherited,
    /// To a function.
    Lines(LineSink),
}

/// Starts the thread that passes on lines from `pipe`.
pub(super) fn pump(pipe: PipeReader, domain: &str, generation: u16, output: Output) -> io::Result<JoinHandle<()>> {
    let domain = domain.to_owned();
    std::thread::Builder::new().name(format!("out-{domain}")).spawn(move || {
        let mut reader = BufReader::new(pipe);
        let mut line = Vec::new();
        loop {
            line.clear();
            match reader.by_ref().take(MAX_LINE).read_until(b'\n', &mut line) {
                Ok(0) => break,
                Ok(_) => print(&output, &domain, generation, &line),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
    })
}

fn print(output: &Output, domain: &str, generation: u16, line: &[u8]) {
    let line = String::from_utf8_lossy(line.trim_ascii_end());
    match output {
        Output::Lines(sink) => sink(domain, generation, &line),
        // Nobody is left to be told that standard error is closed.
        _ => _ = io::stderr().lock().write_all(format!("[{domain} {generation}] {line}\n").as_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[test]
    fn lines_are_passed_on_in_pieces_of_limited_length() {
        let (reader, mut writer) = io::pipe().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let sink = seen.clone();
        let sink: LineSink = Arc::new(move |domain, generation, line| {
            sink.lock().unwrap().push((domain.to_owned(), generation, line.len()));
        });
        let thread = pump(reader, "net", 3, Output::Lines(sink)).unwrap();
        writer.write_all(b"one\n\xff\n").unwrap();
        writer.write_all(&vec![b'x'; MAX_LINE as usize + 1]).unwrap();
        drop(writer);
        thread.join().unwrap();
        let lengths: Vec<_> = seen.lock().unwrap().iter().map(|(_, _, len)| *len).collect();
        assert_eq!(lengths, [3, 3, MAX_LINE as usize, 1]);
        assert_eq!(seen.lock().unwrap()[0], ("net".to_owned(), 3, 3));
    }
}
