//! `fido check`: whether a manifest is right, and what it describes.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use conn_mgr::Manifest;
use conn_mgr::placement::Plan;

use crate::summary::Summary;

#[derive(Args)]
pub struct Command {
    /// The manifest (TOML; see docs/manifest.md).
    manifest: PathBuf,
}

impl Command {
    pub fn run(self) -> ExitCode {
        let manifest = Manifest::load(&self.manifest);
        super::end(manifest.map(|manifest| {
            let plan = Plan::here(&manifest);
            super::say(io::stdout().lock(), &Summary(&manifest, &plan));
        }))
    }
}
