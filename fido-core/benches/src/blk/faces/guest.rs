//! Our own vhost-user front end and driver as the client: reads or writes at random places, from a ring for each job.

use std::path::Path;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use mmblk::export::vhost_user::client::{Client, ClientRing, FEATURES, Plan, READ, WRITE};

use super::server::{BYTES_THERE, Kind};
use super::{BYTES, Load, Turn};
use crate::Failure;

const SECTORS: u64 = BYTES as u64 / 512;
const PATIENCE: Duration = Duration::from_secs(10);
/// How often the client looks before it sleeps.
const LOOKS: u32 = 2000;

/// Connects, and puts the load on for some time.
pub fn drive(socket: &Path, _kind: Kind, load: Load, time: Duration) -> Result<Turn, Failure> {
    let depth = u16::try_from(load.depth)?;
    let mut client = Client::connect(socket, &Plan { rings: load.jobs, depth, buffer: BYTES, features: FEATURES })?;
    client.start()?;
    let results: Vec<Result<(Duration, Histogram<u64>), Failure>> = std::thread::scope(|scope| {
        let job = |(seed, ring): (usize, &mut ClientRing)| run(ring, load, seed as u64, time);
        let start = |ring| scope.spawn(move || job(ring));
        let threads: Vec<_> = client.rings.iter_mut().enumerate().map(start).collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| Err("a job panicked".into()))).collect()
    });
    let (mut all, mut rate) = (Histogram::<u64>::new(3)?, 0.0);
    for result in results {
        let (elapsed, times) = result?;
        rate += times.len() as f64 / elapsed.as_secs_f64();
        all.add(&times)?;
    }
    let times = [0.5, 0.99, 0.999].map(|at| all.value_at_quantile(at) as f64);
    Ok(Turn { rate, times, operations: all.len() as f64, cost: 0.0 })
}

/// Keeps `load.depth` requests under way. Returns how long it was, and each request's time in nanoseconds.
fn run(ring: &mut ClientRing, load: Load, seed: u64, time: Duration) -> Result<(Duration, Histogram<u64>), Failure> {
    let depth = u16::try_from(load.depth)?;
    let kind = if load.write { WRITE } else { READ };
    let places_there = BYTES_THERE / u64::from(BYTES);
    let mut place = seed + 1;
    let start = Instant::now();
    let mut began = vec![start; depth.into()];
    let mut times = Histogram::new(3)?;
    let mut free: Vec<u16> = (0..depth).collect();
    let mut under_way = 0;
    loop {
        let before = ring.position();
        let now = Instant::now();
        if now - start < time {
            for slot in free.drain(..) {
                // Knuth's MMIX generator; the upper bits are the random ones.
                place = place.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                began[usize::from(slot)] = now;
                ring.submit(slot, kind, (place >> 16) % places_there * SECTORS, BYTES);
                under_way += 1;
            }
            if ring.position() != before {
                ring.kick(before);
            }
        } else if under_way == 0 {
            return Ok((start.elapsed(), times));
        }
        let mut looks = 0;
        loop {
            while let Some((slot, status)) = ring.poll() {
                let began = began.get(usize::from(slot)).ok_or("an answer to nothing")?;
                if status != 0 {
                    return Err(format!("status {status}").into());
                }
                times.record(began.elapsed().as_nanos() as u64)?;
                under_way -= 1;
                free.push(slot);
            }
            if !free.is_empty() {
                break;
            }
            looks += 1;
            if looks < LOOKS {
                std::hint::spin_loop();
            } else if !ring.wait(PATIENCE)? {
                return Err("no answer".into());
            }
        }
    }
}
