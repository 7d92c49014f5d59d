//! The connection manager: it reads what an appliance consists of, starts its domains as processes, brings together
//! those that the manifest links (memory and doorbells), notices deaths, runs the fences and restarts by policy.
//!
//! * [`manifest`]: what an appliance is, from TOML or made in code; everything is checked before anything is started.
//! * [`manager`]: the manager itself, as a library. The binary `fidod` is a thin shell around it.
//! * [`placement`]: on which processors its domains run.
//! * [`xen`]: what follows from a manifest for guests of Xen.
//! * [`signals`]: what such a shell needs in order to stop when it is told to.
//!
//! The manager is not on the data path: once two domains are linked, they talk without it.

pub mod fuzzing;
pub mod manager;
pub mod manifest;
pub mod placement;
pub mod signals;
pub mod xen;

pub use manager::{Manager, ManagerError, Options};
pub use manifest::{Manifest, ManifestError};
