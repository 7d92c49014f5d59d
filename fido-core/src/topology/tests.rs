//! Machines of several kinds, and files that are wrong.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::fixtures::{Shape, Text, Tree};
use super::measure::{Effort, fill, measure, plan};
use super::*;

const DESKTOP: Shape = Shape { packages: 1, cores: 8, threads: 2, cores_per_l3: 8, nodes_per_package: 1 };
/// Two sockets with two NUMA nodes each, and a last-level cache for every four cores.
const SERVER: Shape = Shape { packages: 2, cores: 16, threads: 2, cores_per_l3: 4, nodes_per_package: 2 };

/// Made once: its tree has more than a thousand files.
static SERVER_TOPOLOGY: LazyLock<Topology> =
    LazyLock::new(|| Topology::read(SERVER.tree().root(), &all(&SERVER)).unwrap());

fn all(shape: &Shape) -> Vec<u32> {
    (0..shape.cpu_count()).collect()
}

/// Two processors of which the hypervisor says no more.
fn virtual_machine() -> Tree {
    let tree = Tree::new();
    tree.file("sys/devices/system/cpu/online", "0-1\n").file("proc/cpuinfo", "flags : fpu hypervisor\n");
    tree.cpu(0, "topology/physical_package_id", "-1").cpu(0, "topology/thread_siblings_list", "0\n");
    tree
}

#[test]
fn a_virtual_machine_that_says_little() {
    let topology = Topology::read(virtual_machine().root(), &[0, 1]).unwrap();
    assert_eq!(topology.cpus.len(), 2);
    assert_eq!((topology.cpus[0].package, topology.cpus[1].node, topology.last_level()), (None, None, None));
    assert_eq!(topology.distance(0, 1), Distance::Package, "nothing separates them");
    let absences = topology.absences().join("\n");
    for part in ["virtual machine", "SMT", "nothing of NUMA", "nothing of caches"] {
        assert!(absences.contains(part), "{absences}");
    }
}

#[test]
fn a_desktop_with_two_threads_per_core() {
    let topology = Topology::read(DESKTOP.tree().root(), &all(&DESKTOP)).unwrap();
    assert_eq!(topology.model.as_deref(), Some("Test Processor 9000"));
    assert_eq!(topology.cpus[3].siblings, [3, 11]);
    assert_eq!((topology.cpus[11].core(), topology.cpus[11].package, topology.cpus[11].node), (3, Some(0), Some(0)));
    assert_eq!(topology.cpus[0].cache(1).unwrap().kind, CacheKind::Data);
    assert_eq!(topology.cpus[0].cache(3).unwrap().bytes, Some(32 << 20));
    assert_eq!(topology.distance(3, 11), Distance::Core);
    assert_eq!(topology.distance(3, 4), Distance::Cache(3));
    assert_eq!(topology.distance(3, 3), Distance::Same);
    assert_eq!(topology.distance(3, 99), Distance::Machine);
    assert_eq!(topology.absences(), ["there is one NUMA node: all memory is equally near"]);
}

#[test]
fn two_sockets_with_split_caches() {
    let topology = &*SERVER_TOPOLOGY;
    assert_eq!(topology.cpus.len(), 64);
    let expected = [
        ((0, 32), Distance::Core),
        ((0, 3), Distance::Cache(3)),
        ((0, 35), Distance::Cache(3)),
        ((0, 4), Distance::Node),
        ((0, 8), Distance::Package),
        ((0, 16), Distance::Machine),
    ];
    for ((a, b), distance) in expected {
        assert_eq!((topology.distance(a, b), topology.distance(b, a)), (distance, distance), "{a}-{b}");
    }
    assert_eq!((topology.node_distances[&(0, 1)], topology.node_distances[&(0, 3)]), (12, 32));
    assert_eq!((topology.count(|cpu| cpu.node), topology.count(|cpu| cpu.package)), (4, 2));
    assert!(topology.absences().is_empty());
}

#[test]
fn some_are_offline_and_some_not_allowed() {
    let tree = DESKTOP.tree();
    tree.file("sys/devices/system/cpu/online", "0-7,9\n");
    let topology = Topology::read(tree.root(), &[5, 2, 2]).unwrap();
    assert_eq!((topology.cpus.len(), topology.allowed.as_slice()), (9, &[2, 5][..]));
    assert_eq!(topology.cpu(1).unwrap().siblings, [1, 9]);
    assert_eq!(topology.cpu(2).unwrap().siblings, [2], "its sibling 10 is offline");
    assert!(topology.absences().iter().any(|absence| absence.contains("only 2 of the 9")));
    assert!(matches!(Topology::read(tree.root(), &[10]), Err(TopologyError::Offline(10))));
    assert!(matches!(Topology::read(tree.root(), &[]), Err(TopologyError::Nowhere)));
}

#[test]
fn no_sysfs_at_all_is_a_flat_machine() {
    let topology = Topology::read(Tree::new().root(), &[1, 4]).unwrap();
    assert_eq!(topology, Topology::flat(&[1, 4]));
}

#[test]
fn files_that_are_wrong_are_named() {
    // One package of the desktop's with few cores: each file is written once.
    let shape = Shape { cores: 4, cores_per_l3: 4, ..DESKTOP };
    let wrongs: [(&str, &str, &str); 14] = [
        ("sys/devices/system/cpu/online", "0-x", "`x` is not a processor number"),
        ("sys/devices/system/cpu/online", "0-4294967296", "beyond 1023"),
        ("sys/devices/system/cpu/cpu1/topology/core_cpus_list", "2", "processor 1 is not in its own group `2`"),
        ("sys/devices/system/cpu/cpu1/topology/core_cpus_list", "0-1,5", "something else of its core"),
        ("sys/devices/system/cpu/cpu1/topology/core_cpus_list", "", "not in its own group"),
        ("sys/devices/system/cpu/cpu1/topology/physical_package_id", "-2", "-2 is not a package"),
        ("sys/devices/system/cpu/cpu1/topology/physical_package_id", "99999999999999999999", "is not a number"),
        ("sys/devices/system/cpu/cpu1/cache/index0/level", "0", "a cache level that is not 1 to 8"),
        ("sys/devices/system/cpu/cpu1/cache/index0/level", "\u{1b}[2J", "\\u{1b}[2J` is not a number"),
        ("sys/devices/system/cpu/cpu1/cache/index0/type", "Victim", "neither Data"),
        ("sys/devices/system/cpu/cpu1/cache/index3/shared_cpu_list", "7-3", "goes backwards"),
        ("sys/devices/system/cpu/cpu1/cache/index3/size", "99999999999999G", "not a size"),
        ("sys/devices/system/node/node0/distance", "10 20", "not 1 distances"),
        ("sys/devices/system/node/online", "0-1", "processor 3 belongs to node 0 as well"),
    ];
    let tree = shape.tree();
    tree.node(1, "cpulist", "3").node(1, "distance", "10");
    let read = || Topology::read(tree.root(), &all(&shape));
    read().unwrap();
    let is_named = |name: &str, text, part: &str| {
        let error = tree.with(name, text, read).unwrap_err().to_string();
        assert!(error.contains(part), "{name}: {error}");
        assert!(error.len() < 600 && !error.contains('\u{1b}'), "{error}");
    };
    for (name, text, part) in wrongs {
        if name.ends_with("node/online") {
            tree.node(0, "distance", "10 20").node(1, "distance", "20 10");
        }
        is_named(name, Text::Of(text), part);
    }
    tree.node(0, "distance", "10");
    is_named("proc/cpuinfo", Text::Zeros((4 << 20) + 1), "more than 4194304 bytes");
    tree.with("proc/cpuinfo", Text::Zeros(4 << 20), read).unwrap();
}

#[test]
fn no_file_at_all_where_one_should_be() {
    let name = "sys/devices/system/cpu/cpu1/topology/core_cpus_list";
    let tree = DESKTOP.tree();
    let path = tree.root().join(name);
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    let error = Topology::read(tree.root(), &all(&DESKTOP)).unwrap_err().to_string();
    assert!(error.contains("not a regular file") && error.contains(name), "{error}");
    std::fs::remove_dir(&path).unwrap();
    // Opening a pipe without a writer would never return.
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    assert!(Topology::read(tree.root(), &all(&DESKTOP)).unwrap_err().to_string().contains("not a regular file"));
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, b"\xff\xfe").unwrap();
    assert!(Topology::read(tree.root(), &all(&DESKTOP)).unwrap_err().to_string().contains("not text"));
}

#[test]
fn this_machine_is_understood() {
    let topology = Topology::discover().unwrap();
    assert!(!topology.allowed.is_empty());
    for &a in &topology.allowed {
        for &b in &topology.allowed {
            assert_eq!(topology.distance(a, b), topology.distance(b, a));
        }
    }
}

#[test]
fn every_distance_gets_its_share_of_the_sample() {
    let topology = &*SERVER_TOPOLOGY;
    let plan = plan(topology);
    assert_eq!(plan.len(), 64 * 63);
    let distinct: std::collections::BTreeSet<_> = plan.iter().collect();
    assert_eq!(distinct.len(), plan.len());
    for part in plan.chunks(5).take(64) {
        let kinds: std::collections::BTreeSet<_> = part.iter().map(|&(a, b)| topology.distance(a, b)).collect();
        assert_eq!(kinds.len(), 5, "{part:?}");
    }
    assert!(plan[..200].iter().map(|(from, _)| from).collect::<std::collections::BTreeSet<_>>().len() > 32);
}

#[test]
fn what_was_not_measured_is_filled_in_and_marked() {
    let topology = &*SERVER_TOPOLOGY;
    let plan = plan(topology);
    let near = |ns| HandOver { origin: Origin::Measured, ..HandOver::stand_in(ns, Origin::Measured) };
    let measured = BTreeMap::from([((0, 1), near(50.0)), ((1, 0), near(70.0)), ((2, 3), near(60.0))]);
    let matrix = Matrix::new(topology.allowed.clone(), fill(topology, &plan, measured)).unwrap();
    let get = |a, b| (matrix.get(a, b).unwrap().ns, matrix.get(a, b).unwrap().origin);
    assert_eq!(get(1, 0), (70.0, Origin::Measured));
    assert_eq!(get(4, 5), (60.0, Origin::Estimated));
    assert_eq!(get(0, 16), (Distance::Machine.nominal_ns(), Origin::Nominal));
    assert_eq!(matrix.count(Origin::Measured), 3);
}

/// Real, on whatever this machine has; nothing is asserted about how long it took, and the limit is one that no machine
/// reaches however busy it is.
#[test]
fn a_measurement_fills_the_matrix() {
    let mut topology = Topology::discover().unwrap();
    topology.allowed.truncate(2);
    let effort = Effort { budget: Duration::ZERO, rounds: 9, pair_limit: Duration::from_secs(60) };
    let matrix = measure(&topology, effort, |_, _| {}).unwrap();
    assert_eq!(matrix.cpus(), topology.allowed);
    if let [a, b] = topology.allowed[..] {
        let measured = matrix.count(Origin::Measured);
        assert!(measured >= 1, "the budget does not cut off the first of a kind");
        let (there, back) = (matrix.get(a, b).unwrap(), matrix.get(b, a).unwrap());
        assert!([there, back].iter().all(|hand_over| hand_over.low_ns <= hand_over.high_ns));
        assert!(matrix.get(a, a).is_none());
    }
    topology.allowed = vec![1023];
    topology.allowed.push(0);
    let error = measure(&topology, effort, |_, _| {}).unwrap_err().to_string();
    assert!(error.contains("processor 1023") || error.contains("processor 0"), "{error}");
}

fn some_matrix(cpus: &[u32]) -> Matrix {
    let pairs = cpus.iter().flat_map(|&from| cpus.iter().map(move |&to| (from, to))).filter(|(from, to)| from != to);
    let entries =
        pairs.map(|(from, to)| ((from, to), HandOver::stand_in(f64::from(from + 2 * to) + 1.0, Origin::Measured)));
    Matrix::new(cpus.to_vec(), entries).unwrap()
}

#[test]
fn a_matrix_is_complete_and_sane() {
    let cell = HandOver::stand_in(1.0, Origin::Measured);
    let new = |cpus: &[u32], pairs: &[((u32, u32), HandOver)]| Matrix::new(cpus.to_vec(), pairs.to_vec());
    assert_eq!(new(&[1, 0], &[]), Err(MatrixError::Cpus));
    assert_eq!(new(&[0, 1024], &[]), Err(MatrixError::Cpus));
    assert_eq!(new(&[0, 1], &[((0, 1), cell)]), Err(MatrixError::Missing(1, 0)));
    assert_eq!(new(&[0, 1], &[((0, 2), cell)]), Err(MatrixError::Surplus(0, 2)));
    assert_eq!(new(&[0, 1], &[((0, 1), cell), ((0, 1), cell)]), Err(MatrixError::Surplus(0, 1)));
    for ns in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e10] {
        let wrong = HandOver { ns, ..cell };
        assert_eq!(new(&[0, 1], &[((0, 1), wrong), ((1, 0), cell)]), Err(MatrixError::Value(0, 1)), "{ns}");
    }
    assert!(new(&[7], &[]).unwrap().pairs().next().is_none());
}

#[test]
fn what_was_kept_is_found_again_and_nothing_else_is_believed() {
    let tree = DESKTOP.tree();
    let topology = Topology::read(tree.root(), &[0, 1, 2]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("a/b");
    assert!(store::load(&cache, &topology).unwrap().is_none());
    let matrix = some_matrix(&[0, 1, 2]);
    let file = store::save(&cache, &topology, &matrix).unwrap();
    assert_eq!(store::load(&cache, &topology).unwrap(), Some(matrix));
    assert_eq!(std::fs::read_dir(&cache).unwrap().count(), 1, "nothing half-written is left");
    let fewer = Topology { allowed: vec![1], ..topology.clone() };
    assert!(store::load(&cache, &fewer).unwrap().is_some());
    let more = Topology { allowed: vec![1, 3], ..topology.clone() };
    assert!(store::load(&cache, &more).unwrap_err().to_string().contains("processor 3 was not measured"));
    let other = Topology { model: Some("other".into()), ..topology.clone() };
    assert!(store::load(&cache, &other).unwrap().is_none());
    let text = std::fs::read_to_string(&file).unwrap();
    let fingerprint = store::fingerprint(&topology);
    for (wrong, part) in [
        (text.replace("\"version\":1", "\"version\":2"), "it has version 2"),
        (text.replace(&fingerprint, "0123456789abcdef"), "belongs to the machine 0123"),
        (text.replace("\"to\":2", "\"to\":9"), "does not belong there"),
        (text.replace("\"ns\":", "\"ns\":-"), "no sensible duration"),
        (text[..text.len() / 2].to_owned(), "EOF"),
        ("[]".into(), "invalid"),
        (String::new(), "EOF"),
    ] {
        std::fs::write(&file, &wrong).unwrap();
        let error = store::load(&cache, &topology).unwrap_err().to_string();
        assert!(error.contains(part), "{part}: {error}");
    }
    // Zeros that are nowhere on the device.
    std::fs::File::create(&file).unwrap().set_len(store::MAX_BYTES + 1).unwrap();
    assert!(store::load(&cache, &topology).unwrap_err().to_string().contains("more than 33554432 bytes"));
    std::fs::remove_file(&file).unwrap();
    std::fs::create_dir(&file).unwrap();
    assert!(store::load(&cache, &topology).unwrap_err().to_string().contains("not a regular file"));
}

#[test]
fn any_text_in_any_file_is_judged() {
    let names = [
        "cpu/online",
        "cpu/cpu1/topology/core_cpus_list",
        "cpu/cpu1/topology/physical_package_id",
        "cpu/cpu1/cache/index3/level",
        "cpu/cpu1/cache/index3/shared_cpu_list",
        "cpu/cpu1/cache/index3/size",
        "node/node0/cpulist",
        "node/node0/distance",
    ];
    // The tree is made once for all cases.
    let small = Shape { packages: 1, cores: 2, threads: 1, cores_per_l3: 2, nodes_per_package: 1 };
    let tree = small.tree();
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    let cases = (0..names.len(), "[0-9,\\- KMG\\PC\n]{0,20}");
    let judged = TestRunner::new(config).run(&cases, |(file, text)| {
        let name = format!("sys/devices/system/{}", names[file]);
        let read = tree.with(&name, Text::Of(&text), || Topology::read(tree.root(), &[0, 1]));
        if let Ok(topology) = read {
            prop_assert_eq!(topology.distance(0, 1), topology.distance(1, 0));
        }
        Ok(())
    });
    judged.unwrap();
}
