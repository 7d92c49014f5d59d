//! The command line of `nas-demo`.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Parser;
use mmblk::device::description::Description;

use crate::appliance::Mode;

/// A NAS cut into isolated domains that exchange data by address.
///
/// Without options: starts it split, copying and monolithic in turn, runs an IOzone-style workload against each
/// through real NFS calls over TCP, and prints one table. With --serve: starts one and serves until Ctrl-C.
///
/// RUST_LOG sets what is logged, for example RUST_LOG=info.
///
/// Exit status: 0 success, 1 something failed (the message says what), 2 wrong usage.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
pub struct Cli {
    /// Serve until interrupted instead of running the workload
    #[arg(long)]
    pub serve: bool,

    /// How the NAS is put together (without --serve: several, separated by commas; default all)
    #[arg(long, value_enum, value_delimiter = ',', value_name = "MODE")]
    pub mode: Vec<Mode>,

    /// The image file, created and formatted on first use (default: one in a temporary directory)
    #[arg(long, value_name = "FILE", requires = "serve")]
    pub image: Option<PathBuf>,

    /// What to serve in place of an image file: a device, a disk elsewhere, an array, as docs/mmblk.md describes them
    /// (for example raid5(create=yes; file:/srv/a,create=8GiB; file:/srv/b,create=8GiB; file:/srv/c,create=8GiB)); it is
    /// formatted on first use
    #[arg(long, value_name = "DEVICE", requires = "serve", conflicts_with_all = ["image", "dir", "size"], value_parser = parse_device)]
    pub disk: Option<String>,

    /// Where the temporary images go
    #[arg(long, value_name = "DIR", conflicts_with = "image")]
    pub dir: Option<PathBuf>,

    /// Size of an image that is created: bytes, or with KiB, MiB, GiB
    #[arg(long, value_parser = parse_size, default_value = "2GiB", value_name = "SIZE")]
    pub size: u64,

    /// Where to serve NFS and MOUNT; port 0 picks a free one
    #[arg(long, default_value = "127.0.0.1:0", value_name = "ADDRESS")]
    pub listen: SocketAddr,

    /// A workload of a few seconds, to see that everything works
    #[arg(long, conflicts_with = "serve")]
    pub quick: bool,

    /// Also write the raw results to this file
    #[arg(long, value_name = "FILE", conflicts_with = "serve")]
    pub json: Option<PathBuf>,

    /// Print the manifest that --serve would start (fidod takes it too), and exit
    #[arg(long, requires = "serve")]
    pub print_manifest: bool,

    /// Run as a component of the appliance; what the connection manager does
    #[command(subcommand)]
    pub role: Option<Role>,
}

/// What a process of the appliance is.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum Role {
    /// Run as a component of the appliance; started by the connection manager
    #[command(hide = true)]
    Component {
        /// Which one
        component: Component,
    },
}

/// The components.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Component {
    /// Owns the outside's TCP sockets.
    Net,
    /// The file system and the NFS server.
    Fs,
    /// Owns the image file.
    Disk,
    /// All of them in one process.
    Monolith,
}

/// Reads a size such as `1073741824`, `512MiB` or `2GiB`.
fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor = match &text[digits.len()..] {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        unit => return Err(format!("unknown unit {unit:?}; use KiB, MiB, GiB or TiB")),
    };
    let number: u64 = digits.trim().parse().map_err(|_| format!("{text:?} is not a size such as 2GiB"))?;
    number.checked_mul(factor).ok_or_else(|| format!("{text:?} is too large"))
}

/// A device's description; what is wrong with its form is said before anything is started.
fn parse_device(text: &str) -> Result<String, String> {
    Description::parse(text).map(|_| text.to_owned()).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices() {
        assert!(parse_device("raid5(file:/a; file:/b; file:/c)").is_ok());
        assert!(parse_device("raid5(file:/a").unwrap_err().contains("should stand here"));
        let with = |more: &[&str]| {
            let words = ["nas-demo", "--serve", "--disk", "null:1GiB"];
            Cli::try_parse_from(words.into_iter().chain(more.iter().copied())).is_ok()
        };
        assert!(with(&[]) && !with(&["--image", "a"]) && !with(&["--size", "1GiB"]));
    }

    #[test]
    fn sizes() {
        assert_eq!(parse_size("4096"), Ok(4096));
        assert_eq!(parse_size("512MiB"), Ok(512 << 20));
        for wrong in ["", "GiB", "-1", "1GB", "1.5GiB", "99999999999TiB", "1 GiB x"] {
            assert!(parse_size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
