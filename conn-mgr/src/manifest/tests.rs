//! Right and wrong manifests.

use proptest::prelude::*;

use super::*;

const GOOD: &str = r#"appliance = "nas"
[fence]
deadline = "3s"
[domain.net]
program = "/bin/sh"
args = ["net"]
arena = "1MiB"
wait = "spin"
cpus = [0]
windows = ["disk"]
restart = "on-failure"
restart-limit = 3
restart-window = "5min"
restart-delay = "20ms"
inherit = true
after = ["fs"]
[domain.net.params]
listen = "127.0.0.1:0"
depth = [1, { x = 2.5 }]
since = 1979-05-27
[domain.fs]
program = "/bin/sh"
arena = 1048576
[domain.disk]
program = "/bin/sh"
[[link]]
name = "nfs"
between = ["net", "fs"]
lanes = 4
slots = 64
transport = "copying"
[[link]]
name = "block"
between = ["fs", "disk"]
"#;

#[test]
fn every_key_is_understood() {
    let manifest = Manifest::parse(GOOD, "good.toml").unwrap();
    assert_eq!(manifest.fence.deadline, Duration::from_secs(3));
    let [net, fs, disk] = &manifest.domains[..] else { panic!("{manifest:?}") };
    let expected = Domain {
        args: vec!["net".into()],
        arena: 1 << 20,
        wait: WaitStrategy::Spin,
        cpus: Cpus::List(vec![0]),
        windows: vec!["disk".into()],
        restart: RestartPolicy {
            when: Restart::OnFailure,
            limit: 3,
            window: Duration::from_secs(300),
            delay: Duration::from_millis(20),
        },
        inherit: true,
        after: vec!["fs".into()],
        params: [
            ("listen".to_owned(), "127.0.0.1:0".into()),
            ("depth".to_owned(), serde_json::json!([1, { "x": 2.5 }])),
            ("since".to_owned(), "1979-05-27".into()),
        ]
        .into(),
        ..Domain::new("net", "/bin/sh")
    };
    assert_eq!(*net, expected);
    assert_eq!(*fs, Domain { arena: 1 << 20, ..Domain::new("fs", "/bin/sh") });
    assert_eq!(*disk, Domain::new("disk", "/bin/sh"), "the defaults are those of the struct");
    let nfs = Link { lanes: 4, slots: 64, transport: Transport::Copying, ..Link::new("nfs", "net", "fs") };
    assert_eq!(manifest.links, [nfs, Link::new("block", "fs", "disk")]);
    assert_eq!(manifest.start_order(), [1, 0, 2]);
}

#[test]
fn forms_of_cpus() {
    for (text, cpus) in [
        ("\"auto\"", Cpus::Auto(1)),
        ("\"auto:1024\"", Cpus::Auto(1024)),
        ("\" 0 \"", Cpus::List(vec![0])),
        ("[]", Cpus::All),
    ] {
        let manifest = Manifest::parse(&GOOD.replacen("[0]", text, 1), "good.toml");
        assert_eq!(manifest.unwrap_or_else(|error| panic!("{error}")).domains[0].cpus, cpus, "{text}");
    }
}

#[test]
fn the_example_in_the_documentation_is_right() {
    let book = include_str!("../../../docs/manifest.md");
    let example = book.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let example = example.replace("\"nas-demo\"", "\"/bin/sh\"");
    let manifest = Manifest::parse(&example, "manifest.md").unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(manifest.start_order(), [2, 1, 0]);
    assert_eq!(fido_core::arena::MAX_LANES, 224, "as the documentation says");
}

#[test]
fn a_domain_is_told_what_concerns_it() {
    let manifest = Manifest::parse(GOOD, "good.toml").unwrap();
    let id = DomainId { slot: Manifest::slot(1).unwrap(), generation: fido_core::addr::Generation::FIRST };
    let fs = manifest.assignment(1, id).unwrap();
    assert_eq!((fs.appliance.as_str(), fs.domain.as_str(), fs.arena_bytes), ("nas", "fs", 1 << 20));
    let links: Vec<_> = fs.links.iter().map(|l| (l.link, l.name.as_str(), l.peer.as_str(), l.peer_slot)).collect();
    assert_eq!(links, [(1, "nfs", "net", 1), (2, "block", "disk", 3)]);
    assert_eq!(manifest.assignment(3, id), None);
}

/// Replaces `from` in the good manifest and expects an error at `at`, which mentions all of `parts`.
fn wrong(from: &str, to: &str, at: &str, parts: &[&str]) {
    assert!(GOOD.contains(from), "{from}");
    let text = GOOD.replacen(from, to, 1);
    let error = match Manifest::parse(&text, "bad.toml") {
        Err(ManifestError::Wrong(error)) => error,
        other => panic!("{to}: {other:?}"),
    };
    let shown = error.to_string();
    let line = text.lines().nth(error.line - 1).unwrap_or_default();
    let pointed: String = line.chars().skip(error.column - 1).collect();
    assert!(pointed.starts_with(at), "{to}: points at {pointed:?}\n{shown}");
    assert!(shown.contains(&format!("bad.toml:{}:{}", error.line, error.column)), "{shown}");
    parts.iter().for_each(|part| assert!(shown.contains(part), "{to}: {part:?} is not in\n{shown}"));
}

#[test]
fn wrong_shapes() {
    wrong("lanes = 4", "lane = 4", "lane", &["unknown field `lane`", "`lanes`"]);
    wrong("arena = \"1MiB\"", "arna = \"1MiB\"", "arna", &["unknown field `arna`", "`arena`"]);
    wrong("[fence]", "[fences]", "fences", &["unknown field `fences`"]);
    wrong("deadline", "dedline", "dedline", &["unknown field `dedline`"]);
    wrong("appliance = \"nas\"", "appliance = 7", "7", &["integer `7`", "expected a string"]);
    wrong("appliance = \"nas\"", "", "", &["missing field `appliance`"]);
    wrong("program = \"/bin/sh\"\nargs", "args", "", &["missing field `program`"]);
    wrong("\"1MiB\"", "\"1MB\"", "\"1MB\"", &["`1MB` is not a size", "64MiB"]);
    wrong("\"1MiB\"", "-5", "-5", &["`-5` bytes", "64MiB"]);
    wrong("\"1MiB\"", "1.5", "1.5", &["floating point", "64MiB"]);
    wrong("\"20ms\"", "20", "20", &["integer `20`", "10ms"]);
    wrong("\"20ms\"", "\"25h\"", "\"25h\"", &["`25h` is not a time span", "24 hours"]);
    wrong("\"spin\"", "\"spinning\"", "\"spinning\"", &["unknown variant `spinning`", "`adaptive`"]);
    wrong("\"copying\"", "\"copy\"", "\"copy\"", &["unknown variant `copy`", "`pointer`"]);
    wrong("\"on-failure\"", "\"on_failure\"", "\"on_failure\"", &["`always`"]);
    wrong("[0]", "[-1]", "-1", &["-1"]);
    wrong("lanes = 4", "lanes = 65536", "65536", &["65536"]);
    wrong("[domain.fs]", "[domain.net]", "", &["duplicate key"]);
    wrong("args = [\"net\"]", "args = [\"net\"", "", &[]);
    wrong("2.5", "nan", "[1,", &["`depth` holds a number that is not finite"]);
    wrong("[\"net\", \"fs\"]", "[\"net\"]", "[\"net\"]", &["1 names in `between`", "two domains"]);
    wrong("[\"net\", \"fs\"]", "[\"net\", \"fs\", \"disk\"]", "[\"net\"", &["3 names in `between`"]);
}

#[test]
fn wrong_senses() {
    wrong("\"nas\"", "\"n/s\"", "\"n/s\"", &["`n/s`", "letters"]);
    wrong("\"nas\"", "\"\"", "\"\"", &["letters"]);
    wrong("deadline = \"3s\"", "deadline = \"0s\"", "\"0s\"", &["more than 0"]);
    wrong("[domain.fs]", "[domain.\"f s\"]", "\"f s\"", &["`f s`"]);
    wrong("\"/bin/sh\"", "\"no-such-program\"", "\"no-such-program\"", &["not found", "PATH"]);
    wrong("args = [\"net\"]", "args = [\"a\", \"b\\u0000\"]", "\"b", &["zero byte"]);
    wrong("arena = 1048576", "arena = 1048577", "1048577", &["a multiple of 4096"]);
    wrong("arena = 1048576", "arena = 4096", "4096", &["4096 bytes for domain `fs`", "65536"]);
    wrong("arena = 1048576", "arena = \"2048GiB\"", "\"2048GiB\"", &["1099511627776"]);
    wrong("slots = 64", "slots = 65536", "\"1MiB\"", &["for domain `net`", "at least 16797696 bytes for 4 lanes"]);
    wrong("[0]", "[0, 1000000]", "1000000", &["no processor 1000000", "among 0"]);
    wrong("[0]", "[0, 0]", "0]", &["processor 0 twice"]);
    wrong("[0]", "[0, 1023]", "1023", &["no processor 1023", "among 0"]);
    wrong("[0]", "\"0,1000\"", "\"0,1000\"", &["no processor 1000", "among 0"]);
    wrong("[0]", "\"0,1024\"", "\"0,1024\"", &["processor 1024 is beyond 1023", "\"auto\""]);
    wrong("[0]", "\"0,0\"", "\"0,0\"", &["processor 0 twice"]);
    wrong("[0]", "\"3-1\"", "\"3-1\"", &["3-1 goes backwards"]);
    wrong("[0]", "\"\"", "\"\"", &["no processor at all"]);
    wrong("[0]", "\"atuo\"", "\"atuo\"", &["`atuo` is not a processor number", "\"auto\""]);
    wrong("[0]", "\"auto:0\"", "\"auto:0\"", &["0 processors", "1 to 1024"]);
    wrong("[0]", "\"auto:1025\"", "\"auto:1025\"", &["1025 processors", "1 to 1024"]);
    wrong("[0]", "\"auto:x\"", "\"auto:x\"", &["`auto:x`", "\"auto:COUNT\""]);
    wrong("[0]", "\"automatic\"", "\"automatic\"", &["`automatic`"]);
    wrong("[0]", "7", "7", &["integer `7`", "\"auto\""]);
    wrong("windows = [\"disk\"]", "windows = [\"dsk\"]", "\"dsk\"", &["unknown domain `dsk`", "`net`, `fs`, `disk`"]);
    wrong("windows = [\"disk\"]", "windows = [\"net\"]", "\"net\"", &["itself"]);
    wrong("windows = [\"disk\"]", "windows = [\"disk\", \"disk\"]", "\"disk\"]", &["twice"]);
    wrong("after = [\"fs\"]", "after = [\"nfs\"]", "\"nfs\"", &["unknown domain `nfs`"]);
    wrong("after = [\"fs\"]", "after = [\"net\"]", "\"net\"", &["itself"]);
    wrong("arena = 1048576", "after = [\"disk\", \"net\"]", "\"fs\"]", &["`net` waits in a circle"]);
    wrong("restart-window = \"5min\"", "restart-window = \"0s\"", "\"0s\"", &["more than 0"]);
    wrong("[\"net\", \"fs\"]", "[\"net\", \"sf\"]", "\"sf\"", &["unknown domain `sf`"]);
    wrong("[\"net\", \"fs\"]", "[\"net\", \"net\"]", "\"net\"]", &["to itself"]);
    wrong("name = \"block\"", "name = \"nfs\"", "\"nfs\"", &["a second link `nfs`"]);
    wrong("name = \"block\"", "name = \"a b\"", "\"a b\"", &["letters"]);
    wrong("lanes = 4", "lanes = 0", "0", &["0 lanes", "1 to 64"]);
    wrong("lanes = 4", "lanes = 65", "65", &["1 to 64"]);
    wrong("slots = 64", "slots = 63", "63", &["a power of two from 4 to 65536"]);
    wrong("slots = 64", "slots = 2", "2", &["a power of two"]);
    wrong("slots = 64", "slots = 131072", "131072", &["a power of two"]);
}

fn appliance(domains: usize) -> Manifest {
    let domain = |n| Domain { arena: 1 << 20, ..Domain::new(format!("d{n}"), "/bin/sh") };
    Manifest { domains: (0..domains).map(domain).collect(), ..Manifest::new("a") }
}

#[test]
fn limits_are_exact() {
    assert!(appliance(0).check().unwrap_err().what.contains("without domains"));
    assert_eq!(appliance(1).check(), Ok(()));
    let named = |len| Manifest { appliance: "x".repeat(len), ..appliance(1) }.check();
    assert!(named(MAX_NAME_BYTES).is_ok() && named(MAX_NAME_BYTES + 1).is_err());
    let link = |n: usize, lanes| Link { lanes, slots: 4, ..Link::new(format!("l{n}"), "d0", format!("d{n}")) };
    let lanes = |total: usize| {
        let full = total / 64;
        let mut links: Vec<_> = (1..=full).map(|n| link(n, 64)).collect();
        links.extend((!total.is_multiple_of(64)).then(|| link(full + 1, (total % 64) as u16)));
        Manifest { links, ..appliance(full + 2) }.check()
    };
    assert_eq!(lanes(fido_core::arena::MAX_LANES), Ok(()));
    let fault = lanes(fido_core::arena::MAX_LANES + 1).unwrap_err();
    assert!(fault.what.contains("more lanes in domain `d0`"), "{fault}");
    let with_param = |len| {
        let mut manifest = appliance(1);
        manifest.domains[0].params.insert("p".into(), "x".repeat(len).into());
        manifest.check()
    };
    assert!(with_param(65_000).is_ok());
    assert!(with_param(65_536).unwrap_err().to_string().contains("at most 65536 bytes"));
    let long = " ".repeat(MAX_TEXT_BYTES + 1);
    assert!(matches!(Manifest::parse(&long, "long"), Err(ManifestError::TooLong { .. })));
}

#[test]
fn made_in_code_it_is_checked_all_the_same() {
    let mut manifest = appliance(2);
    manifest.domains[1].name = "d0".into();
    assert_eq!(manifest.check().unwrap_err().place, Place::Domain(1));
    manifest.domains[1].name = "d1".into();
    manifest.domains[1].program = "/no/such/program".into();
    assert!(manifest.check().unwrap_err().to_string().contains("domain 2, `program`"));
    manifest.domains[1].program = "/bin/sh".into();
    manifest.links = vec![Link::new("l", "d0", "d2")];
    assert_eq!(manifest.check().unwrap_err().place, Place::LinkKey(0, "between", Some(1)));
}

#[test]
fn files() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("nas.toml");
    assert!(matches!(Manifest::load(&path), Err(ManifestError::Read { .. })));
    std::fs::write(&path, GOOD).unwrap();
    assert!(Manifest::load(&path).is_ok());
    std::fs::write(&path, b"appliance = \"\xff\"").unwrap();
    assert!(matches!(Manifest::load(&path), Err(ManifestError::Read { .. })));
    std::fs::write(&path, vec![b' '; MAX_TEXT_BYTES + 1]).unwrap();
    assert!(matches!(Manifest::load(&path), Err(ManifestError::TooLong { .. })));
    assert!(matches!(Manifest::load(folder.path()), Err(ManifestError::Read { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_text_is_a_manifest_or_an_error(text: String) {
        if let Err(error) = Manifest::parse(&text, "any") {
            prop_assert!(!error.to_string().is_empty());
        }
    }

    #[test]
    fn any_change_to_a_manifest_is_judged(at in 0..GOOD.len(), len in 0usize..12, with in "[\\PC\n\"\\[\\]={}.0-9-]{0,8}") {
        let end = (at + len).min(GOOD.len());
        let text = format!("{}{with}{}", &GOOD[..at], &GOOD[end..]);
        if let Err(error) = Manifest::parse(&text, "any") {
            prop_assert!(!error.to_string().is_empty());
        }
    }
}
