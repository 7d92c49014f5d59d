//! What the platform needs of the machine, behind one face: memory to share, windows, event channels. The client's
//! tests have another one without Xen.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::arena::{Provider, SharedArena};
use super::channel::{Channel, Port};
use super::error::XenError;
use super::layout::ProviderKind;
use super::window::{self, Owner};
use crate::addr::DomainId;
use crate::arena::RawArena;
use crate::bell::{Bell, Ringer};
use crate::window::Window;

/// Which lane of which link.
pub type LaneNumber = (u32, u16);

/// The machine, as the platform uses it.
pub trait Devices: Send {
    /// Memory for the own arena. `pair` says who the only reader will be, if there is only one.
    ///
    /// # Errors
    /// [`XenError`].
    fn create_arena(
        &mut self,
        id: DomainId,
        bytes: u64,
        pair: &mut dyn FnMut() -> Result<Option<u16>, XenError>,
    ) -> Result<(RawArena, ProviderKind), XenError>;

    /// The number of a root page of frames, if it can be known.
    ///
    /// # Errors
    /// [`XenError`].
    fn root_frame(&mut self) -> Result<Option<u32>, XenError>;

    /// Lets a domain read the own arena. Returns the reference of its root page.
    ///
    /// # Errors
    /// [`XenError`].
    fn grant(&mut self, domain: u16) -> Result<u32, XenError>;

    /// Takes the own arena back from a domain.
    ///
    /// # Errors
    /// [`XenError`].
    fn revoke(&mut self, domain: u16) -> Result<(), XenError>;

    /// A window on a peer's arena, granted to this domain, whose number is `reader`.
    ///
    /// # Errors
    /// [`XenError`].
    fn map(&mut self, owner: Owner, reader: u16, root: u32) -> Result<Window, XenError>;

    /// The bell of a lane.
    ///
    /// # Errors
    /// [`XenError`].
    fn bell(&mut self, lane: LaneNumber) -> Result<Bell, XenError>;

    /// Makes a port for a domain that rings the bell of a lane, and that the domain can bind.
    ///
    /// # Errors
    /// [`XenError`].
    fn offer_port(&mut self, lane: LaneNumber, domain: u16) -> Result<(u32, Box<dyn Ringer>), XenError>;

    /// Binds a port that a domain has made.
    ///
    /// # Errors
    /// [`XenError`].
    fn bind_port(&mut self, lane: LaneNumber, domain: u16, port: u32) -> Result<Box<dyn Ringer>, XenError>;
}

/// The devices of the kernel.
#[derive(Debug, Default)]
pub struct KernelDevices {
    arena: Option<SharedArena>,
    channels: BTreeMap<LaneNumber, Arc<Channel>>,
}

impl KernelDevices {
    fn arena(&mut self) -> Result<&mut SharedArena, XenError> {
        let missing = || XenError::system("share an arena")(std::io::ErrorKind::NotFound.into());
        self.arena.as_mut().ok_or_else(missing)
    }

    fn channel(&self, lane: LaneNumber) -> Result<&Arc<Channel>, XenError> {
        let missing = || XenError::system("find the bell of a lane")(std::io::ErrorKind::NotFound.into());
        self.channels.get(&lane).ok_or_else(missing)
    }
}

impl Devices for KernelDevices {
    fn create_arena(
        &mut self,
        id: DomainId,
        bytes: u64,
        pair: &mut dyn FnMut() -> Result<Option<u16>, XenError>,
    ) -> Result<(RawArena, ProviderKind), XenError> {
        let provider = Provider::find(pair)?;
        let (arena, raw) = SharedArena::create(provider, id, bytes)?;
        self.arena = Some(arena);
        Ok((raw, provider.kind()))
    }

    fn root_frame(&mut self) -> Result<Option<u32>, XenError> {
        self.arena()?.root_frame()
    }

    fn grant(&mut self, domain: u16) -> Result<u32, XenError> {
        self.arena()?.grant(domain)
    }

    fn revoke(&mut self, domain: u16) -> Result<(), XenError> {
        self.arena()?.revoke(domain)
    }

    fn map(&mut self, owner: Owner, reader: u16, root: u32) -> Result<Window, XenError> {
        window::granted(owner, reader, root)
    }

    fn bell(&mut self, lane: LaneNumber) -> Result<Bell, XenError> {
        let channel = Arc::new(Channel::open()?);
        let bell = Bell::with_wire(channel.clone()).map_err(XenError::system("make a bell"))?;
        self.channels.insert(lane, channel);
        Ok(bell)
    }

    fn offer_port(&mut self, lane: LaneNumber, domain: u16) -> Result<(u32, Box<dyn Ringer>), XenError> {
        let port = self.channel(lane)?.offer(domain)?;
        Ok((port.number(), Box::new(port)))
    }

    fn bind_port(&mut self, lane: LaneNumber, domain: u16, port: u32) -> Result<Box<dyn Ringer>, XenError> {
        let port: Port = self.channel(lane)?.bind(domain, port)?;
        Ok(Box::new(port))
    }
}
