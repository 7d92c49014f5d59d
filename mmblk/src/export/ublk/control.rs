//! The driver's control file.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use io_uring::{IoUring, cqueue, opcode, squeue, types};

use super::UblkError;
use super::command::{self, CONTROL, Command, Info};

/// The control file, and a ring for its commands.
pub(super) struct Control {
    file: File,
    ring: IoUring<squeue::Entry128, cqueue::Entry>,
}

impl Control {
    pub(super) fn open() -> Result<Self, UblkError> {
        let file = File::options().read(true).write(true).open(CONTROL).map_err(UblkError::NoDriver)?;
        let ring = IoUring::builder().build(2).map_err(|error| UblkError::System { step: "make a ring", error })?;
        let mut control = Self { file, ring };
        let mut features = [0; 8];
        // The question itself is as old as the answer that is needed.
        control.ask(Command::Features, u32::MAX, &mut features, 0).map_err(|_| UblkError::OldDriver)?;
        let needed = command::USER_COPY | command::IOCTL_ENCODE;
        if u64::from_ne_bytes(features) & needed == needed { Ok(control) } else { Err(UblkError::OldDriver) }
    }

    /// Gives a command, and waits for its end. What goes with it, to the kernel or from it, is in `buffer`.
    pub(super) fn ask(&mut self, command: Command, device: u32, buffer: &mut [u8], data: u64) -> io::Result<()> {
        let place = if buffer.is_empty() { 0 } else { buffer.as_mut_ptr() as u64 };
        let text = command::control(device, (place, buffer.len() as u16), data);
        let entry = opcode::UringCmd80::new(types::Fd(self.file.as_raw_fd()), command as u32).cmd(text).build();
        // SAFETY: `buffer` is borrowed until the completion has come: nothing below returns before, but where the kernel
        // has not taken the entry.
        unsafe { self.ring.submission().push(&entry) }.map_err(|_| io::ErrorKind::WouldBlock)?;
        loop {
            let entered = self.ring.submit_and_wait(1);
            if let Some(completion) = self.ring.completion().next() {
                let result = completion.result();
                return if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(()) };
            }
            if let Err(error) = entered
                && !self.ring.submission().is_empty()
                && error.kind() != io::ErrorKind::Interrupted
            {
                // It is not taken, and would be by a later call, when the buffer is gone: the ring goes with it.
                self.ring = IoUring::builder().build(2)?;
                return Err(error);
            }
        }
    }

    /// What the device with that number is like.
    pub(super) fn info(&mut self, device: u32) -> io::Result<Info> {
        let mut bytes = [0; Info::BYTES];
        self.ask(Command::Info, device, &mut bytes, 0)?;
        Ok(Info::parse(&bytes))
    }
}
