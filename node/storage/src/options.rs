//! A volume's settings, and the RocksDB options that follow from them.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamilyDescriptor, DBCompressionType, DBRecoveryMode, Options, WriteBufferManager,
};

use crate::error::StorageError;
use crate::faults::Faults;
use crate::store::Family;

/// No blob file is larger, but for its last body.
pub(crate) const BLOB_FILE_BYTES: u64 = 128 << 20;
/// Of the blob files, the oldest ones: what compactions write anew, without what was deleted.
pub(crate) const BLOB_GC_AGE_CUTOFF: f64 = 0.25;
/// Tables of references to bodies, some ten octets each: a compaction takes as many bodies in hand as it has references, so they
/// are small.
const BLOB_TABLE_BYTES: u64 = 4 << 20;

#[derive(Clone, Debug)]
pub struct VolumeOptions {
    /// Holds the database (`db/`), the mark (`MARK`) and snapshots on their way in (`spool/`).
    pub directory: PathBuf,
    /// The other half of a mirror, on another disk. `None` for a volume of one disk.
    pub mirror: Option<PathBuf>,
    /// Whether both directories are known, by more than is in them, to be this volume's: one that does not say itself what it
    /// is, is then made anew from the other.
    pub is_one_volume: bool,
    /// How long one half of a mirror may take longer than the other before it is dropped.
    pub hang_max: Duration,
    /// What a resilver copies at most.
    pub resilver_bytes_per_s: u64,
    /// For tests: makes operations on a half fail.
    pub faults: Option<Arc<dyn Faults>>,
    /// Whether a volume may be made where there is none. False for a node that has been here before: an empty
    /// directory then is a lost disk, and a Raft voter must not come back without its votes.
    pub create: bool,
    /// Cached blocks of tables, and the bound of all memtables together with them.
    pub block_cache_bytes: usize,
    /// All memtables of the volume.
    pub memtable_bytes: usize,
    /// Write-ahead logs kept; bounds both disk space and the replay at open.
    pub wal_bytes_max: u64,
    /// Waiting log writes. A full queue takes no more; one job may exceed it.
    pub queue_bytes_max: usize,
    /// Log writes that share one sync.
    pub round_bytes_max: usize,
    /// Recent log entries kept in memory for each group, and for all groups.
    pub tail_bytes_per_group: usize,
    pub tail_bytes_max: usize,
    /// Open table and blob files; the rest are opened when needed.
    pub open_files_max: i32,
}

impl VolumeOptions {
    pub fn new(directory: impl Into<PathBuf>) -> VolumeOptions {
        VolumeOptions {
            directory: directory.into(),
            mirror: None,
            is_one_volume: false,
            // Longer than a busy disk takes for its slowest fsync; and half of what a proposal waits for at most, so that
            // it is answered by the half that is left.
            hang_max: Duration::from_secs(5),
            // Half of what one spinning disk writes in sequence.
            resilver_bytes_per_s: 64 << 20,
            faults: None,
            create: true,
            block_cache_bytes: 128 << 20,
            memtable_bytes: 96 << 20,
            wal_bytes_max: 256 << 20,
            queue_bytes_max: 64 << 20,
            round_bytes_max: 16 << 20,
            tail_bytes_per_group: 2 << 20,
            tail_bytes_max: 64 << 20,
            open_files_max: 1024,
        }
    }
}

/// The options of the database as a whole. Never without a look at it with [`strict`] ones before.
pub(crate) fn database(options: &VolumeOptions, cache: &Cache) -> Result<Options, StorageError> {
    // What a crash left in a mirror's write-ahead logs stays there: the other half may need it. And what of a new half is in no
    // log is of no use before all of it is in tables: it is let go with the database.
    let kept = options.mirror.is_some().then_some("avoid_flush_during_recovery=true;avoid_flush_during_shutdown=true");
    let mut db = common(options, cache, kept.unwrap_or_default())?;
    db.create_if_missing(true);
    db.create_missing_column_families(true);
    // With it, damage that a compaction meets ends all writes until the database is opened again, where the next
    // compaction meets it again. What is damaged stays readable as an error of its records, with it or without.
    db.set_paranoid_checks(false);
    Ok(db)
}

/// Whether tables are opened with a database: the first ones of each column family.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Tables {
    Opened,
    Left,
}

/// To look at a database only. A damaged write-ahead log or MANIFEST is refused; and a damaged table, if it is opened.
pub(crate) fn strict(options: &VolumeOptions, cache: &Cache, tables: Tables) -> Result<Options, StorageError> {
    let special = match tables {
        Tables::Opened => "",
        Tables::Left => "skip_stats_update_on_db_open=true;open_files_async=true",
    };
    let mut db = common(options, cache, special)?;
    db.set_paranoid_checks(true);
    Ok(db)
}

fn common(options: &VolumeOptions, cache: &Cache, special: &str) -> Result<Options, StorageError> {
    let db = Options::default().get_options_from_string(special);
    let mut db = db.map_err(|error| StorageError::io("setting options", error))?;
    // PointInTime, the default, opens happily with half of the acknowledged writes gone after one flipped bit.
    // This mode refuses damage, yet takes a torn tail, which only holds what was never acknowledged.
    db.set_wal_recovery_mode(DBRecoveryMode::TolerateCorruptedTailRecords);
    // A closed log that has vanished is noticed by RocksDB; the live one by our own mark.
    db.set_track_and_verify_wals_in_manifest(true);
    // Each write reaches the operating system at once, and SyncWAL alone syncs: unsynced writes of the state
    // machine go on meanwhile.
    db.set_manual_wal_flush(false);
    db.set_allow_mmap_writes(false);
    db.set_max_total_wal_size(options.wal_bytes_max);
    db.set_write_buffer_manager(&WriteBufferManager::new_write_buffer_manager_with_cache(
        options.memtable_bytes,
        false,
        cache.clone(),
    ));
    db.set_max_open_files(options.open_files_max);
    db.set_max_background_jobs(4);
    // Flushes and compactions trickle to the disk, so that they do not stand before the next fsync.
    db.set_bytes_per_sync(1 << 20);
    db.set_keep_log_file_num(4);
    db.set_max_log_file_size(16 << 20);
    db.set_stats_dump_period_sec(0);
    Ok(db)
}

pub(crate) fn families(options: &VolumeOptions, cache: &Cache) -> Vec<ColumnFamilyDescriptor> {
    Family::EVERY
        .iter()
        .map(|family| ColumnFamilyDescriptor::new(family.name(), family_options(*family, options, cache)))
        .collect()
}

fn family_options(family: Family, options: &VolumeOptions, cache: &Cache) -> Options {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(cache);
    table.set_format_version(5);
    table.set_cache_index_and_filter_blocks(true);
    table.set_pin_l0_filter_and_index_blocks_in_cache(true);
    // So that a record is looked for in no table but its own, be others damaged or not.
    table.set_bloom_filter(10.0, false);
    let mut cf = Options::default();
    cf.set_compression_type(DBCompressionType::Lz4);
    cf.set_write_buffer_size((options.memtable_bytes / 4).max(1 << 20));
    cf.set_max_write_buffer_number(3);
    cf.set_level_compaction_dynamic_level_bytes(true);
    match family {
        Family::Log | Family::Meta => {}
        Family::Blob => {
            cf.set_enable_blob_files(true);
            // Below this a pointer saves nothing.
            cf.set_min_blob_size(1 << 10);
            cf.set_blob_file_size(BLOB_FILE_BYTES);
            cf.set_target_file_size_base(BLOB_TABLE_BYTES);
            // Mail is text and base64: zstd finds what LZ4 cannot, and compresses in the background flush.
            cf.set_blob_compression_type(DBCompressionType::Zstd);
            cf.set_enable_blob_gc(true);
            cf.set_blob_gc_age_cutoff(BLOB_GC_AGE_CUTOFF);
            cf.set_blob_gc_force_threshold(0.5);
        }
        Family::State => table.set_block_size(8 << 10),
    }
    cf.set_block_based_table_factory(&table);
    cf
}
