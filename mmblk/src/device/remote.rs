//! A device on another machine, or in another program: `nbd://host:port/export`, or `nbd:unix:/path` and
//! `nbd:host:port` with the option `export`.
//!
//! | option | meaning |
//! |---|---|
//! | `export` | the export's name; by default the server's default one |
//! | `block` (512), `depth` (64) | as of other devices; the server's block size, if that is greater |
//! | `patience` (30s) | for how long to try to connect again |

use std::sync::Arc;

use fido_core::memory::Memory;

use super::description::Description;
use super::leaves::stands_alone;
use super::options::{Options, time};
use super::{BoxQueue, Device, OpenError};
use crate::backend::nbd::{NbdDevice, NbdError, NbdOptions};
use crate::nbd::place::Uri;
use crate::queue::Geometry;

pub(super) fn nbd(device: &Description) -> Result<Arc<dyn Device>, OpenError> {
    stands_alone(device)?;
    let mut options = Options::of(device);
    let uri = match device.text.strip_prefix("//") {
        Some(_) => format!("nbd:{}", device.text).parse().map_err(|error| options.error(&device.text, error))?,
        None => {
            let place = device.text.parse().map_err(|error| options.error(&device.text, error))?;
            Uri { place, export: options.text("export").unwrap_or_default().to_owned() }
        }
    };
    let usual = NbdOptions::default();
    let nbd = NbdOptions {
        block: options.number("block")?.unwrap_or(usual.block),
        depth: options.number("depth")?.unwrap_or(usual.depth),
        patience: options.read("patience", time)?.unwrap_or(usual.patience),
        ..usual
    };
    options.done()?;
    Ok(Arc::new(NbdDevice::connect(&uri, &nbd).map_err(failed)?))
}

fn failed(error: NbdError) -> OpenError {
    OpenError::Other { kind: "nbd".into(), error: Box::new(error) }
}

impl Device for NbdDevice {
    fn geometry(&self) -> Geometry {
        self.geometry()
    }

    fn queue(&self, memory: &Memory) -> Result<BoxQueue, OpenError> {
        Ok(Box::new(NbdDevice::queue(self, memory.clone()).map_err(failed)?))
    }

    /// The protocol has no way to ask: another size is seen when the connection is made anew.
    fn refresh(&self) -> Result<(), OpenError> {
        Ok(())
    }
}
