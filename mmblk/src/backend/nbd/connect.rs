//! Connecting to a server and agreeing with it. Blocks, but never beyond a deadline.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};

use super::{Connected, NbdError};
use crate::nbd::haggling::{
    self, BlockSizes, FIXED_NEWSTYLE, Info, MAGIC, NO_ZEROES, OLD_STYLE_MAGIC, OPTION_MAGIC, ReplyHead, info, option,
    reply,
};
use crate::nbd::place::{Place, Uri};
use crate::nbd::{BASE_ALLOCATION, ExportFlags, Fields, MAX_PAYLOAD};

/// The most data of one reply, and the most replies to one option.
const MAX_REPLY_DATA: u32 = 64 << 10;
const MAX_REPLIES: usize = 64;

/// What can go wrong, before it is known where.
#[derive(Debug)]
enum Wrong {
    Io(io::Error),
    Protocol(String),
    Refused(u32, String),
}

impl From<io::Error> for Wrong {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Connects and negotiates, within `timeout`.
pub(super) fn connect(uri: &Uri, timeout: Duration) -> Result<Connected, NbdError> {
    let deadline = Instant::now() + timeout;
    let connected =
        open(&uri.place, timeout).map_err(Wrong::Io).and_then(|stream| agree(Talk { stream, deadline }, &uri.export));
    connected.map_err(|wrong| match wrong {
        Wrong::Io(error) => NbdError::Io { uri: uri.clone(), error },
        Wrong::Protocol(what) => NbdError::Protocol { uri: uri.clone(), what },
        Wrong::Refused(code, message) => NbdError::Refused { uri: uri.clone(), code, message },
    })
}

/// A socket of either kind.
#[derive(Debug)]
enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

fn open(place: &Place, timeout: Duration) -> io::Result<Stream> {
    match place {
        Place::Unix(path) => connect_unix(path, timeout).map(Stream::Unix),
        Place::Tcp(host, port) => {
            let mut last = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
            for address in (host.as_str(), *port).to_socket_addrs()? {
                match TcpStream::connect_timeout(&address, timeout) {
                    Ok(stream) => return Ok(Stream::Tcp(stream)),
                    Err(error) => last = error,
                }
            }
            Err(last)
        }
    }
}

/// Waits no longer than `timeout` for a server whose queue of clients is full.
fn connect_unix(path: &Path, timeout: Duration) -> io::Result<UnixStream> {
    let (family, flags) = (AddressFamily::UNIX, SocketFlags::CLOEXEC);
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(timeout))?;
    match rustix::net::connect(&socket, &SocketAddrUnix::new(path)?) {
        Ok(()) => Ok(socket.into()),
        Err(Errno::AGAIN) => Err(io::ErrorKind::TimedOut.into()),
        Err(errno) => Err(errno.into()),
    }
}

/// A conversation that ends at a deadline, however slowly the other side speaks.
struct Talk {
    stream: Stream,
    deadline: Instant,
}

impl Talk {
    fn left(&self) -> io::Result<Option<Duration>> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(Some(left)) }
    }

    fn say(&mut self, bytes: &[u8]) -> io::Result<()> {
        let left = self.left()?;
        match &mut self.stream {
            Stream::Tcp(stream) => stream.set_write_timeout(left).and_then(|()| stream.write_all(bytes)),
            Stream::Unix(stream) => stream.set_write_timeout(left).and_then(|()| stream.write_all(bytes)),
        }
    }

    fn read(&mut self, out: &mut [u8]) -> io::Result<()> {
        let mut done = 0;
        while let Some(rest) = out.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let left = self.left()?;
            let count = match &mut self.stream {
                Stream::Tcp(stream) => stream.set_read_timeout(left).and_then(|()| stream.read(rest)),
                Stream::Unix(stream) => stream.set_read_timeout(left).and_then(|()| stream.read(rest)),
            };
            match count {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(io::ErrorKind::TimedOut.into()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn take<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.read(&mut bytes).map(|()| bytes)
    }

    /// Sends an option and gives each reply but the last to `each`. False if the server does not know the option.
    fn ask(
        &mut self,
        option: u32,
        data: &[u8],
        mut each: impl FnMut(u32, &[u8]) -> Result<(), Wrong>,
    ) -> Result<bool, Wrong> {
        self.say(&haggling::encode_option(option, data))?;
        for _ in 0..MAX_REPLIES {
            let head = ReplyHead::decode(self.take()?).filter(|head| head.option == option);
            let Some(head) = head else { return Err(Wrong::Protocol("no reply to what was asked".into())) };
            if head.len > MAX_REPLY_DATA {
                return Err(Wrong::Protocol(format!("a reply of {} bytes", head.len)));
            }
            let mut data = vec![0; head.len as usize];
            self.read(&mut data)?;
            match head.kind {
                reply::ACK => return Ok(true),
                reply::ERR_UNSUP => return Ok(false),
                kind if kind & reply::ERROR != 0 => {
                    return Err(Wrong::Refused(kind, String::from_utf8_lossy(&data).into_owned()));
                }
                kind => each(kind, &data)?,
            }
        }
        Err(Wrong::Protocol(format!("more than {MAX_REPLIES} replies to one option")))
    }
}

fn agree(mut talk: Talk, export: &str) -> Result<Connected, Wrong> {
    let no_zeroes = greet(&mut talk)?;
    let structured = talk.ask(option::STRUCTURED_REPLY, &[], |_, _| Ok(())).or_else(declined)?;
    let mut allocation = None;
    if structured {
        let meta = haggling::encode_meta(export, &[BASE_ALLOCATION]);
        let context = |kind, data: &[u8]| {
            let mut fields = Fields(data);
            if kind == reply::META_CONTEXT
                && let Some(id) = fields.u32()
                && fields.0 == BASE_ALLOCATION.as_bytes()
            {
                allocation = Some(id);
            }
            Ok(())
        };
        // A server that refuses this will say more to the next option.
        talk.ask(option::SET_META_CONTEXT, &meta, context).or_else(declined)?;
    }
    let (mut found, mut sizes) = (None, BlockSizes { min: 1, preferred: 4096, max: MAX_PAYLOAD });
    let go = haggling::encode_go(export, &[info::BLOCK_SIZE]);
    let known = talk.ask(option::GO, &go, |kind, data| {
        match Info::decode(data).filter(|_| kind == reply::INFO) {
            Some(Info::Export(bytes, flags)) => found = Some((bytes, flags)),
            Some(Info::BlockSizes(told)) => sizes = told,
            Some(Info::Other(_)) => {}
            None => return Err(Wrong::Protocol("an information that is none".into())),
        }
        Ok(())
    })?;
    if !known {
        found = Some(enter_the_old_way(&mut talk, export, no_zeroes)?);
    }
    let Some((bytes, flags)) = found else { return Err(Wrong::Protocol("it does not tell the size".into())) };
    if !sizes.min.is_power_of_two() || !sizes.preferred.is_power_of_two() || sizes.min > sizes.preferred {
        return Err(Wrong::Protocol(format!("absurd block sizes: {sizes:?}")));
    }
    let socket = into_socket(talk.stream)?;
    Ok(Connected { socket, bytes, flags, sizes, structured, allocation })
}

/// A refusal of something that is only nice to have.
fn declined(wrong: Wrong) -> Result<bool, Wrong> {
    if matches!(wrong, Wrong::Refused(..)) { Ok(false) } else { Err(wrong) }
}

/// The two greetings. Returns whether the server leaves out the zeros of the old way to enter.
fn greet(talk: &mut Talk) -> Result<bool, Wrong> {
    if u64::from_be_bytes(talk.take()?) != MAGIC {
        return Err(Wrong::Protocol("no NBD server".into()));
    }
    match u64::from_be_bytes(talk.take()?) {
        OPTION_MAGIC => {}
        OLD_STYLE_MAGIC => return Err(Wrong::Protocol("a server of the old style, without options".into())),
        other => return Err(Wrong::Protocol(format!("a greeting with {other:#x}"))),
    }
    let flags = u16::from_be_bytes(talk.take()?);
    if flags & FIXED_NEWSTYLE == 0 {
        return Err(Wrong::Protocol("a server that does not answer options".into()));
    }
    talk.say(&u32::from(FIXED_NEWSTYLE | flags & NO_ZEROES).to_be_bytes())?;
    Ok(flags & NO_ZEROES != 0)
}

/// `EXPORT_NAME`, for servers that do not know `GO`.
fn enter_the_old_way(talk: &mut Talk, export: &str, no_zeroes: bool) -> Result<(u64, ExportFlags), Wrong> {
    talk.say(&haggling::encode_option(option::EXPORT_NAME, export.as_bytes()))?;
    let bytes = u64::from_be_bytes(talk.take()?);
    let flags = ExportFlags::from_bits_retain(u16::from_be_bytes(talk.take()?));
    if !no_zeroes {
        talk.take::<124>()?;
    }
    Ok((bytes, flags))
}

fn into_socket(stream: Stream) -> io::Result<OwnedFd> {
    Ok(match stream {
        Stream::Tcp(stream) => {
            stream.set_nodelay(true)?;
            stream.set_nonblocking(true)?;
            stream.into()
        }
        Stream::Unix(stream) => {
            stream.set_nonblocking(true)?;
            stream.into()
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_accepts_nobody_is_waited_for_no_longer_than_that() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nbd");
        let listener = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
        rustix::net::bind(&listener, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        rustix::net::listen(&listener, 0).unwrap();
        let (tell, told) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let mut waiting = Vec::new();
            let error = loop {
                match connect_unix(&path, Duration::from_millis(20)) {
                    Ok(socket) => waiting.push(socket),
                    Err(error) => break error,
                }
            };
            let _ = tell.send((waiting.len(), error.kind()));
        });
        let (waiting, error) = told.recv_timeout(Duration::from_secs(20)).expect("it waits for ever");
        assert!(waiting < 10 && error == io::ErrorKind::TimedOut);
    }
}
