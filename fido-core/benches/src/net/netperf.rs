//! netperf's tests, by its names and definitions, over anything that has two sides.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::PATIENCE;
use crate::Failure;

/// After so long a request in a datagram is taken for lost.
const LOST: Duration = Duration::from_millis(250);

/// A test of netperf's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Test {
    /// Bytes from the leading side to the other over one connection: those that the receiver got, over the time until
    /// the sender knew that they had all arrived.
    TcpStream,
    /// The same from the other side to the leading one.
    TcpMaerts,
    /// Datagrams from the leading side to the other: those that arrived, over the time for which the sender sent.
    UdpStream,
    /// Request and response in turns over one connection, one at a time.
    TcpRr,
    /// The same with a connection for each transaction: it is made, used and closed on both sides.
    TcpCrr,
    /// Request and response in datagrams.
    UdpRr,
}

/// All tests in the order of the tables.
pub const TESTS: [Test; 6] =
    [Test::TcpStream, Test::TcpMaerts, Test::UdpStream, Test::TcpRr, Test::TcpCrr, Test::UdpRr];

impl Test {
    /// netperf's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::TcpStream => "TCP_STREAM",
            Self::TcpMaerts => "TCP_MAERTS",
            Self::UdpStream => "UDP_STREAM",
            Self::TcpRr => "TCP_RR",
            Self::TcpCrr => "TCP_CRR",
            Self::UdpRr => "UDP_RR",
        }
    }

    /// Whether it sends datagrams.
    pub fn is_udp(self) -> bool {
        matches!(self, Self::UdpStream | Self::UdpRr)
    }

    /// Whether it counts bytes, not transactions.
    pub fn is_stream(self) -> bool {
        matches!(self, Self::TcpStream | Self::TcpMaerts | Self::UdpStream)
    }
}

/// One test for some time.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Turn {
    /// Which.
    pub test: Test,
    /// Bytes of each message; of requests and of responses alike.
    pub bytes: usize,
    /// For so long.
    pub time: Duration,
}

/// One side of a network: at most one connection, or a pair of datagram sockets, at a time.
pub trait Side {
    /// Connects, or is connected to if not `active`; with datagrams there is nothing to wait for.
    ///
    /// # Errors
    /// If there is no connection in time.
    fn open(&mut self, turn: &Turn, active: bool) -> Result<(), Failure>;

    /// Sends a message of so many bytes. Waits for room; may put off handing it on until something is received.
    ///
    /// # Errors
    /// If the other side is gone or takes nothing for long.
    fn send(&mut self, bytes: usize) -> Result<(), Failure>;

    /// Receives some bytes, at most `most`. 0 when the other side has finished, or sends no datagrams for a
    /// moment.
    ///
    /// # Errors
    /// If the other side is gone.
    fn receive(&mut self, most: usize) -> Result<usize, Failure>;

    /// Sends no more; the other side hears of it.
    ///
    /// # Errors
    /// If the other side is gone.
    fn finish(&mut self) -> Result<(), Failure>;

    /// Ends the connection, which both sides have finished.
    ///
    /// # Errors
    /// If the other side is gone.
    fn close(&mut self) -> Result<(), Failure>;

    /// Payload bytes that this side has copied so far, by the counters of its domain; `None` where the kernel copies.
    fn copied(&self) -> Option<u64>;
}

/// What a side has done in a turn.
#[derive(Debug)]
pub struct Done {
    /// Bytes that it received.
    pub received: u64,
    /// The time that counts.
    pub elapsed: Duration,
    /// How long each transaction took, in nanoseconds.
    pub times: Histogram<u64>,
}

/// The leading side's part.
///
/// # Errors
/// The side's.
pub fn lead(side: &mut dyn Side, turn: &Turn) -> Result<Done, Failure> {
    let mut times = Histogram::new(3)?;
    if turn.test == Test::TcpCrr {
        let began = Instant::now();
        while began.elapsed() < turn.time {
            let before = Instant::now();
            side.open(turn, true)?;
            transact(side, turn)?;
            end(side)?;
            times.record(before.elapsed().as_nanos() as u64)?;
        }
        let elapsed = began.elapsed();
        // A connection on which nothing is asked says that it is over.
        side.open(turn, true)?;
        end(side)?;
        return Ok(Done { received: times.len() * turn.bytes as u64, elapsed, times });
    }
    side.open(turn, true)?;
    let began = Instant::now();
    let mut received = 0;
    match turn.test {
        Test::TcpStream | Test::UdpStream => send_for(side, turn)?,
        Test::TcpMaerts => received = receive_all(side, turn, &mut || Ok(true))?,
        _ => {
            while began.elapsed() < turn.time {
                let before = Instant::now();
                transact(side, turn)?;
                times.record(before.elapsed().as_nanos() as u64)?;
            }
            received = times.len() * turn.bytes as u64;
        }
    }
    if turn.test != Test::TcpStream {
        let elapsed = began.elapsed();
        if turn.test.is_udp() {
            side.close()?
        } else {
            end(side)?
        }
        return Ok(Done { received, elapsed, times });
    }
    // The time until all has arrived counts.
    side.finish()?;
    if side.receive(1)? > 0 {
        return Err("the receiver of a stream sent something".into());
    }
    let elapsed = began.elapsed();
    side.close()?;
    Ok(Done { received, elapsed, times })
}

/// Whether the leading side has said that no more datagrams come.
pub type Over<'a> = dyn FnMut() -> Result<bool, Failure> + 'a;

/// The other side's part: the bytes that it received.
///
/// # Errors
/// The side's.
pub fn follow(side: &mut dyn Side, turn: &Turn, over: &mut Over<'_>) -> Result<u64, Failure> {
    if turn.test == Test::TcpCrr {
        let mut received = 0;
        loop {
            side.open(turn, false)?;
            let asked = answer(side, turn, over)?;
            end(side)?;
            if asked == 0 {
                return Ok(received);
            }
            received += asked;
        }
    }
    side.open(turn, false)?;
    let received = match turn.test {
        Test::TcpStream | Test::UdpStream => receive_all(side, turn, over)?,
        Test::TcpMaerts => {
            send_for(side, turn)?;
            0
        }
        _ => answer(side, turn, over)?,
    };
    if turn.test.is_udp() {
        side.close()?
    } else {
        end(side)?
    }
    Ok(received)
}

/// Finishes, waits until the other side has, and closes.
fn end(side: &mut dyn Side) -> Result<(), Failure> {
    side.finish()?;
    while side.receive(usize::MAX)? > 0 {}
    side.close()
}

fn send_for(side: &mut dyn Side, turn: &Turn) -> Result<(), Failure> {
    // Small messages would be measured with the clock.
    let burst = ((16 << 10) / turn.bytes).clamp(1, 16);
    let began = Instant::now();
    while began.elapsed() < turn.time {
        for _ in 0..burst {
            side.send(turn.bytes)?;
        }
    }
    Ok(())
}

/// Receives until the other side has finished.
fn receive_all(side: &mut dyn Side, turn: &Turn, over: &mut Over<'_>) -> Result<u64, Failure> {
    let mut all = 0;
    loop {
        match receive(side, turn, turn.bytes, over)? {
            0 => return Ok(all),
            count => all += count as u64,
        }
    }
}

/// Receives some bytes; 0 if the other side has finished, or is over and its last datagram has arrived.
fn receive(side: &mut dyn Side, turn: &Turn, most: usize, over: &mut Over<'_>) -> Result<usize, Failure> {
    let mut is_over = false;
    loop {
        let count = side.receive(most)?;
        if count > 0 || is_over || !turn.test.is_udp() {
            return Ok(count);
        }
        is_over = over()?;
    }
}

fn transact(side: &mut dyn Side, turn: &Turn) -> Result<(), Failure> {
    side.send(turn.bytes)?;
    let (mut got, mut since, mut sent) = (0, None, 1);
    while got < turn.bytes {
        match side.receive(turn.bytes - got)? {
            0 if turn.test.is_udp() && LOST * sent < PATIENCE => {
                if since.get_or_insert_with(Instant::now).elapsed() > LOST * sent {
                    side.send(turn.bytes)?;
                    sent += 1;
                }
            }
            0 => return Err(format!("a response of {got} bytes instead of {}", turn.bytes).into()),
            count => got += count,
        }
    }
    Ok(())
}

/// Answers requests until there are no more.
fn answer(side: &mut dyn Side, turn: &Turn, over: &mut Over<'_>) -> Result<u64, Failure> {
    let (mut all, mut got) = (0, 0);
    loop {
        match receive(side, turn, turn.bytes - got, over)? {
            0 if got == 0 => return Ok(all),
            0 => return Err(format!("a request of {got} bytes instead of {}", turn.bytes).into()),
            count => got += count,
        }
        if got >= turn.bytes {
            side.send(turn.bytes)?;
            all += got as u64;
            got = 0;
        }
    }
}
