//! The components' settings: the documentation's example is a manifest, and what makes no sense is named.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::time::Duration;

use conn_mgr::manager::{Manager, Options};
use conn_mgr::manifest::Manifest;

const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn the_documentations_appliance_is_one() {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/mmnet.md")).unwrap();
    let (_, rest) = text.split_once("```toml\nappliance").unwrap();
    let (manifest, _) = rest.split_once("```").unwrap();
    // Programs are looked for beside the running one, which this test is not.
    let manifest = manifest
        .replace("\"mmnet-switch\"", &format!("{:?}", env!("CARGO_BIN_EXE_mmnet-switch")))
        .replace("\"mmnet-capture\"", &format!("{:?}", env!("CARGO_BIN_EXE_mmnet-capture")))
        .replace("\"mmnet-tap\"", &format!("{:?}", env!("CARGO_BIN_EXE_mmnet-tap")));
    let parsed = Manifest::parse(&format!("appliance{manifest}"), "docs/mmnet.md");
    let manifest = parsed.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!((manifest.domains.len(), manifest.links.len()), (4, 3));
}

/// What a component says before it gives up.
fn complaint(program: &str, settings: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let says = folder.path().join("says");
    // What a domain says goes where the manager's own messages go; here, to a file.
    let run = format!("exec {program} 2>{}", says.display());
    let text = format!(
        "appliance = \"test\"\n[domain.net]\nprogram = \"/bin/sh\"\nargs = [\"-c\", {run:?}]\n\
         [domain.net.params]\n{settings}\n\
         [domain.user]\nprogram = \"/bin/sh\"\nafter = [\"net\"]\n\
         [[link]]\nname = \"wire\"\nbetween = [\"user\", \"net\"]\n",
    );
    let manifest = Manifest::parse(&text, "test").unwrap_or_else(|error| panic!("{settings}: {error}"));
    let options = Options { runtime_dir: Some(folder.path().into()), ..Options::default() };
    let manager = Manager::start(manifest, options).unwrap();
    manager.wait_ready(PATIENCE).unwrap_err();
    let said = std::fs::read_to_string(says).unwrap();
    manager.shutdown(PATIENCE).unwrap();
    said
}

#[test]
fn a_setting_that_makes_no_sense_is_named() {
    let (switch, tap) = (env!("CARGO_BIN_EXE_mmnet-switch"), env!("CARGO_BIN_EXE_mmnet-tap"));
    let capture = env!("CARGO_BIN_EXE_mmnet-capture");
    for (program, name, settings, part) in [
        (switch, "mmnet-switch", "stations = 0", "0 stations"),
        (switch, "mmnet-switch", "age = 0", "forgotten"),
        (switch, "mmnet-switch", "mtu = 575", "575"),
        (switch, "mmnet-switch", "ports.wire.access = 4095", "VLAN 4095"),
        (switch, "mmnet-switch", "ports.wire = { access = 1, trunk = [2] }", "exclude"),
        (switch, "mmnet-switch", "ports.wire.native = 1", "native"),
        (switch, "mmnet-switch", "ports.wire.broadcast = 0", "limit of 0"),
        (switch, "mmnet-switch", "ports.wire.color = 1", "color"),
        (switch, "mmnet-switch", "ports.wier = {}", "wier"),
        (tap, "mmnet-tap", "", "params.device"),
        (tap, "mmnet-tap", "device = \"a/b\"", "a/b"),
        (tap, "mmnet-tap", "device = \"tap0\"\nmtu = 100", "100"),
        (capture, "mmnet-capture", "", "params.file"),
        (capture, "mmnet-capture", "file = \"/nowhere/a\"", "/nowhere/a"),
    ] {
        let said = complaint(program, settings);
        assert!(said.starts_with(&format!("{name}: ")) && said.contains(part), "{settings}: {said}");
    }
}
