//! Measures a device at a vhost-user socket with a client that is the same for all of them: reads of 4096 bytes at random
//! places, one at a time and 64 at a time, from one ring.
//!
//! `cargo run --release -p mmblk --example vhost_user -- SOCKET [SECONDS]`
//!
//! To compare (the client polls, so there should be two processors):
//!
//! ```text
//! mmblk-vhost /tmp/ours null:1GiB
//! qemu-storage-daemon --blockdev null-co,node-name=n,size=1073741824,read-zeroes=on \
//!     --export vhost-user-blk,id=e,node-name=n,addr.type=unix,addr.path=/tmp/theirs,writable=on
//! ```

use std::error::Error;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use mmblk::export::vhost_user::client::{Client, ClientRing, FEATURES, Plan, READ};

const BYTES: u32 = 4096;
const SECTORS: u64 = BYTES as u64 / 512;
const PATIENCE: Duration = Duration::from_secs(10);
/// How often the client looks before it sleeps.
const LOOKS: u32 = 2000;

fn main() -> Result<(), Box<dyn Error>> {
    let mut words = std::env::args().skip(1);
    let socket = PathBuf::from(words.next().ok_or("usage: vhost_user SOCKET [SECONDS]")?);
    let seconds = Duration::from_secs_f64(words.next().map_or(Ok(2.0), |word| word.parse())?);
    println!("{:>5} {:>10} {:>9} {:>9} {:>9}", "depth", "IOPS", "p50 µs", "p99 µs", "p99.9 µs");
    for depth in [1, 64] {
        let plan = Plan { rings: 1, depth, buffer: BYTES, features: FEATURES };
        let mut client = Client::connect(&socket, &plan)?;
        let config = client.config(8)?;
        let sectors = u64::from_le_bytes(config.try_into().map_err(|_| "no size")?);
        client.start()?;
        run(&mut client.rings[0], depth, sectors, seconds / 4)?;
        let (elapsed, mut times) = run(&mut client.rings[0], depth, sectors, seconds)?;
        times.sort_unstable();
        let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize].as_secs_f64() * 1e6;
        let rate = times.len() as f64 / elapsed.as_secs_f64();
        println!("{depth:>5} {rate:>10.0} {:>9.1} {:>9.1} {:>9.1}", at(0.5), at(0.99), at(0.999));
    }
    Ok(())
}

/// Keeps `depth` requests under way for a while. Returns how long it was, and each request's time.
fn run(
    ring: &mut ClientRing,
    depth: u16,
    sectors: u64,
    time: Duration,
) -> Result<(Duration, Vec<Duration>), Box<dyn Error>> {
    let mut place = 1_u64;
    let mut began = vec![Instant::now(); depth.into()];
    let mut times = Vec::new();
    let start = Instant::now();
    let mut free: Vec<u16> = (0..depth).collect();
    let mut under_way = 0;
    loop {
        let before = ring.position();
        if start.elapsed() < time {
            for slot in free.drain(..) {
                place = place.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                began[usize::from(slot)] = Instant::now();
                ring.submit(slot, READ, (place >> 16) % (sectors / SECTORS) * SECTORS, BYTES);
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
                if status != 0 {
                    return Err(format!("status {status}").into());
                }
                times.push(began[usize::from(slot)].elapsed());
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
