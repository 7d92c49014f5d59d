//! From what was measured to tables.

use fido_core::assignment::WaitStrategy;

use super::Measured;
use super::regimes::{REGIMES, Turn};
use crate::report::{Column, Limit, Raw, Report, Row, Table, Target, median};

/// How much worse than the better of spinning and sleeping adaptive waiting may be.
const LIMIT: f64 = 1.3;

/// A table for each regime, and what was aimed at in it.
pub fn regimes(measured: &[Measured], rounds: u32, report: &mut Report) {
    for (index, regime) in REGIMES.iter().enumerate() {
        let ways: Vec<_> = measured.iter().filter(|measured| measured.regime == *regime).collect();
        let best = |value: fn(&Measured) -> f64, better: fn(f64, f64) -> f64| {
            let others = ways.iter().filter(|measured| measured.wait != WaitStrategy::Adaptive);
            others.map(|measured| value(measured)).reduce(better).unwrap_or(f64::NAN)
        };
        let (rate_of_best, time_of_best) = (best(rate, f64::max), best(time, f64::min));
        let columns = vec![
            Column::new("answers", "1/s", 0),
            Column::new("without gaps", "1/s", 0),
            Column::new("median", "us", 2),
            Column::new("p99", "us", 1),
            Column::new("p99.9", "us", 1),
            Column::new("cores", "", 2),
            Column::new("sleeps each", "", 3),
            Column::new("bells each", "", 3),
            Column::new("rate / better", "", 2),
            Column::new("median / better", "", 2),
        ];
        let title = format!("{} ({rounds} rounds, ways to wait in turn)", regime.name());
        let mut table = Table::new(&format!("regime-{}", index + 1), title, columns);
        for way in &ways {
            let quantile = |at| way.times.value_at_quantile(at) as f64 / 1000.0;
            let total = |value: fn(&Turn) -> f64| way.turns.iter().map(value).sum::<f64>();
            let answers = total(|turn| turn.answers as f64);
            let cells = [
                rate(way),
                answers / total(|turn| turn.busy.as_secs_f64()),
                time(way),
                quantile(0.99),
                quantile(0.999),
                total(|turn| turn.cpu.as_secs_f64()) / total(|turn| turn.elapsed.as_secs_f64()),
                total(|turn| turn.stats.sleeps as f64) / answers,
                total(|turn| turn.stats.bells_rung as f64) / answers,
                rate(way) / rate_of_best,
                time(way) / time_of_best,
            ];
            let name = match way.wait {
                WaitStrategy::Spin => "spin",
                WaitStrategy::Sleep => "sleep",
                WaitStrategy::Adaptive => "adaptive",
            };
            let cells = cells.into_iter().map(Some).collect();
            table.rows.push(Row { raw: Raw::of(&way.times), ..Row::new(name, cells) });
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
    median(&measured.turns.iter().map(|turn| turn.answers as f64 / turn.elapsed.as_secs_f64()).collect::<Vec<_>>())
}

/// The median time of an answer, in microseconds.
fn time(measured: &Measured) -> f64 {
    measured.times.value_at_quantile(0.5) as f64 / 1000.0
}
