//! Sides that are the kernel's sockets.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};

use super::netperf::{Side, Turn};
use super::{PATIENCE, SILENCE, Say};
use crate::Failure;
use crate::other_side::Control;

/// How a side gets a connection.
enum Role {
    Connects(SocketAddr),
    Accepts(TcpListener),
}

/// Blocking sockets, as netperf has them.
pub struct Sockets {
    role: Role,
    tcp: Option<TcpStream>,
    udp: UdpSocket,
    datagrams: bool,
    out: Vec<u8>,
    input: Vec<u8>,
}

impl Sockets {
    /// The leading side, with this address of its own.
    ///
    /// # Errors
    /// The kernel's, or if the other side is gone.
    pub fn lead(own: IpAddr, control: &mut Control) -> Result<Self, Failure> {
        let udp = UdpSocket::bind((own, 0))?;
        control.say(&Say::Addresses { tcp: None, udp: udp.local_addr()? }, &[])?;
        let Say::Addresses { tcp: Some(tcp), udp: theirs } = control.hear()?.0 else {
            return Err("the other side does not listen".into());
        };
        udp.connect(theirs)?;
        Self::new(Role::Connects(tcp), udp)
    }

    /// The other side.
    ///
    /// # Errors
    /// As [`Self::lead`].
    pub fn follow(own: IpAddr, control: &mut Control) -> Result<Self, Failure> {
        let (listener, udp) = (TcpListener::bind((own, 0))?, UdpSocket::bind((own, 0))?);
        control.say(&Say::Addresses { tcp: Some(listener.local_addr()?), udp: udp.local_addr()? }, &[])?;
        let Say::Addresses { udp: theirs, .. } = control.hear()?.0 else {
            return Err("the leading side has no address".into());
        };
        udp.connect(theirs)?;
        Self::new(Role::Accepts(listener), udp)
    }

    fn new(role: Role, udp: UdpSocket) -> Result<Self, Failure> {
        udp.set_read_timeout(Some(SILENCE))?;
        let (out, input) = (vec![0xA5; 64 << 10], vec![0; 64 << 10]);
        Ok(Self { role, tcp: None, udp, datagrams: false, out, input })
    }

    fn tcp(&mut self) -> Result<&mut TcpStream, Failure> {
        self.tcp.as_mut().ok_or_else(|| "no connection".into())
    }
}

impl Side for Sockets {
    fn open(&mut self, turn: &Turn, active: bool) -> Result<(), Failure> {
        self.datagrams = turn.test.is_udp();
        if self.datagrams {
            return Ok(());
        }
        let tcp = match &self.role {
            Role::Connects(address) if active => TcpStream::connect_timeout(address, PATIENCE)?,
            Role::Accepts(listener) if !active => listener.accept()?.0,
            _ => return Err("the wrong side connects".into()),
        };
        // As netperf's -D: a request whose last part waits for an acknowledgement would measure a timer.
        tcp.set_nodelay(!turn.test.is_stream())?;
        tcp.set_read_timeout(Some(PATIENCE))?;
        tcp.set_write_timeout(Some(PATIENCE))?;
        self.tcp = Some(tcp);
        Ok(())
    }

    fn send(&mut self, bytes: usize) -> Result<(), Failure> {
        let data = self.out.get(..bytes).ok_or("a message that is too long")?;
        if self.datagrams {
            return match self.udp.send(data) {
                // The receiver's buffer is full, or it has gone already: datagrams get lost.
                Ok(_) => Ok(()),
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(()),
                Err(error) => Err(error.into()),
            };
        }
        let tcp = self.tcp.as_mut().ok_or("no connection")?;
        Ok(tcp.write_all(data)?)
    }

    fn receive(&mut self, most: usize) -> Result<usize, Failure> {
        let most = most.min(self.input.len());
        if self.datagrams {
            return match self.udp.recv(&mut self.input) {
                Ok(count) => Ok(count),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::ConnectionRefused) => Ok(0),
                Err(error) => Err(error.into()),
            };
        }
        let tcp = self.tcp.as_mut().ok_or("no connection")?;
        Ok(tcp.read(&mut self.input[..most])?)
    }

    fn finish(&mut self) -> Result<(), Failure> {
        Ok(self.tcp()?.shutdown(Shutdown::Write)?)
    }

    fn close(&mut self) -> Result<(), Failure> {
        self.tcp = None;
        Ok(())
    }

    fn copied(&self) -> Option<u64> {
        None
    }
}
