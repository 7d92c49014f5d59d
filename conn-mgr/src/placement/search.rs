//! The arithmetic of placement: from costs and links to places. Pure, and the same result for the same question.
//!
//! It is a quadratic assignment problem: each *slot* (a processor that a domain wants) gets one *place* (a processor that
//! is free), so that first as few as possible share a core, and then the sum over all pairs of slots of weight × cost is
//! the least. Solved by branch and bound (Gilmore, "Optimal and suboptimal algorithms for the quadratic assignment
//! problem", 1962), which begins with the best that greedy starts and exchanges of pairs find. The work is bounded, so
//! for large appliances on large machines the result may be less than the best; it says whether it is proven.

use std::collections::{BTreeMap, BTreeSet};

/// What a link of one lane weighs; divisible by many numbers of pairs.
const UNIT: u64 = 5040;
/// Costs above this count as this: so sums stay far from the limit of their type.
pub const MAX_COST: u64 = 10_000_000;
/// What branch and bound, the greedy starts and the exchanges may each cost before they make do: candidates, and the pairs
/// of slots that are looked at for each.
const MAX_WORK: usize = 4_000_000;
/// Places for the first slot from which a greedy solution is tried.
const MAX_STARTS: usize = 32;

/// What a domain wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Demand {
    /// It runs anywhere.
    Anywhere,
    /// It has these places, alone or with others.
    Fixed(Vec<usize>),
    /// It wants so many places of its own.
    Some(usize),
}

/// The question.
#[derive(Debug, Clone, Default)]
pub struct Problem {
    /// For each place, its core.
    pub cores: Vec<usize>,
    /// What a hand-over between two places costs, there and back; symmetric.
    pub costs: Vec<Vec<u64>>,
    /// The domains.
    pub domains: Vec<Demand>,
    /// Pairs of domains with the number of lanes between them.
    pub links: Vec<(usize, usize, u64)>,
}

/// How good a solution is; less is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Quality {
    /// Processors in use beyond the first of their core.
    pub shared: usize,
    /// The weighted sum of the costs.
    pub cost: u64,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Solution {
    /// For each domain that wants places: its places in rising order; `None` if there are not enough of them.
    pub places: Vec<Option<Vec<usize>>>,
    /// How good it is.
    pub quality: Quality,
    /// Whether nothing better exists.
    pub proven: bool,
}

/// Solves it.
pub fn solve(problem: &Problem) -> Solution {
    solve_from(problem, MAX_STARTS)
}

/// Solves it with at most so many greedy starts. With none it is all up to branch and bound.
pub(super) fn solve_from(problem: &Problem, starts: usize) -> Solution {
    let slots = Slots::of(problem);
    let mut search = Search::new(problem, &slots);
    search.greedy(starts);
    search.descend(0);
    let mut places: Vec<Option<Vec<usize>>> = vec![None; problem.domains.len()];
    for (&domain, &place) in slots.domains.iter().zip(&search.best) {
        places[domain].get_or_insert_default().push(place);
    }
    places.iter_mut().flatten().for_each(|places| places.sort_unstable());
    Solution { places, quality: search.best_quality, proven: !search.exhausted }
}

/// Who gets places at all: those with most lanes first, as long as there are enough; of equals, the first.
fn served(problem: &Problem, mut free: usize) -> Vec<usize> {
    let lanes = |domain: usize| {
        let links = problem.links.iter().filter(|(a, b, _)| *a == domain || *b == domain);
        links.map(|(_, _, lanes)| *lanes).sum::<u64>()
    };
    let wants = |domain: &usize| matches!(problem.domains[*domain], Demand::Some(count) if count > 0);
    let mut order: Vec<(u64, usize)> =
        (0..problem.domains.len()).filter(wants).map(|domain| (lanes(domain), domain)).collect();
    order.sort_by_key(|&(lanes, domain)| (std::cmp::Reverse(lanes), domain));
    let mut served = Vec::new();
    for (_, domain) in order {
        let Demand::Some(count) = problem.domains[domain] else { continue };
        if count <= free {
            free -= count;
            served.push(domain);
        }
    }
    served
}

/// The slots, those with much to weigh first, and what they weigh.
struct Slots {
    /// For each slot, its domain.
    domains: Vec<usize>,
    /// For each slot, the others that weigh.
    pairs: Vec<Vec<(usize, u64)>>,
    /// For each slot and place, what its links with fixed domains cost there.
    fixed: Vec<Vec<u64>>,
    /// Places that fixed domains use.
    taken: Vec<bool>,
}

impl Slots {
    fn of(problem: &Problem) -> Self {
        let mut taken = vec![false; problem.cores.len()];
        let fixed: BTreeMap<usize, &Vec<usize>> = problem.domains.iter().enumerate().filter_map(fixed_places).collect();
        fixed.values().flat_map(|places| places.iter()).for_each(|&place| taken[place] = true);
        let served = served(problem, taken.iter().filter(|taken| !**taken).count());
        let count = |domain: usize| if let Demand::Some(count) = problem.domains[domain] { count } else { 0 };
        let domains: Vec<usize> = served.iter().flat_map(|&d| std::iter::repeat_n(d, count(d))).collect();
        let mut of: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        domains.iter().enumerate().for_each(|(slot, &domain)| of.entry(domain).or_default().push(slot));
        let mut pairs: Vec<BTreeMap<usize, u64>> = vec![BTreeMap::new(); domains.len()];
        let mut add = |a: usize, b: usize, weight: u64| {
            *pairs[a].entry(b).or_default() += weight;
            *pairs[b].entry(a).or_default() += weight;
        };
        // A domain's own threads share its heap: together they weigh as much as a link of one lane.
        for slots in of.values().filter(|slots| slots.len() > 1) {
            let each = (UNIT / (slots.len() * (slots.len() - 1) / 2) as u64).max(1);
            for (at, &a) in slots.iter().enumerate() {
                slots[at + 1..].iter().for_each(|&b| add(a, b, each));
            }
        }
        let mut at_fixed = vec![vec![0; problem.cores.len()]; domains.len()];
        for &(a, b, lanes) in &problem.links {
            for (a, b) in [(a, b), (b, a)] {
                let Some(slots) = of.get(&a) else { continue };
                if let (Some(others), true) = (of.get(&b), a < b) {
                    let each = (lanes * UNIT / (slots.len() * others.len()) as u64).max(1);
                    slots.iter().for_each(|&a| others.iter().for_each(|&b| add(a, b, each)));
                }
                if let Some(places) = fixed.get(&b).filter(|places| !places.is_empty()) {
                    let each = (lanes * UNIT / (slots.len() * places.len()) as u64).max(1);
                    for &slot in slots {
                        for (place, cost) in at_fixed[slot].iter_mut().enumerate() {
                            *cost += places.iter().map(|&there| each * problem.costs[place][there]).sum::<u64>();
                        }
                    }
                }
            }
        }
        let pairs = pairs.into_iter().map(|others| others.into_iter().collect()).collect();
        Self { domains, pairs, fixed: at_fixed, taken }
    }
}

fn fixed_places((index, demand): (usize, &Demand)) -> Option<(usize, &Vec<usize>)> {
    if let Demand::Fixed(places) = demand { Some((index, places)) } else { None }
}

const NOWHERE: usize = usize::MAX;

struct Search<'a> {
    problem: &'a Problem,
    slots: &'a Slots,
    /// The place of each slot, or [`NOWHERE`].
    at: Vec<usize>,
    /// How many processors of each core are in use.
    used: Vec<usize>,
    free: Vec<bool>,
    /// How many cores nobody uses.
    empty: usize,
    quality: Quality,
    best: Vec<usize>,
    best_quality: Quality,
    /// The weight between slots of which one has no place yet.
    open_weight: u64,
    cheapest: u64,
    work: usize,
    exhausted: bool,
}

impl<'a> Search<'a> {
    fn new(problem: &'a Problem, slots: &'a Slots) -> Self {
        let mut used = vec![0; problem.cores.iter().max().map_or(0, |core| core + 1)];
        for (place, _) in slots.taken.iter().enumerate().filter(|(_, taken)| **taken) {
            used[problem.cores[place]] += 1;
        }
        let empty = problem.cores.iter().filter(|core| used[**core] == 0).collect::<BTreeSet<_>>().len();
        let free: Vec<bool> = slots.taken.iter().map(|taken| !taken).collect();
        let apart = |a: usize| problem.costs[a].iter().enumerate().filter(move |(b, _)| *b != a).map(|(_, cost)| *cost);
        let open_weight = slots.pairs.iter().flatten().map(|(_, weight)| weight).sum::<u64>() / 2;
        Self {
            problem,
            slots,
            at: vec![NOWHERE; slots.domains.len()],
            quality: Quality { shared: used.iter().map(|used: &usize| used.saturating_sub(1)).sum(), cost: 0 },
            used,
            free,
            empty,
            best: Vec::new(),
            best_quality: Quality { shared: usize::MAX, cost: u64::MAX },
            open_weight,
            cheapest: (0..problem.cores.len()).flat_map(apart).min().unwrap_or(0),
            work: 0,
            exhausted: false,
        }
    }

    /// What a slot adds at a place, with the slots that have places.
    fn cost(&self, slot: usize, place: usize) -> u64 {
        let placed = self.slots.pairs[slot].iter().filter(|(other, _)| self.at[*other] != NOWHERE && *other != slot);
        let pairs: u64 = placed.map(|(other, weight)| weight * self.problem.costs[place][self.at[*other]]).sum();
        pairs + self.slots.fixed[slot][place]
    }

    fn put(&mut self, slot: usize, place: usize) {
        let core = self.problem.cores[place];
        self.quality.cost += self.cost(slot, place);
        self.quality.shared += usize::from(self.used[core] > 0);
        self.open_weight -= self.placed_weight(slot);
        self.empty -= usize::from(self.used[core] == 0);
        self.used[core] += 1;
        self.free[place] = false;
        self.at[slot] = place;
    }

    fn take(&mut self, slot: usize) {
        let place = std::mem::replace(&mut self.at[slot], NOWHERE);
        let core = self.problem.cores[place];
        self.free[place] = true;
        self.used[core] -= 1;
        self.empty += usize::from(self.used[core] == 0);
        self.open_weight += self.placed_weight(slot);
        self.quality.shared -= usize::from(self.used[core] > 0);
        self.quality.cost -= self.cost(slot, place);
    }

    fn placed_weight(&self, slot: usize) -> u64 {
        self.slots.pairs[slot].iter().filter(|(other, _)| self.at[*other] != NOWHERE).map(|(_, weight)| weight).sum()
    }

    fn keep_if_better(&mut self) {
        if self.quality < self.best_quality {
            (self.best, self.best_quality) = (self.at.clone(), self.quality);
        }
    }

    fn free_places(&self) -> Vec<usize> {
        (0..self.free.len()).filter(|&place| self.free[place]).collect()
    }

    /// What it takes to weigh a slot at one place.
    fn effort(&self, slot: usize) -> usize {
        1 + self.slots.pairs[slot].len()
    }

    /// From several places for the first slot: each next slot where it costs least, then exchanges. The first start is
    /// always finished: who comes when the work is used up gets the first place, on an idle core if there is one.
    fn greedy(&mut self, starts: usize) {
        let mut work = MAX_WORK;
        if self.at.is_empty() {
            return;
        }
        let places = self.free_places();
        let step = places.len().div_ceil(starts.max(1)).max(1);
        for &start in places.iter().step_by(step).take(starts) {
            self.put(0, start);
            for slot in 1..self.at.len() {
                let places = self.free_places();
                let effort = places.len() * self.effort(slot);
                let is_affordable = effort <= work;
                work -= effort.min(work);
                let cost = |place| if is_affordable { self.cost(slot, place) } else { 0 };
                let weigh = |&place: &usize| (self.used[self.problem.cores[place]] > 0, cost(place), place);
                let Some(place) = places.into_iter().min_by_key(weigh) else { break };
                self.put(slot, place);
            }
            self.exchange();
            self.keep_if_better();
            (0..self.at.len()).for_each(|slot| self.take(slot));
            if work == 0 {
                break;
            }
        }
    }

    /// Moves slots to free places and exchanges pairs while that helps.
    fn exchange(&mut self) {
        let mut work = MAX_WORK / MAX_STARTS;
        let mut improved = true;
        while improved {
            improved = false;
            for slot in 0..self.at.len() {
                let places = self.free_places();
                let exchanges = slot + 1..self.at.len();
                let effort = places.len() * self.effort(slot)
                    + exchanges.map(|other| self.effort(slot) + self.effort(other)).sum::<usize>();
                if work < effort {
                    return;
                }
                work -= effort;
                for place in places {
                    improved |= self.try_move(slot, place);
                }
                for other in slot + 1..self.at.len() {
                    improved |= self.try_swap(slot, other);
                }
            }
        }
    }

    /// Whether it helps; undone otherwise.
    fn try_move(&mut self, slot: usize, place: usize) -> bool {
        let (before, from) = (self.quality, self.at[slot]);
        self.take(slot);
        self.put(slot, place);
        if self.quality < before {
            return true;
        }
        self.take(slot);
        self.put(slot, from);
        false
    }

    /// Whether it helps; undone otherwise.
    fn try_swap(&mut self, a: usize, b: usize) -> bool {
        let before = self.quality;
        self.swap(a, b);
        if self.quality < before {
            return true;
        }
        self.swap(a, b);
        false
    }

    fn swap(&mut self, a: usize, b: usize) {
        let (at_a, at_b) = (self.at[a], self.at[b]);
        self.take(a);
        self.take(b);
        self.put(a, at_b);
        self.put(b, at_a);
    }

    /// All solutions that could be better than the best so far, from this slot on.
    fn descend(&mut self, slot: usize) {
        if slot == self.at.len() {
            self.keep_if_better();
            return;
        }
        for place in self.free_places() {
            self.work += self.effort(slot);
            if self.work > MAX_WORK {
                self.exhausted = true;
                return;
            }
            self.put(slot, place);
            if self.at_least(self.at.len() - slot - 1) < self.best_quality {
                self.descend(slot + 1);
            }
            self.take(slot);
        }
    }

    /// No solution with the slots where they are now is better than this: every further pair costs as much as the
    /// cheapest, and every further slot shares a core once the empty ones are used up.
    fn at_least(&self, to_come: usize) -> Quality {
        Quality {
            shared: self.quality.shared + to_come.saturating_sub(self.empty),
            cost: self.quality.cost + self.open_weight * self.cheapest,
        }
    }
}
