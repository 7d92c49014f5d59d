//! Plans against the best of all, and what they promise.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::collections::BTreeSet;

use fido_core::topology::{Cache, CacheKind, Cpu, HandOver, Origin};
use proptest::prelude::*;

use super::search::{Quality, Solution, solve, solve_from};
use super::*;
use crate::manifest::{Domain, Link};

/// Cores with `threads` each, numbered as Linux does; `per_l3` of them share a cache, `per_node` a package and node.
fn machine(cores: u32, threads: u32, per_l3: u32, per_node: u32) -> Topology {
    let group = |core: u32, size: u32| {
        let first = core / size * size;
        let mut cpus: Vec<u32> =
            (0..threads).flat_map(|t| (first..first + size).map(move |core| t * cores + core)).collect();
        cpus.sort_unstable();
        cpus
    };
    let cpu = |number: u32| {
        let core = number % cores;
        let l3 = Cache { level: 3, kind: CacheKind::Unified, bytes: None, shared: group(core, per_l3) };
        let home = Some(core / per_node);
        Cpu { number, siblings: group(core, 1), package: home, node: home, caches: vec![l3] }
    };
    let cpus: Vec<Cpu> = (0..cores * threads).map(cpu).collect();
    let allowed = cpus.iter().map(|cpu| cpu.number).collect();
    Topology { cpus, allowed, ..Topology::flat(&[]) }
}

fn appliance(cpus: &[(&str, Cpus)], links: &[(&str, &str, u16)]) -> Manifest {
    let mut manifest = Manifest::new("test");
    let domain = |(name, cpus): &(&str, Cpus)| Domain { cpus: cpus.clone(), ..Domain::new(*name, "/bin/sh") };
    manifest.domains = cpus.iter().map(domain).collect();
    let link = |(a, b, lanes): &(&str, &str, u16)| Link { lanes: *lanes, ..Link::new(format!("{a}{b}"), *a, *b) };
    manifest.links = links.iter().map(link).collect();
    manifest
}

const AUTO: Cpus = Cpus::Auto(1);

fn nas() -> Manifest {
    appliance(&[("net", AUTO), ("fs", AUTO), ("disk", AUTO)], &[("net", "fs", 1), ("fs", "disk", 2)])
}

fn chosen(plan: &Plan) -> Vec<Vec<u32>> {
    plan.places.iter().map(|place| place.cpus().to_vec()).collect()
}

fn matrix(topology: &Topology, ns: impl Fn(u32, u32) -> f64) -> Matrix {
    let cpus = &topology.allowed;
    let pairs = cpus.iter().flat_map(|&a| cpus.iter().map(move |&b| (a, b))).filter(|(a, b)| a != b);
    let cell = |(a, b)| {
        let ns = ns(a, b);
        (
            (a, b),
            HandOver { ns, low_ns: ns, high_ns: ns, write_ns: ns, read_ns: ns, rounds: 9, origin: Origin::Measured },
        )
    };
    Matrix::new(cpus.clone(), pairs.map(cell)).unwrap()
}

#[test]
fn linked_domains_share_a_cache_and_not_a_core() {
    let topology = machine(8, 2, 4, 8);
    let plan = plan(&nas(), &topology, None);
    let cpus: Vec<u32> = chosen(&plan).concat();
    assert_eq!(cpus.len(), 3);
    for (&a, &b) in cpus.iter().zip(&cpus[1..]) {
        assert_eq!(topology.distance(a, b), Distance::Cache(3), "{cpus:?}");
    }
    assert_eq!(plan.links.iter().map(|link| link.distance).max(), Some(Distance::Cache(3)));
    assert!(plan.decides() && plan.remarks.is_empty() && plan.basis == Basis::Topology, "{plan}");
}

#[test]
fn siblings_are_used_when_no_whole_core_is_left() {
    let topology = machine(2, 2, 2, 2);
    let mut manifest = nas();
    let two = appliance(&[("fs", AUTO), ("disk", AUTO)], &[("fs", "disk", 1)]);
    assert_eq!(chosen(&plan(&two, &topology, None)), [[0], [1]]);
    let plan3 = plan(&manifest, &topology, None);
    let cores: BTreeSet<u32> = chosen(&plan3).concat().iter().map(|cpu| cpu % 2).collect();
    assert_eq!(cores.len(), 2);
    // Of the pairs that could share a core it is the one with more lanes.
    assert_eq!(topology.distance(chosen(&plan3)[1][0], chosen(&plan3)[2][0]), Distance::Core);
    manifest.domains.push(Domain { cpus: AUTO, ..Domain::new("log", "/bin/sh") });
    let plan4 = plan(&manifest, &topology, None);
    assert_eq!(chosen(&plan4).concat().into_iter().collect::<BTreeSet<_>>().len(), 4);
}

#[test]
fn the_measured_matrix_decides_where_there_is_one() {
    let topology = machine(6, 1, 6, 6);
    // 1, 3 and 5 are near each other, whatever the topology says.
    let matrix = matrix(&topology, |a, b| if a % 2 == 1 && b % 2 == 1 { 30.0 } else { 90.0 });
    let plan = plan(&nas(), &topology, Some(&matrix));
    assert_eq!(chosen(&plan).concat().into_iter().collect::<BTreeSet<_>>(), BTreeSet::from([1, 3, 5]));
    assert_eq!((plan.basis, plan.links[0].ns), (Basis::Measured, Some(30)));
    assert!(plan.to_string().contains("link fsdisk: shared L3, 30 ns"), "{plan}");
}

#[test]
fn a_matrix_without_a_measurement_is_not_called_measured() {
    let topology = machine(4, 1, 4, 4);
    let measured = matrix(&topology, |a, b| f64::from(a + b) * 10.0);
    let but = |origin: Origin, except: Option<(u32, u32)>| {
        let origin = |pair| if Some(pair) == except { Origin::Measured } else { origin };
        let cells = measured.pairs().map(|(pair, cell)| (pair, HandOver { origin: origin(pair), ..*cell }));
        Matrix::new(topology.allowed.clone(), cells).unwrap()
    };
    for origin in [Origin::Nominal, Origin::Estimated] {
        let plan_of = plan(&nas(), &topology, Some(&but(origin, None)));
        let by_topology = plan(&nas(), &topology, None);
        assert_eq!((plan_of.basis, &plan_of.places), (Basis::Topology, &by_topology.places));
        assert_eq!(plan_of.links, by_topology.links);
        assert!(plan_of.to_string().contains("nothing in the kept matrix was measured"), "{plan_of}");
    }
    // One is enough to rest on, but an estimate is not shown as measured.
    let one = plan(&nas(), &topology, Some(&but(Origin::Estimated, Some((0, 1)))));
    assert!(one.basis == Basis::Measured && one.remarks.is_empty(), "{one}");
    assert!(one.links.iter().all(|link| link.ns.is_none()), "{one}");
    // Nor does one count that is not between processors that may be used.
    let fewer = Topology { allowed: vec![1, 2, 3], ..topology.clone() };
    assert_eq!(plan(&nas(), &fewer, Some(&but(Origin::Estimated, Some((0, 1))))).basis, Basis::Topology);
}

#[test]
fn the_heavier_link_gets_the_nearer_pair() {
    let topology = machine(4, 1, 4, 4);
    let near = |a: u32, b: u32| if (a.min(b), a.max(b)) == (2, 3) { 20.0 } else { 100.0 };
    let manifest = appliance(&[("a", AUTO), ("b", AUTO), ("c", AUTO)], &[("a", "b", 1), ("b", "c", 3)]);
    let places = chosen(&plan(&manifest, &topology, Some(&matrix(&topology, near))));
    assert_eq!(BTreeSet::from([places[1][0], places[2][0]]), BTreeSet::from([2, 3]));
}

#[test]
fn given_processors_are_respected_and_are_where_the_links_lead() {
    let topology = machine(8, 1, 4, 8);
    let manifest = appliance(
        &[("net", Cpus::List(vec![5, 6])), ("fs", AUTO), ("disk", AUTO), ("log", Cpus::All)],
        &[("net", "fs", 1), ("fs", "disk", 1), ("fs", "log", 64)],
    );
    let plan = plan(&manifest, &topology, None);
    assert_eq!(plan.places[0], Place::Given(vec![5, 6]));
    assert_eq!(plan.places[3], Place::Anywhere);
    let rest: Vec<u32> = [chosen(&plan)[1].clone(), chosen(&plan)[2].clone()].concat();
    assert_eq!(rest.iter().collect::<BTreeSet<_>>(), BTreeSet::from([&4, &7]), "beside the given ones");
}

#[test]
fn several_processors_for_one_domain_stay_together() {
    let topology = machine(8, 1, 4, 8);
    let manifest = appliance(&[("a", AUTO), ("many", Cpus::Auto(3)), ("b", AUTO)], &[("a", "b", 1), ("many", "a", 2)]);
    let places = chosen(&plan(&manifest, &topology, None));
    assert_eq!(places[1].len(), 3);
    let near: BTreeSet<u32> = places[1].iter().chain(&places[0]).map(|cpu| cpu / 4).collect();
    assert_eq!(near.len(), 1, "{places:?}");
    assert!(!places[1].contains(&places[0][0]) && places[1].is_sorted());
}

#[test]
fn who_is_left_over_is_not_pinned_and_it_is_said() {
    let topology = machine(2, 1, 2, 2);
    let plan2 = plan(&nas(), &topology, None);
    assert_eq!(plan2.places, [Place::LeftOver, Place::Chosen(vec![0]), Place::Chosen(vec![1])]);
    let [remark] = &plan2.remarks[..] else { panic!("{plan2}") };
    assert!(remark.contains("`net` wants 1") && remark.contains("0 of the 2") && remark.contains("not pinned"));
    let mut manifest = nas();
    plan2.apply(&mut manifest);
    assert_eq!(manifest.domains[0].cpus, Cpus::All);
    assert_eq!(manifest.domains[2].cpus, Cpus::List(vec![1]));
    // One that is too big does not keep the others from theirs.
    let big = appliance(&[("big", Cpus::Auto(3)), ("small", AUTO)], &[("big", "small", 9)]);
    assert_eq!(plan(&big, &topology, None).places, [Place::LeftOver, Place::Chosen(vec![0])]);
    // Exactly enough, and one too few.
    let all = appliance(&[("big", Cpus::Auto(2))], &[]);
    assert_eq!(plan(&all, &topology, None).places, [Place::Chosen(vec![0, 1])]);
    let taken = appliance(&[("given", Cpus::List(vec![0])), ("big", Cpus::Auto(2))], &[]);
    assert_eq!(plan(&taken, &topology, None).places[1], Place::LeftOver);
    // Processors that are given away and not allowed here leave no fewer.
    let elsewhere = appliance(&[("given", Cpus::List(vec![1, 5, 6, 7])), ("big", Cpus::Auto(2))], &[]);
    let plan2 = plan(&elsewhere, &topology, None);
    assert!(plan2.places[1] == Place::LeftOver && plan2.remarks[0].contains("1 of the 2 processors"), "{plan2}");
}

#[test]
fn without_auto_there_is_nothing_to_decide() {
    let plan = Plan::here(&appliance(&[("a", Cpus::All), ("b", Cpus::List(vec![0]))], &[("a", "b", 1)]));
    assert!(!plan.decides());
    assert_eq!(plan.places, [Place::Anywhere, Place::Given(vec![0])]);
}

#[test]
fn guests_of_xen_are_not_placed_here() {
    let plan = Plan::here(&Manifest { platform: Platform::Xen, ..nas() });
    assert!(!plan.decides() && plan.places.iter().all(|place| *place == Place::Anywhere));
}

#[test]
fn a_large_appliance_on_a_large_machine_is_placed_with_bounded_work() {
    let topology = machine(128, 2, 8, 64);
    let names: Vec<String> = (0..40).map(|n| format!("d{n}")).collect();
    let domains: Vec<(&str, Cpus)> = names.iter().map(|name| (name.as_str(), AUTO)).collect();
    let links: Vec<(&str, &str, u16)> =
        (1..40).map(|n| (names[n / 2].as_str(), names[n].as_str(), 1 + n as u16 % 4)).filter(|l| l.0 != l.1).collect();
    let manifest = appliance(&domains, &links);
    let plan = plan(&manifest, &topology, None);
    let cpus: BTreeSet<u32> = chosen(&plan).concat().into_iter().collect();
    assert_eq!(cpus.len(), 40);
    assert_eq!(cpus.iter().map(|cpu| cpu % 128).collect::<BTreeSet<_>>().len(), 40, "nobody shares a core");
    // In the order of the manifest, one core after the other, would be the obvious plan.
    let obvious: u64 = links
        .iter()
        .map(|(a, b, lanes)| {
            let at = |name: &str| names.iter().position(|other| other == name).unwrap() as u32;
            u64::from(*lanes) * cost(&topology, None, at(a), at(b))
        })
        .sum();
    let planned: u64 = links
        .iter()
        .map(|(a, b, lanes)| {
            let at = |name: &str| plan.places[names.iter().position(|other| other == name).unwrap()].cpus()[0];
            u64::from(*lanes) * cost(&topology, None, at(a), at(b))
        })
        .sum();
    assert!(planned < obvious, "{planned} against {obvious}");
}

#[test]
fn a_domain_of_very_many_processors_is_placed_with_bounded_work() {
    // Each processor of the domain weighs with each other one: 125,000 pairs.
    let topology = machine(512, 1, 8, 256);
    let manifest = appliance(&[("all", Cpus::Auto(500)), ("one", AUTO)], &[("all", "one", 1)]);
    let plan = plan(&manifest, &topology, None);
    let cpus: BTreeSet<u32> = chosen(&plan).concat().into_iter().collect();
    assert_eq!(cpus.len(), 501);
    assert!(plan.remarks.iter().any(|remark| remark.contains("too many possibilities")), "{plan}");
}

/// The best of all arrangements, by trying every one; without any of the search's arithmetic.
fn best_of_all(problem: &Problem, domains: &[usize]) -> Quality {
    fn each(problem: &Problem, domains: &[usize], at: &mut Vec<usize>, best: &mut Option<Quality>) {
        if at.len() == domains.len() {
            let mut used = std::collections::BTreeMap::<usize, usize>::new();
            at.iter().for_each(|&place| *used.entry(problem.cores[place]).or_default() += 1);
            let place = |domain| domains.iter().position(|other| *other == domain).map(|slot| at[slot]);
            let link = |&(a, b, lanes): &(usize, usize, u64)| Some(lanes * 5040 * problem.costs[place(a)?][place(b)?]);
            let shared = used.values().map(|count| count - 1).sum();
            let quality = Quality { shared, cost: problem.links.iter().filter_map(link).sum() };
            *best = Some(best.map_or(quality, |best| best.min(quality)));
            return;
        }
        for place in 0..problem.cores.len() {
            if !at.contains(&place) {
                at.push(place);
                each(problem, domains, at, best);
                at.pop();
            }
        }
    }
    let mut best = None;
    each(problem, domains, &mut Vec::new(), &mut best);
    best.unwrap()
}

fn small_problem() -> impl Strategy<Value = Problem> {
    (2usize..=6, 1usize..=4, 1usize..=2).prop_flat_map(|(places, domains, threads)| {
        let costs = proptest::collection::vec(1u64..1000, places * places);
        let links = proptest::collection::vec((0..domains, 0..domains, 1u64..8), 0..5);
        (costs, links).prop_map(move |(costs, links)| Problem {
            cores: (0..places).map(|place| place / threads).collect(),
            costs: (0..places)
                .map(|a| (0..places).map(|b| if a == b { 0 } else { costs[a.min(b) * places + a.max(b)] }).collect())
                .collect(),
            domains: vec![Demand::Some(1); domains],
            links: links.into_iter().filter(|(a, b, _)| a != b).collect(),
        })
    })
}

fn is_sound(problem: &Problem, solution: &Solution) -> bool {
    let all: Vec<usize> = solution.places.iter().flatten().flatten().copied().collect();
    let distinct: BTreeSet<usize> = all.iter().copied().collect();
    distinct.len() == all.len() && all.iter().all(|place| *place < problem.cores.len())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn small_cases_are_the_best_of_all(problem in small_problem()) {
        let solution = solve(&problem);
        prop_assert!(is_sound(&problem, &solution) && solution.proven);
        let served: Vec<usize> =
            (0..problem.domains.len()).filter(|domain| solution.places[*domain].is_some()).collect();
        prop_assert_eq!(served.len(), problem.domains.len().min(problem.cores.len()), "nobody is left over without need");
        let best = best_of_all(&problem, &served);
        prop_assert_eq!(solution.quality, best);
        let branched = solve_from(&problem, 0);
        prop_assert!(is_sound(&problem, &branched) && branched.proven);
        prop_assert_eq!(branched.quality, best, "by branch and bound alone");
        prop_assert_eq!(&solve(&problem), &solution, "and always the same");
    }

    #[test]
    fn mixed_demands_are_met_soundly(
        problem in small_problem(),
        demands in proptest::collection::vec((0usize..4, 0usize..6), 4),
    ) {
        let places = problem.cores.len();
        let demand = |(kind, n): &(usize, usize)| match kind {
            0 => Demand::Anywhere,
            1 => Demand::Fixed(vec![n % places]),
            _ => Demand::Some(n % 3),
        };
        let domains: Vec<Demand> = demands.iter().map(demand).take(problem.domains.len()).collect();
        let problem = Problem { domains, ..problem };
        let solution = solve(&problem);
        prop_assert!(is_sound(&problem, &solution));
        for (demand, places) in problem.domains.iter().zip(&solution.places) {
            match (demand, places) {
                (Demand::Some(count), Some(places)) => prop_assert_eq!(places.len(), *count),
                (_, Some(_)) => prop_assert!(false, "a place for somebody who has one"),
                (_, None) => {}
            }
            for given in problem.domains.iter().filter_map(|d| if let Demand::Fixed(given) = d { Some(given) } else { None }) {
                prop_assert!(places.iter().flatten().all(|place| !given.contains(place)));
            }
        }
    }
}
