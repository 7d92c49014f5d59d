//! The file system of the NAS: metadata in a store, file data out of place beside it.
//!
//! [`NasVolume`] implements [`ops::Volume`] over two queues to one block device. What it guarantees: what was answered
//! as stable survives any crash; a crash leaves of everything else either the old or the new state; what was answered
//! at all survives the death of the process, if a successor inherits; payload is never copied. What it does not do: access times are not kept up by reads, and blocks whose fate nobody knows after a
//! double failure of the device stay taken until the next mount.
//!
//! | file | what it is |
//! |---|---|
//! | `nas`, `read`, `write`, `namespace`, `settle` | the event loop's side: operations as state machines |
//! | `node`, `extents`, `cache`, `space`, `allocator`, `device` | its state |
//! | `journal`, `inherit` | what a successor inherits of unstable writes |
//! | `store_thread`, `job` | the way to the store's thread and back |
//! | `store`, `tables`, `record`, `mutate`, `unlink`, `query`, `perm` | the store's side |
//! | `superblock`, `backend`, `blocking` | the store's part of the device |
//! | `check` | the consistency check |

mod allocator;
mod backend;
pub mod blocking;
mod cache;
pub mod check;
mod device;
mod extents;
mod inherit;
mod job;
mod journal;
mod mutate;
mod namespace;
pub mod nas;
mod node;
#[expect(missing_docs, reason = "the fields of operations and answers are named as in RFC 1813")]
pub mod ops;
mod perm;
mod query;
mod read;
mod record;
mod settle;
mod space;
pub mod store;
mod store_thread;
pub mod superblock;
mod tables;
#[cfg(test)]
mod tests;
mod timer;
mod unlink;
mod write;

pub use nas::{NasVolume, Options};
pub use store::RootOwner;
pub use superblock::OpenError;
