//! Which kinds of devices there are. A new kind is one line here and a file that opens it.

use std::sync::Arc;

use super::description::Description;
use super::{Device, OpenError, layers, leaves, raid, remote};

/// Opens a device as its description says, and what it is made of.
type Open = fn(&Description) -> Result<Arc<dyn Device>, OpenError>;

const KINDS: &[(&str, Open)] = &[
    ("null", leaves::null),
    ("memory", leaves::memory),
    ("file", leaves::file),
    ("nbd", remote::nbd),
    ("raid0", raid::raid0),
    ("raid1", raid::raid1),
    ("raid5", raid::raid5),
    ("trace", layers::trace),
    ("delay", layers::delay),
    ("fault", layers::fault),
];

/// Opens what a description describes.
///
/// # Errors
/// [`OpenError`] with the part of it that is wrong, or what the system says.
pub fn open(device: &Description) -> Result<Arc<dyn Device>, OpenError> {
    match KINDS.iter().find(|(kind, _)| *kind == device.kind) {
        Some((_, open)) => open(device),
        None => {
            let known = KINDS.iter().map(|(kind, _)| *kind).collect::<Vec<_>>().join(", ");
            Err(OpenError::Kind { kind: device.kind.clone(), known })
        }
    }
}

/// Opens the members of a device that is made of others: those that can be opened, and why the first of the others cannot.
pub fn open_members(device: &Description) -> (Vec<Arc<dyn Device>>, Option<OpenError>) {
    let (mut members, mut first) = (Vec::new(), None);
    for member in &device.members {
        match open(member) {
            Ok(member) => members.push(member),
            Err(error) => {
                first.get_or_insert(error);
            }
        }
    }
    (members, first)
}
