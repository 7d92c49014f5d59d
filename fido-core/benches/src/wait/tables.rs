//! From what was measured to tables.

use fido_core::assignment::WaitStrategy;

use super::Measured;
use super::idle::Idle;
use super::placement::Placed;
use super::regimes::{REGIMES, Turn};
use super::scaling::Phase;
use super::sources::Wakes;
use crate::report::{Column, Limit, Raw, Report, Row, Table, Target, median};

/// How much worse than the better of spinning and sleeping adaptive waiting may be.
const LIMIT: f64 = 1.3;

/// A table for each regime, and what was aimed at in it.
pub fn regimes(measured: &[Measured], rounds: u32, report: &mut Report) {
    for regime in REGIMES {
        let ways: Vec<_> = measured.iter().filter(|measured| measured.regime == regime).collect();
        if ways.is_empty() {
            continue;
        }
        let best = |value: fn(&Measured) -> f64, better: fn(f64, f64) -> f64| {
            let others = ways.iter().filter(|measured| measured.wait != WaitStrategy::Adaptive);
            others.map(|measured| value(measured)).reduce(better).unwrap_or(f64::NAN)
        };
        let (rate_of_best, time_of_best) = (best(rate, f64::max), best(time, f64::min));
        let columns = vec![
            Column::new("median", "us", 2),
            Column::new("p99", "us", 1),
            Column::new("p99.9", "us", 1),
            Column::new("answers", "1/s", 0),
            Column::new("without gaps", "1/s", 0),
            Column::new("cores", "", 2),
            Column::new("sleeps each", "", 3),
            Column::new("bells each", "", 3),
            Column::new("moves", "1/s", 1),
            Column::new("rate / better", "", 2),
            Column::new("median / better", "", 2),
        ];
        let title = format!("{} ({rounds} rounds, ways to wait in turn)", regime.name());
        let mut table = Table::new(regime.table(), title, columns);
        for way in &ways {
            let quantile = |at| way.times.value_at_quantile(at) as f64 / 1000.0;
            let total = |value: fn(&Turn) -> f64| way.turns.iter().map(value).sum::<f64>();
            let answers = total(|turn| turn.answers as f64);
            let cells = [
                time(way),
                quantile(0.99),
                quantile(0.999),
                rate(way),
                answers / total(|turn| turn.busy.as_secs_f64()),
                total(|turn| turn.cpu.as_secs_f64()) / total(|turn| turn.elapsed.as_secs_f64()),
                total(|turn| turn.stats.sleeps as f64) / answers,
                total(|turn| turn.stats.bells_rung as f64) / answers,
                total(|turn| turn.stats.moves as f64) / total(|turn| turn.elapsed.as_secs_f64()),
                rate(way) / rate_of_best,
                time(way) / time_of_best,
            ];
            let cells = cells.into_iter().map(Some).collect();
            table.rows.push(Row { raw: Raw::of(&way.times), ..Row::new(name(way.wait), cells) });
            if way.wait == WaitStrategy::Adaptive {
                let mut aim = |what: &str, ratio| {
                    let what = format!("{}: {what}, worse than the better by", regime.name());
                    report.targets.push(Target { what, limit: Limit::AtMost(LIMIT), measured: Some(ratio) });
                };
                aim("rate", rate_of_best / rate(way));
                aim("median", time(way) / time_of_best);
            }
        }
        report.tables.push(table);
    }
}

/// Answers per second, the median of the rounds.
fn rate(measured: &Measured) -> f64 {
    rate_of(&measured.turns)
}

fn rate_of(turns: &[Turn]) -> f64 {
    median(&turns.iter().map(|turn| turn.answers as f64 / turn.elapsed.as_secs_f64()).collect::<Vec<_>>())
}

/// The median time of an answer, in microseconds.
fn time(measured: &Measured) -> f64 {
    measured.times.value_at_quantile(0.5) as f64 / 1000.0
}

/// Where the domains ran.
pub fn placement(all: &[Placed], report: &mut Report) {
    let columns = vec![
        Column::new("median", "us", 2),
        Column::new("p99", "us", 1),
        Column::new("answers", "1/s", 0),
        Column::new("cores", "", 2),
        Column::new("rate / auto", "", 2),
        Column::new("median / auto", "", 2),
    ];
    let title = "placement: an appliance of three domains and a client on two processors, adaptive";
    let mut table = Table::new("placement", title, columns);
    if all.is_empty() {
        table.rows.push(Row::absent("three domains on two processors", "this process may use only one"));
    }
    let rate = |way: &Placed| rate_of(&way.turns);
    let time = |way: &Placed| way.times.value_at_quantile(0.5) as f64 / 1000.0;
    for way in all {
        let auto = all.iter().find(|other| other.is_auto && other.depth == way.depth).unwrap_or(way);
        let total = |value: fn(&Turn) -> f64| way.turns.iter().map(value).sum::<f64>();
        let cells = [
            time(way),
            way.times.value_at_quantile(0.99) as f64 / 1000.0,
            rate(way),
            total(|turn| turn.cpu.as_secs_f64()) / total(|turn| turn.elapsed.as_secs_f64()),
            rate(way) / rate(auto),
            time(way) / time(auto),
        ];
        let label = format!("{} under way, {}", way.depth, way.name);
        table.rows.push(Row { raw: Raw::of(&way.times), ..Row::new(label, cells.map(Some).to_vec()) });
    }
    report.tables.push(table);
}

/// What wakes a thread that sleeps on many sources.
pub fn sources(all: &[Wakes], report: &mut Report) {
    let columns = vec![
        Column::new("woken after", "us", 2),
        Column::new("p99", "us", 1),
        Column::new("ring", "us", 2),
        Column::new("look at nothing", "us", 2),
    ];
    let title = "one sleep on many sources: by which means (idle core)";
    let mut table = Table::new("sources", title, columns);
    for wakes in all {
        let label = format!("{} sources, {}", wakes.sources, wakes.means.name());
        let Some(times) = &wakes.times else {
            table.rows.push(Row::absent(label, "the kernel takes at most 128"));
            continue;
        };
        let times_at = |at| times.value_at_quantile(at) as f64 / 1000.0;
        let cells = [times_at(0.5), times_at(0.99), wakes.ring / 1000.0, wakes.look / 1000.0];
        table.rows.push(Row { raw: Raw::of(times), ..Row::new(label, cells.map(Some).to_vec()) });
    }
    report.tables.push(table);
}

/// What a sleep costs a thread that serves many lanes.
pub fn lanes(all: &[(usize, f64)], report: &mut Report) {
    let columns = vec![Column::new("a sleep", "us", 2), Column::new("for each lane", "ns", 1)];
    let title = "arming, looking and disarming all lanes, with the one system call, which finds nothing";
    let mut table = Table::new("lanes", title, columns);
    for (lanes, nanoseconds) in all {
        let cells = vec![Some(nanoseconds / 1000.0), Some(nanoseconds / *lanes as f64)];
        table.rows.push(Row::new(format!("{lanes} lanes"), cells));
    }
    report.tables.push(table);
}

/// What the idle appliance used.
pub fn idle(all: &[(WaitStrategy, Idle)], report: &mut Report) {
    let columns = vec![Column::new("of a core", "%", 3), Column::new("sleeps", "1/s", 1)];
    let mut table = Table::new("idle", "an appliance of three domains with nothing to do", columns);
    for (wait, idle) in all {
        table.rows.push(Row::new(name(*wait), vec![Some(idle.cores * 100.0), Some(idle.sleeps)]));
        if *wait == WaitStrategy::Adaptive {
            let what = "idle appliance: share of a core".to_owned();
            report.targets.push(Target { what, limit: Limit::AtMost(0.01), measured: Some(idle.cores) });
        }
    }
    report.tables.push(table);
}

/// How a crew followed its load.
pub fn scaling(most: usize, phases: &[Phase], report: &mut Report) {
    let columns = vec![
        Column::new("answers", "1/s", 0),
        Column::new("cores", "", 2),
        Column::new("threads at the end", "", 0),
        Column::new("taken on", "", 0),
        Column::new("let go", "", 0),
    ];
    let title = format!("four lanes served by a crew of one to {most} threads, 5 us of work for each answer");
    let mut table = Table::new(&format!("crew-{most}"), title, columns);
    for phase in phases {
        let (taken_on, let_go) = phase.changes;
        let cells = [phase.rate, phase.cores, phase.threads as f64, taken_on as f64, let_go as f64];
        table.rows.push(Row::new(phase.name, cells.map(Some).to_vec()));
    }
    report.tables.push(table);
}

fn name(wait: WaitStrategy) -> &'static str {
    match wait {
        WaitStrategy::Spin => "spin",
        WaitStrategy::Sleep => "sleep",
        WaitStrategy::Adaptive => "adaptive",
    }
}
