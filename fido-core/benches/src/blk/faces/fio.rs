//! fio's NBD engine as the client.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use super::server::{BYTES_THERE, EXPORT, Kind};
use super::{BYTES, Load, Turn};
use crate::Failure;

/// Runs fio once.
pub fn drive(socket: &Path, kind: Kind, load: Load, time: Duration) -> Result<Turn, Failure> {
    let export = if kind == Kind::Nbdkit { "" } else { EXPORT };
    let output = Command::new("timeout")
        .args(["60", "fio", "--name=null", "--ioengine=nbd", "--time_based", "--norandommap", "--group_reporting"])
        .args(["--output-format=json", "--percentile_list=50:99:99.9"])
        .arg(format!("--uri=nbd+unix:///{export}?socket={}", socket.display()))
        .arg(format!("--rw={}", if load.write { "randwrite" } else { "randread" }))
        .args([format!("--bs={BYTES}"), format!("--size={BYTES_THERE}")])
        .args([format!("--iodepth={}", load.depth), format!("--numjobs={}", load.jobs)])
        .arg(format!("--runtime={}ms", time.as_millis()))
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("timeout: {error}"))?;
    let said = String::from_utf8_lossy(&output.stdout);
    let heard = said.find('{').and_then(|at| serde_json::from_str::<Value>(&said[at..]).ok());
    let side = if load.write { "write" } else { "read" };
    let turn = heard.filter(|_| output.status.success()).and_then(|all| parse(all.get("jobs")?.get(0)?.get(side)?));
    turn.ok_or_else(|| {
        format!("fio ends with {}, and says {said}{}", output.status, String::from_utf8_lossy(&output.stderr)).into()
    })
}

/// What fio says of reads or writes of all jobs together.
fn parse(side: &Value) -> Option<Turn> {
    let number = |name: &str| side.get(name)?.as_f64();
    let percentiles = side.get("clat_ns")?.get("percentile")?;
    let at = |name: &str| percentiles.get(name)?.as_f64();
    let times = [at("50.000000")?, at("99.000000")?, at("99.900000")?];
    Some(Turn { rate: number("iops")?, times, operations: number("total_ios")?, cost: 0.0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fio_says_is_understood_or_not_at_all() {
        let text =
            r#"{"iops":1500.5,"total_ios":750,"clat_ns":{"percentile":{"50.000000":9,"99.000000":20,"99.900000":30}}}"#;
        let turn = parse(&serde_json::from_str(text).expect("JSON")).expect("all is there");
        assert_eq!((turn.rate, turn.operations, turn.times), (1500.5, 750.0, [9.0, 20.0, 30.0]));
        for missing in ["iops", "total_ios", "clat_ns", "99.900000"] {
            let without = text.replace(missing, "other");
            assert!(parse(&serde_json::from_str(&without).expect("JSON")).is_none(), "{missing}");
        }
    }
}
