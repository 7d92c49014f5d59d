//! The domains' programs, one file each, and the loop that they share.

mod disk;
mod event_loop;
mod fs;
mod monolith;
mod net;

use std::error::Error;

use fido_core::domain::Domain;

use crate::cli::Component;

pub use fs::EXPORT;

/// Runs this process as a component of the appliance that started it.
///
/// # Errors
/// Whatever keeps it from serving.
pub fn run(component: Component) -> Result<(), Box<dyn Error>> {
    let domain = Domain::join()?;
    match component {
        Component::Net => net::run(&domain),
        Component::Fs => fs::run(&domain),
        Component::Disk => disk::run(&domain),
        Component::Monolith => monolith::run(&domain),
    }
}
