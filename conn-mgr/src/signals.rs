//! The signals that end a program, as messages.

use std::io;
use std::sync::mpsc::Sender;

const STOPPING: [libc::c_int; 3] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP];

/// Blocks `SIGINT`, `SIGTERM` and `SIGHUP` in the calling thread and in those that it starts, and sends a message for
/// each from a thread of its own. Call it before any other thread is started.
///
/// # Errors
/// The system's, if the mask cannot be set or there is no thread left.
pub fn watch(sender: Sender<()>) -> io::Result<()> {
    // SAFETY: a set of bits, for which zero is valid.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` is valid and the numbers are signals.
    unsafe {
        libc::sigemptyset(&mut set);
        for signal in STOPPING {
            libc::sigaddset(&mut set, signal);
        }
    }
    // SAFETY: `set` is initialised; the old mask is not asked for.
    match unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) } {
        0 => {}
        error => return Err(io::Error::from_raw_os_error(error)),
    }
    let wait = move || {
        loop {
            let mut signal = 0;
            // SAFETY: both point to live values.
            let error = unsafe { libc::sigwait(&set, &mut signal) };
            if error == 0 && sender.send(()).is_err() {
                return;
            }
        }
    };
    std::thread::Builder::new().name("signals".into()).spawn(wait).map(drop)
}
