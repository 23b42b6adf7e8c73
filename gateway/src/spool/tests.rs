//! The spool against real files: what it promises, and what it does when the promises get hard to keep.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use drivers::{ChannelSpec, Quality, Value};
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::clock::{Stamp, Wall, WallQuality};
use crate::reading::{Channel, ChannelId, Reading};

fn options(max_size: u64, uplinks: &[&str]) -> Options {
    Options {
        max_size,
        rpo: Duration::from_millis(1),
        wear_budget: u64::MAX,
        when_full: WhenFull::DropOldest,
        retain: Duration::from_secs(3600),
        uplinks: uplinks.iter().map(ToString::to_string).collect(),
    }
}

fn open(directory: &TempDir, options: &Options) -> (Spool, Option<Damage>) {
    Spool::open(directory.path(), options.clone(), Clock::new()).unwrap()
}

fn channel(name: &str) -> Arc<Channel> {
    Arc::new(Channel {
        id: ChannelId::parse(name).unwrap(),
        spec: ChannelSpec::number(name.rsplit('/').next().unwrap().to_owned(), "Cel"),
        is_simulated: true,
    })
}

fn reading(channel: &Arc<Channel>, value: f64, unix_ns: i64) -> Entry {
    let wall = Some(Wall { unix_ns, error_ns: None, quality: WallQuality::Ntp });
    let stamp = Stamp { boot: Clock::new().boot(), monotonic_ns: 1, wall };
    Entry::Reading(Reading {
        channel: channel.clone(),
        value: Some(Value::Number(value)),
        quality: Quality::Good,
        stamp,
    })
}

fn message(size: usize) -> Entry {
    Entry::Message { topic: "a/b".into(), payload: vec![7; size].into(), stamp: Clock::new().stamp() }
}

fn run<T>(body: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(body)
}

fn now_ns() -> i64 {
    Clock::new().stamp().wall.unwrap().unix_ns
}

#[test]
fn what_was_appended_reads_back_in_order_after_reopening() {
    let directory = TempDir::new().unwrap();
    run(async {
        let (spool, damage) = open(&directory, &options(10 << 20, &["up"]));
        assert!(damage.is_none());
        let channel = channel("cellar/temperature");
        let range =
            spool.append(vec![reading(&channel, 1.5, 5), reading(&channel, 2.5, 6)], false).await.unwrap();
        assert_eq!(range, Seq(1)..Seq(3));
        assert_eq!(spool.append(vec![message(3)], true).await.unwrap(), Seq(3)..Seq(4));
        spool.note_progress("up", Progress::at(Seq(1)), false).await.unwrap();
        spool.close().await;

        let (spool, _) = open(&directory, &options(10 << 20, &["up"]));
        assert_eq!(spool.progress("up").await.unwrap(), (Progress::at(Seq(1)), Vec::new()));
        let entries = spool.read_after(Seq(1), 10).await.unwrap();
        assert_eq!(entries.iter().map(|entry| entry.seq.0).collect::<Vec<_>>(), [2, 3]);
        let Body::Reading { channel, value, quality } = &entries[0].body else { panic!("{entries:?}") };
        assert_eq!((channel.name.as_str(), channel.unit.as_str()), ("cellar/temperature", "Cel"));
        assert_eq!((value.as_ref(), *quality), (Some(&Value::Number(2.5)), Quality::Good));
        let Body::Message { topic, payload } = &entries[1].body else { panic!("{entries:?}") };
        assert_eq!((topic.as_str(), payload.as_slice()), ("a/b", &[7, 7, 7][..]));
        assert_eq!(entries[0].stamp.boot, Clock::new().boot());
        spool.close().await;
    });
}

#[test]
fn a_second_process_is_kept_out() {
    let directory = TempDir::new().unwrap();
    run(async {
        let (spool, _) = open(&directory, &options(10 << 20, &[]));
        let second = Spool::open(directory.path(), options(10 << 20, &[]), Clock::new());
        assert!(matches!(second, Err(StoreError::Locked(_))));
        spool.close().await;
        open(&directory, &options(10 << 20, &[])).0.close().await;
    });
}

#[test]
fn the_size_is_bounded_and_what_no_uplink_had_is_recorded_as_a_gap() {
    let directory = TempDir::new().unwrap();
    run(async {
        let limit = 4 << 20;
        let (spool, _) = open(&directory, &options(limit, &["away"]));
        for _ in 0..300 {
            spool.append((0..10).map(|_| message(4000)).collect(), true).await.unwrap();
        }
        // The size shown may be a tenth of a second old: another commit after that brings it up to date.
        tokio::time::sleep(Duration::from_millis(120)).await;
        spool.append(vec![message(1)], true).await.unwrap();
        let stats = spool.stats();
        assert!(stats.bytes <= limit, "{} of {limit}", stats.bytes);
        assert!(fs::metadata(store_path(directory.path())).unwrap().len() <= limit + (1 << 20));
        let lost: u64 = stats.gaps.iter().filter_map(|(_, gap)| gap.count).sum();
        assert!(stats.gaps.iter().all(|(_, gap)| gap.reason == GapReason::Quota) && lost > 0);
        // Everything that was ever given a place is either there or in a gap.
        let mut after = Seq(0);
        let mut there = 0;
        while let Some(last) = {
            let entries = spool.read_after(after, 500).await.unwrap();
            there += entries.len() as u64;
            entries.last().map(|last| last.seq)
        } {
            after = last;
        }
        assert_eq!(there + lost, stats.last_seq);
        assert_eq!(spool.progress("away").await.unwrap().0, Progress::at(Seq(stats.first_seq - 1)));
        spool.close().await;
    });
}

#[test]
fn what_every_uplink_has_makes_room_without_a_gap() {
    let directory = TempDir::new().unwrap();
    run(async {
        let (spool, _) = open(&directory, &options(4 << 20, &["up"]));
        for _ in 0..300 {
            let range = spool.append((0..10).map(|_| message(4000)).collect(), true).await.unwrap();
            spool.note_progress("up", Progress::at(Seq(range.end.0 - 1)), true).await.unwrap();
        }
        let stats = spool.stats();
        assert!(stats.gaps.is_empty(), "{:?}", stats.gaps);
        assert!(stats.first_seq > 1 && stats.bytes <= 4 << 20);
        spool.close().await;
    });
}

#[test]
fn a_damaged_database_is_set_aside_and_the_loss_is_an_entry() {
    let directory = TempDir::new().unwrap();
    run(async {
        let (spool, _) = open(&directory, &options(10 << 20, &["up"]));
        let channel = channel("a/b");
        spool
            .append((0..1000).map(|n| reading(&channel, f64::from(n), i64::from(n))).collect(), true)
            .await
            .unwrap();
        spool.close().await;
        let path = store_path(directory.path());
        let mut bytes = fs::read(&path).unwrap();
        let (start, end) = (4096 * 3, bytes.len() - 4096);
        bytes[start..end].fill(0x55);
        fs::write(&path, bytes).unwrap();

        let (spool, damage) = open(&directory, &options(10 << 20, &["up"]));
        let damage = damage.expect("the damage is reported");
        assert!(damage.kept_as.exists());
        let entries = spool.read_after(Seq(0), 2000).await.unwrap();
        let gaps: Vec<&Gap> = entries
            .iter()
            .filter_map(|entry| if let Body::Gap(gap) = &entry.body { Some(gap) } else { None })
            .collect();
        assert!(!gaps.is_empty() && gaps.iter().all(|gap| gap.reason == GapReason::Damage), "{gaps:?}");
        assert_eq!(spool.stats().gaps.len(), gaps.len());
        let is_lost = |seq: u64| {
            gaps.iter().any(|gap| (gap.from_seq.unwrap_or(0)..=gap.to_seq.unwrap_or(u64::MAX)).contains(&seq))
        };
        assert!((1..=1000).all(|seq| entries.iter().any(|entry| entry.seq == Seq(seq)) != is_lost(seq)));
        // No place is given out twice.
        let next = spool.append(vec![message(1)], true).await.unwrap();
        assert!(next.start > Seq(1000) && next.start == entries[entries.len() - 1].seq.next());
        spool.close().await;
    });
}

#[test]
fn damage_that_a_reader_meets_is_mended_while_the_spool_runs() {
    let directory = TempDir::new().unwrap();
    run(async {
        let limits = options(64 << 20, &["up"]);
        let (spool, _) = open(&directory, &limits);
        for _ in 0..40 {
            spool.append((0..50).map(|_| message(1000)).collect(), true).await.unwrap();
        }
        spool.append(vec![reading(&channel("cellar/temperature"), 1.5, now_ns())], true).await.unwrap();
        spool.store_progress("up", Progress::at(Seq(10)), b"state".to_vec()).await.unwrap();
        spool.close().await;
        let (spool, _) = open(&directory, &limits);
        // Another channel than the first that the mended store hears of.
        spool.append(vec![reading(&channel("attic/humidity"), 40.0, now_ns())], true).await.unwrap();
        let epoch = spool.epoch();
        let file = fs::File::options().write(true).open(store_path(directory.path())).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &[0xA5; 4096], 200 * 4096).unwrap();
        assert!(matches!(spool.read_after(Seq(0), 5000).await, Err(SpoolError::Unreadable(_))));
        // The reader has told the writer, which answers in the order in which it is asked.
        let next = spool.append(vec![message(1)], true).await.unwrap();
        let entries = spool.read_after(Seq(0), 5000).await.unwrap();
        let missing: Vec<u64> =
            (1..=2000).filter(|seq| !entries.iter().any(|entry| entry.seq == Seq(*seq))).collect();
        assert!((1..=5).contains(&missing.len()), "{missing:?}");
        let gap = entries
            .iter()
            .find_map(|entry| if let Body::Gap(gap) = &entry.body { Some(gap.clone()) } else { None });
        let expected = Gap {
            from_seq: missing.first().copied(),
            to_seq: missing.last().copied(),
            count: Some(missing.len() as u64),
            reason: GapReason::Damage,
        };
        assert_eq!(gap, Some(expected));
        let names: Vec<_> = entries
            .iter()
            .filter_map(|entry| match &entry.body {
                Body::Reading { channel, .. } => Some((channel.name.as_str(), entry.stamp.boot)),
                _ => None,
            })
            .collect();
        let boot = Clock::new().boot();
        assert_eq!(names, [("cellar/temperature", boot), ("attic/humidity", boot)]);
        assert_eq!(spool.epoch(), epoch);
        assert_eq!(spool.progress("up").await.unwrap(), (Progress::at(Seq(10)), b"state".to_vec()));
        assert!(
            next.start > Seq(2000) && next.start < Seq(2010),
            "nothing was given out that nobody knows of: {next:?}"
        );
        spool.close().await;
    });
}

#[test]
fn a_file_that_is_no_database_does_not_keep_the_gateway_from_starting() {
    for content in
        [&b"rubbish"[..], &[0; 5000], b"SQLite format 3\0 and then nothing that makes sense at all ......"]
    {
        let directory = TempDir::new().unwrap();
        fs::write(store_path(directory.path()), content).unwrap();
        run(async {
            let (spool, _) = open(&directory, &options(10 << 20, &[]));
            spool.append(vec![message(1)], true).await.unwrap();
            spool.close().await;
        });
    }
}

#[test]
fn a_newer_format_is_refused_and_left_alone() {
    let directory = TempDir::new().unwrap();
    run(async { open(&directory, &options(10 << 20, &[])).0.close().await });
    let db = vfs::open(&store_path(directory.path()), rusqlite::OpenFlags::default()).unwrap();
    db.pragma_update(None, "user_version", 99).unwrap();
    drop(db);
    let refused = Spool::open(directory.path(), options(10 << 20, &[]), Clock::new());
    assert!(matches!(refused, Err(StoreError::Newer(99))));
    assert!(store_path(directory.path()).exists());
}

#[test]
fn history_gives_the_same_buckets_from_rows_and_from_minutes() {
    let directory = TempDir::new().unwrap();
    run(async {
        let (spool, _) = open(&directory, &options(32 << 20, &[]));
        let (one, other) = (channel("a/one"), channel("a/other"));
        let start = now_ns() / 3_600_000_000_000 * 3_600_000_000_000 - 3_600_000_000_000;
        for second in 0..1800i64 {
            let at = start + second * 1_000_000_000;
            spool
                .append(vec![reading(&one, second as f64, at), reading(&other, -1.0, at)], true)
                .await
                .unwrap();
        }
        let query = |step_ns| HistoryQuery {
            channel: "a/one".into(),
            from_ns: start,
            to_ns: start + 1800 * 1_000_000_000,
            step_ns,
        };
        let raw = spool.history(query(30_000_000_000)).await.unwrap();
        assert_eq!(raw.len(), 60);
        assert_eq!(
            raw[1],
            Bucket { start_ns: start + 30_000_000_000, n: 30, min: 30.0, mean: 44.5, max: 59.0 }
        );
        let minutes = spool.history(query(60_000_000_000)).await.unwrap();
        assert_eq!(minutes.len(), 30);
        for (minute, bucket) in minutes.iter().enumerate() {
            let first = minute as f64 * 60.0;
            assert_eq!(
                (bucket.n, bucket.min, bucket.mean, bucket.max),
                (60, first, first + 29.5, first + 59.0)
            );
        }
        spool.close().await;
        // The minutes survive a restart, and the last one, which was open, is made from the rows.
        let (spool, _) = open(&directory, &options(32 << 20, &[]));
        assert_eq!(spool.history(query(60_000_000_000)).await.unwrap(), minutes);
        assert!(
            spool.history(HistoryQuery { channel: "no/such".into(), ..query(1) }).await.unwrap().is_empty()
        );
        spool.close().await;
    });
}

#[test]
fn when_nothing_can_be_written_entries_are_refused_counted_and_accepted_again_later() {
    let directory = TempDir::new().unwrap();
    run(async {
        // The page limit stands in for a full disk: SQLite answers both with SQLITE_FULL.
        let (spool, _) = open(&directory, &options(1 << 20, &["away"]));
        let huge: Vec<Entry> = (0..400).map(|_| message(8000)).collect();
        let refused = spool.append(huge, true).await;
        assert!(matches!(refused, Err(SpoolError::Refused(_))), "{refused:?}");
        assert!(spool.stats().refusing.is_some());
        spool.append(vec![message(10)], true).await.unwrap();
        let stats = spool.stats();
        assert!(stats.refusing.is_none());
        assert!(
            stats.gaps.iter().any(|(_, gap)| gap.reason == GapReason::DiskFull && gap.count >= Some(400)),
            "{:?}",
            stats.gaps
        );
        spool.close().await;
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// The log against a vector: what was appended, in order, whatever is closed, reopened or confirmed between.
    #[test]
    fn the_log_behaves_like_a_list(steps in proptest::collection::vec((1..20usize, any::<bool>(), 0..60u64), 1..30)) {
        let directory = TempDir::new().unwrap();
        run(async {
            let options = options(64 << 20, &["up"]);
            let (mut spool, _) = open(&directory, &options);
            let mut model: Vec<usize> = Vec::new();
            let mut cursor = 0;
            for (count, is_reopened, confirm) in steps {
                let entries = (0..count).map(|n| message(model.len() + n)).collect();
                let range = spool.append(entries, true).await.unwrap();
                assert_eq!(range.start.0, model.len() as u64 + 1);
                model.extend((0..count).map(|n| range.start.0 as usize - 1 + n));
                cursor = cursor.max(confirm.min(model.len() as u64));
                spool.note_progress("up", Progress::at(Seq(cursor)), false).await.unwrap();
                if is_reopened {
                    spool.close().await;
                    spool = open(&directory, &options).0;
                }
                assert_eq!(spool.progress("up").await.unwrap().0, Progress::at(Seq(cursor)));
                let read = spool.read_after(Seq(cursor), usize::MAX >> 1).await.unwrap();
                let sizes: Vec<usize> = read.iter().map(|entry| match &entry.body { Body::Message { payload, .. } => payload.len(), _ => usize::MAX }).collect();
                assert_eq!(&sizes[..], &model[cursor as usize..]);
            }
            spool.close().await;
        });
    }
}

#[test]
fn what_the_mqtt_broker_keeps_is_there_again_also_out_of_a_damaged_store() {
    let directory = TempDir::new().unwrap();
    let body =
        |key: u64| bytes::Bytes::from(vec![key as u8; if key.is_multiple_of(10) { 9_000 } else { 300 }]);
    let mut expected = Vec::new();
    for shelf in [mqtt::Shelf::State, mqtt::Shelf::Message, mqtt::Shelf::Delivery] {
        expected.extend((1..=80).map(|key| mqtt::Record { shelf, key: key << 50, body: body(key) }));
    }
    run(async {
        let (spool, _) = open(&directory, &options(64 << 20, &[]));
        let changes = expected.iter().map(|mqtt::Record { shelf, key, body }| mqtt::Change {
            shelf: *shelf,
            key: *key,
            body: Some(body.clone()),
        });
        spool.keep(changes.collect()).await.unwrap();
        let gone = mqtt::Change { shelf: mqtt::Shelf::Delivery, key: 80 << 50, body: None };
        spool.keep(vec![gone]).await.unwrap();
        expected.pop();
        assert_eq!(spool.kept().await.unwrap(), expected);
        spool.close().await;
        let (spool, damage) = open(&directory, &options(64 << 20, &[]));
        assert!(damage.is_none());
        assert_eq!(spool.kept().await.unwrap(), expected);
        spool.close().await;
    });
    // The root of everything, and then some pages.
    let path = store_path(directory.path());
    let mut bytes = fs::read(&path).unwrap();
    for page in [0, 40, 41, 60] {
        bytes[page * 4096 + 200] ^= 1;
    }
    fs::write(&path, bytes).unwrap();
    run(async {
        let (spool, damage) = open(&directory, &options(64 << 20, &[]));
        assert!(damage.is_some());
        let kept = spool.kept().await.unwrap();
        assert!(kept.iter().all(|record| expected.contains(record)), "nothing that was not written");
        assert!(kept.len() > expected.len() / 2, "{} of {}", kept.len(), expected.len());
        spool.close().await;
    });
}

#[test]
fn a_store_of_the_format_before_gets_what_is_new_and_keeps_its_entries() {
    let directory = TempDir::new().unwrap();
    let written = run(async {
        let (spool, _) = open(&directory, &options(64 << 20, &[]));
        let written = spool.append(vec![message(10)], true).await.unwrap();
        spool.close().await;
        written
    });
    let db = vfs::open(&store_path(directory.path()), rusqlite::OpenFlags::default()).unwrap();
    db.execute_batch(
        "DROP TABLE mqtt_state; DROP TABLE mqtt_message; DROP TABLE mqtt_delivery; PRAGMA user_version = 2",
    )
    .unwrap();
    drop(db);
    run(async {
        let (spool, damage) = open(&directory, &options(64 << 20, &[]));
        assert!(damage.is_none());
        let record = mqtt::Record { shelf: mqtt::Shelf::State, key: 1, body: "x".into() };
        let change = mqtt::Change { shelf: record.shelf, key: record.key, body: Some(record.body.clone()) };
        spool.keep(vec![change]).await.unwrap();
        assert_eq!(spool.kept().await.unwrap(), [record]);
        assert_eq!(spool.stats().last_seq, written.start.0);
        spool.close().await;
    });
}
