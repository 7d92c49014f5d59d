//! The metadata store's storage: the metadata region of the device, as redb wants to see it.
//!
//! redb grows its storage in large steps and, once, may ask for more than the region has although it would use little
//! of it. So the *logical* length may exceed the region; only touching what lies beyond fails, and says "full".

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fido_core::wait::Source;
use fido_core::waiter::Waiter;
use mmblk::queue::BlockQueue;

use super::blocking::{Blocking, DeviceError};
use super::superblock::{OpenError, Superblock};

/// How far the logical length may exceed the region: redb doubles a store that is out of room.
const OVERCOMMIT: u64 = 4;

/// The device and its superblock, shared by the store thread and redb. Clones share it.
pub struct Region<Q>(Arc<Shared<Q>>);

struct Shared<Q> {
    state: Mutex<State<Q>>,
    full: AtomicBool,
}

struct State<Q> {
    device: Blocking<Q>,
    superblock: Superblock,
}

impl<Q: BlockQueue> Region<Q> {
    /// Opens the volume on `device` or formats an empty device.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(mut device: Blocking<Q>, fsid: u64) -> Result<Self, OpenError> {
        let superblock = Superblock::open_or_format(&mut device, fsid)?;
        Ok(Self(Arc::new(Shared { state: Mutex::new(State { device, superblock }), full: AtomicBool::new(false) })))
    }

    /// The superblock now.
    pub fn superblock(&self) -> Superblock {
        self.state().superblock
    }

    /// Says that the store is set up; before that, an interrupted format starts from nothing.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn set_ready(&self) -> Result<(), DeviceError> {
        self.update(|superblock| superblock.ready = true)
    }

    /// Forgets the store.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn reset(&self) -> Result<(), DeviceError> {
        self.update(|superblock| superblock.meta_len = 0)
    }

    /// Makes all completed writes durable, those of file data through other queues included.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn flush(&self) -> Result<(), DeviceError> {
        self.state().device.flush()
    }

    /// Looks after the device while there is nothing to do, see [`Blocking::idle`]. Everybody who shares the region is
    /// on the caller's thread.
    ///
    /// # Errors
    /// The system's, if it cannot wait.
    pub fn idle(&self, other: &mut dyn Source, waiter: &mut Waiter) -> io::Result<()> {
        self.state().device.idle(other, waiter)
    }

    /// Whether the store has run out of the region since the last time this was asked.
    pub fn take_full(&self) -> bool {
        self.0.full.swap(false, Ordering::Relaxed)
    }

    fn state(&self) -> MutexGuard<'_, State<Q>> {
        // A panic elsewhere leaves the state whole: it changes only after the device has answered.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes a changed superblock; it counts only once it is written.
    fn update(&self, change: impl FnOnce(&mut Superblock)) -> Result<(), DeviceError> {
        let mut state = self.state();
        let mut next = state.superblock;
        change(&mut next);
        next.write(&mut state.device)?;
        state.superblock = next;
        Ok(())
    }

    fn check(&self, offset: u64, len: usize) -> io::Result<(MutexGuard<'_, State<Q>>, u64)> {
        let state = self.state();
        let Superblock { meta_start, meta_bytes, meta_len, .. } = state.superblock;
        let end = offset.checked_add(len as u64).filter(|end| *end <= meta_len);
        let Some(end) = end else {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "beyond the metadata store's end"));
        };
        if end > meta_bytes {
            self.0.full.store(true, Ordering::Relaxed);
            return Err(io::Error::new(io::ErrorKind::StorageFull, "the metadata region is full"));
        }
        Ok((state, meta_start + offset))
    }
}

impl<Q: BlockQueue + Send + 'static> redb::StorageBackend for Region<Q> {
    fn len(&self) -> io::Result<u64> {
        Ok(self.state().superblock.meta_len)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let (mut state, at) = self.check(offset, out.len())?;
        state.device.read(at, out).map_err(io::Error::other)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let Superblock { meta_start, meta_bytes, meta_len, .. } = self.superblock();
        if len > meta_bytes.saturating_mul(OVERCOMMIT) {
            self.0.full.store(true, Ordering::Relaxed);
            return Err(io::Error::new(io::ErrorKind::StorageFull, "the metadata region is full"));
        }
        let (old, new) = (meta_len.min(meta_bytes), len.min(meta_bytes));
        if new > old {
            self.state().device.zero(meta_start + old, meta_start + new).map_err(io::Error::other)?;
            self.flush().map_err(io::Error::other)?;
        }
        self.update(|superblock| superblock.meta_len = len).map_err(io::Error::other)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.flush().map_err(io::Error::other)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let (mut state, at) = self.check(offset, data.len())?;
        state.device.write(at, data).map_err(io::Error::other)
    }
}

impl<Q> Clone for Region<Q> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<Q> fmt::Debug for Region<Q> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Region")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::mutate::Limits;
    use crate::volume::superblock::MIN_DEVICE_BYTES;
    use crate::volume::tests::disk::{Dice, Disk, DiskQueue};
    use fido_core::testing::private_memory;
    use redb::{Database, ReadableDatabase, ReadableTableMetadata, StorageBackend, TableDefinition};

    const ROWS: TableDefinition<(u64, u64), (u64, u64)> = TableDefinition::new("rows");
    const ROW_BYTES: u64 = 32;

    fn region(disk: &Disk) -> Region<DiskQueue> {
        let memory = private_memory(8 << 20);
        let queue = disk.queue(memory.clone(), 1);
        Region::open(Blocking::new(queue, memory, Arc::new(AtomicBool::new(false))).unwrap(), 1).unwrap()
    }

    #[test]
    fn the_length_is_kept_and_what_grows_is_zero() {
        let disk = Disk::new(MIN_DEVICE_BYTES);
        let region = region(&disk);
        disk.poke(region.superblock().meta_start, &[7; 8192]);
        assert_eq!(region.len().unwrap(), 0);
        region.set_len(6000).unwrap();
        let mut bytes = [1; 6000];
        region.read(0, &mut bytes).unwrap();
        assert_eq!(bytes, [0; 6000]);
        region.write(5000, &[5; 1000]).unwrap();
        assert!(region.write(5000, &[5; 1001]).is_err());
        assert!(region.read(u64::MAX, &mut bytes).is_err());
        drop(region);
        let region = super::tests::region(&disk);
        assert_eq!(region.len().unwrap(), 6000);
        region.read(0, &mut bytes).unwrap();
        assert_eq!((bytes[4999], bytes[5000], bytes[5999]), (0, 5, 5));
    }

    #[test]
    fn beyond_the_region_it_is_full() {
        let region = region(&Disk::new(MIN_DEVICE_BYTES));
        let bytes = region.superblock().meta_bytes;
        region.set_len(2 * bytes).unwrap();
        region.write(bytes - 1, &[1]).unwrap();
        assert!(!region.take_full());
        assert_eq!(region.write(bytes, &[1]).unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert!(region.take_full());
        assert!(region.set_len(bytes * OVERCOMMIT).is_ok());
        assert!(region.set_len(bytes * OVERCOMMIT + 1).is_err());
    }

    /// The limits promise that the region takes what they allow, however the rows come.
    #[test]
    fn the_limits_lie_within_what_the_store_takes() {
        let disk = Disk::new(MIN_DEVICE_BYTES);
        let region = region(&disk);
        let limits = Limits::of(region.superblock().meta_bytes);
        let open = || Database::builder().set_cache_size(1 << 20).create_with_backend(region.clone());
        let database = open().unwrap();
        let mut dice = Dice(99);
        let mut rows = 0;
        let failed = 'full: loop {
            let txn = database.begin_write().unwrap();
            {
                let mut table = txn.open_table(ROWS).unwrap();
                for _ in 0..200 {
                    // Scattered keys split every page.
                    let key = (dice.roll(1 << 40), dice.roll(1 << 40));
                    if table.insert(key, (1, 1)).is_err() {
                        break 'full true;
                    }
                }
            }
            if txn.commit().is_err() {
                break true;
            }
            rows += 200;
            if rows * ROW_BYTES > region.superblock().meta_bytes {
                break false;
            }
        };
        assert!(failed && region.take_full());
        assert!(rows * ROW_BYTES > limits.commit, "{rows} rows, limit {} bytes", limits.commit);
        assert!(limits.commit > limits.create);
        drop(database);
        let rows_found = open().unwrap().begin_read().unwrap().open_table(ROWS).unwrap().len().unwrap();
        assert_eq!(rows_found, rows, "what was committed is still there");
    }
}
