//! The built program, from outside.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

#[path = "../../conn-mgr/tests/support/run.rs"]
mod support;

use std::process::{Command, Output};

const NAS: &str = r#"
appliance = "nas"

[domain.net]
program = "sh"
arena = "256MiB"
windows = ["disk"]

[domain.fs]
program = "sh"
wait = "sleep"

[domain.disk]
program = "sh"

[[link]]
name = "nfs"
between = ["net", "fs"]

[[link]]
name = "block"
between = ["fs", "disk"]
lanes = 2
"#;

fn fido(arguments: &[&str]) -> Output {
    support::output(Command::new(env!("CARGO_BIN_EXE_fido")).args(arguments))
}

/// Exit code, standard output, standard error.
fn check(text: &str) -> (Option<i32>, String, String) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("nas.toml");
    std::fs::write(&file, text).unwrap();
    let output = fido(&["check", file.to_str().unwrap()]);
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn a_right_manifest_is_summed_up() {
    let (code, out, err) = check(NAS);
    assert_eq!((code, err.as_str()), (Some(0), ""));
    assert!(out.starts_with("ok: appliance `nas`, 3 domains, 2 links\n"), "{out}");
    let row = |name: &str| {
        let line = out.lines().find(|line| line.split_whitespace().next() == Some(name));
        line.unwrap_or_else(|| panic!("no row {name} in {out}")).split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert!(row("net").starts_with("net 1 256 MiB adaptive all always disk /"), "{out}");
    assert!(row("fs").starts_with("fs 2 64 MiB sleep all always - /"), "{out}");
    assert_eq!(row("nfs"), "nfs net - fs 1 1024 pointer");
    assert_eq!(row("block"), "block fs - disk 2 1024 pointer");
}

#[test]
fn the_plan_is_shown_and_explained() {
    let auto = NAS.replace("program = \"sh\"", "program = \"sh\"\ncpus = \"auto\"");
    let (code, out, err) = check(&auto);
    assert_eq!((code, err.as_str()), (Some(0), ""));
    assert!(out.contains("(auto)") && out.contains("\nplaced by "), "{out}");
    // On a machine with fewer processors than domains somebody is left over: whoever has the fewest lanes.
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    assert_eq!(out.contains("domain `net` wants 1") && out.contains("all (auto: none left)"), processors < 3, "{out}");
    let (code, _, err) = check(&auto.replacen("\"auto\"", "\"auto:\"", 1));
    assert_eq!(code, Some(1));
    assert!(err.contains("`auto:`") && err.contains("\"auto:COUNT\""), "{err}");
}

#[test]
fn a_wrong_manifest_is_shown_where_it_is_wrong() {
    let (code, out, err) = check(&NAS.replace(r#"["fs", "disk"]"#, r#"["fs", "dsk"]"#));
    assert_eq!((code, out.as_str()), (Some(1), ""));
    assert!(err.starts_with("error: ") && err.contains("`dsk`"), "{err}");
    assert!(err.contains("nas.toml:22:18") && err.contains(r#"between = ["fs", "dsk"]"#), "{err}");
    assert!(err.contains("^^^^^"), "{err}");
}

#[test]
fn what_cannot_be_read_is_named() {
    let output = fido(&["check", "/nonexistent/nas.toml"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains("/nonexistent/nas.toml"));
    for text in ["", "appliance =", "\0\u{1b}[2J"] {
        let (code, out, err) = check(text);
        assert_eq!((code, out.as_str()), (Some(1), ""), "{text:?}");
        assert!(err.starts_with("error: ") && !err.contains('\u{1b}'), "{err:?}");
    }
}

#[test]
fn wrong_commands_are_refused_with_usage() {
    for wrong in [&[][..], &["chekc"], &["check"], &["check", "a", "b"], &["check", "--what"]] {
        let output = fido(wrong);
        assert_eq!(output.status.code(), Some(2), "{wrong:?}");
        assert!(String::from_utf8(output.stderr).unwrap().contains("Usage: fido"), "{wrong:?}");
    }
    let help = String::from_utf8(fido(&["--help"]).stdout).unwrap();
    assert!(help.contains("Exit codes:") && help.contains("check"), "{help}");
}

#[test]
fn the_testbed_lists_its_scenarios_and_refuses_others() {
    let output = fido(&["xen", "testbed", "--list"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(text.lines().any(|line| line.starts_with("boot ")), "{text}");
    let output = fido(&["xen", "testbed", "nonsense"]);
    assert_eq!(output.status.code(), Some(2));
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(error, "error: there is no scenario `nonsense`; --list shows those that there are\n");
    assert_eq!(fido(&["xen", "testbed"]).status.code(), Some(2));
    assert_eq!(fido(&["xen", "testbed", "boot", "--memory", "1023"]).status.code(), Some(2));
}

const GUESTS: &str = r#"
appliance = "pair"
platform = "xen"

[domain.a]
program = "a"
arena = "1GiB"

[domain.a.xen]
kernel = "/boot/vmlinux"
image = "/images/a.cpio"
memory = "2GiB"

[domain.b]
program = "b"

[domain.b.xen]
kernel = "/boot/vmlinux"
image = "/images/b.cpio"

[[link]]
name = "ab"
between = ["a", "b"]
"#;

#[test]
fn xl_configurations_are_printed_or_written() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pair.toml");
    std::fs::write(&file, GUESTS).unwrap();
    let file = file.to_str().unwrap();
    let output = fido(&["xen", "config", file]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(text.starts_with("# Xen needs: gnttab_max_frames=1034 gnttab_max_maptrack_frames=4117\n"), "{text}");
    assert!(text.contains("name = \"pair-a\"\n") && text.contains("name = \"pair-b\"\n"), "{text}");
    assert!(text.contains("max_maptrack_frames = 4117\n"), "{text}");
    let output = fido(&["xen", "config", file, "b", "--output", folder.path().to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0));
    let written = std::fs::read_to_string(folder.path().join("pair-b.cfg")).unwrap();
    assert!(text.contains(written.trim_end()), "{written}");
    assert!(!folder.path().join("pair-a.cfg").exists());
    let output = fido(&["xen", "config", file, "c"]);
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(1), &b"error: there is no domain `c`\n"[..]));
}

/// A file that is enough of a statically linked program: an ELF header without segments.
fn write_program(path: &std::path::Path) {
    let mut file = vec![0; 64];
    file[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    (file[16], file[18], file[20], file[52]) = (2, 62, 1, 64);
    std::fs::write(path, file).unwrap();
}

#[test]
fn images_are_made_for_a_program_and_for_a_manifest() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    for name in ["a", "b", "fido-init"] {
        write_program(path(name).as_ref());
    }
    std::fs::create_dir(path("modules")).unwrap();
    let usual = ["--init", &path("fido-init"), "--modules", &path("modules")];
    let image = |more: &[&str]| {
        let output = fido(&[&["xen", "image"], more, &usual[..]].concat());
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, error) = image(&[&path("a"), "--output", &path("a.cpio")]);
    assert_eq!(code, Some(1));
    assert!(error.contains("kernel module `xen_evtchn`, which the image needs, is not in"), "{error}");
    assert!(!folder.path().join("a.cpio").exists());
    let simple = ["--init", &path("fido-init"), "--no-modules"];
    let made = |from: &str, to: &str| {
        let output = fido(&[&["xen", "image", &path(from), "--output", &path(to)], &simple[..]].concat());
        assert!(output.status.success(), "{output:?}");
    };
    made("a", "a.cpio");
    made("a", "again.cpio");
    let bytes = std::fs::read(path("a.cpio")).unwrap();
    assert!(bytes.starts_with(b"070701") && bytes == std::fs::read(path("again.cpio")).unwrap());
    let (code, error) = image(&[&path("a")]);
    assert_eq!((code, error.as_str()), (Some(1), "error: a program needs --output FILE\n"));
    std::fs::write(path("pair.toml"), GUESTS).unwrap();
    std::fs::create_dir(path("images")).unwrap();
    made("pair.toml", "images");
    assert_eq!(std::fs::read(path("images/b.cpio")).unwrap(), bytes, "they have the same program");
    let (code, error) = image(&[&path("pair.toml"), "--domain", "c"]);
    assert_eq!((code, error.as_str()), (Some(1), "error: there is no domain `c`\n"));
    assert_eq!(image(&["/does/not/exist"]).0, Some(1));
}
