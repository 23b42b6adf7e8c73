//! The spool beside the least that any store has to do for the same rows with the same guarantee: every batch is on the
//! disk before the next begins.
//!
//! | peer | what it does |
//! |---|---|
//! | raw file | writes each row as a fixed record of 43 or 200 bytes, without frame or checksum, one behind the other into a file that was filled with zeros beforehand, and calls `fdatasync` once a batch |
//! | bare SQLite | inserts each row into one table with the columns of ours, a batch in one transaction, WAL with `synchronous=FULL`, everything else as SQLite sets it |
//! | SQLite's thread | the same, the connection in a thread that is given a batch and answers it |
//!
//! All are given the same rows in the same batches: place, kind, channel, boot, both times, the clock's and the
//! reading's quality, and a number or 165 bytes of text. Making the rows is not measured. Each is warmed up first, so
//! that the logs of both databases have the length that they keep.
//!
//! The spool is asked as the gateway's intake asks it: the next append is under way while the last one is answered, and
//! what waits together is committed together. The lines that end in `alone` are of a caller who begins an append when
//! the one before it is answered: two changes of thread a commit, which are as long as the flush of a fast disk.
//!
//! Two lines fall short, and are shown so beside what SQLite itself reaches. Of the smallest rows a raw file writes a
//! thousand in the time that SQLite needs for a few hundred, flushed or not. And a commit that takes up pages which were
//! dropped writes SQLite's list of them, a page each time, which is much of a small commit: bare SQLite that drops its
//! oldest table pays more for it than the spool does.
//!
//! Rates are measured on the disk of the temporary directory. What reaches a device is measured on a file system of its
//! own, whose device the kernel counts for; where that cannot be had, the table says so.

use std::fmt;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use harness::{LoopDisk, Scratch, Wear, binary};
use rusqlite::Connection;
use serde_json::Value;

use crate::report::{Limit, Report};

pub(crate) fn run(rounds: usize, report: &mut Report) {
    rates(rounds, report);
    wear(rounds, report);
}

/// What a peer is given.
#[derive(Debug, Clone, Copy)]
struct Load {
    batch: usize,
    /// Bytes of text that each row holds; a number where it is 0.
    text: usize,
    /// Rows before those that are measured.
    warm_up: usize,
    count: usize,
}

fn rates(rounds: usize, report: &mut Report) {
    for load in [
        Load { batch: 10, text: 0, warm_up: 10_000, count: 10_000 },
        Load { batch: 100, text: 0, warm_up: 40_000, count: 300_000 },
        Load { batch: 1000, text: 0, warm_up: 100_000, count: 400_000 },
        Load { batch: 100, text: TEXT, warm_up: 40_000, count: 200_000 },
        Load { batch: 1000, text: TEXT, warm_up: 40_000, count: 200_000 },
    ] {
        let mut rates: [Vec<f64>; 5] = Default::default();
        for round in 0..rounds {
            for turn in 0..rates.len() {
                let peer = (turn + round) % rates.len();
                let scratch = Scratch::new("spool-bench");
                let ours = |under_way: &str| {
                    let mut spool = Spool::start(&scratch, load, &["--under-way", under_way]);
                    spool.measure()["seconds"].as_f64().expect("a number")
                };
                let spent = match peer {
                    0 => ours("2"),
                    1 => ours("1"),
                    2 => RawFile::create(&scratch, load).measure().as_secs_f64(),
                    3 => Bare::create(&scratch, load, None).measure().as_secs_f64(),
                    _ => Bare::create(&scratch, load, None).measure_behind_a_thread().as_secs_f64(),
                };
                rates[peer].push(load.count as f64 / spent);
            }
        }
        let [ours, ours_alone, raw, bare, threaded] = rates;
        // A commit of ten is little but a flush and two changes of thread: it is shown, not promised.
        let is_promised = load.batch > 10;
        let to_raw = is_promised.then_some(Limit::AtLeast(0.45));
        let to_bare = is_promised.then_some(Limit::AtLeast(0.9));
        let what = format!("spool append, {load}");
        report.beside_within(what.clone(), "rows/s", ours.clone(), "raw file", raw.clone(), to_raw);
        report.beside_within(what.clone(), "rows/s", ours, "bare SQLite", bare.clone(), to_bare);
        report.beside_within(format!("{what}, alone"), "rows/s", ours_alone.clone(), "raw file", raw, to_raw);
        let alone = format!("{what}, alone");
        report.beside_within(alone.clone(), "rows/s", ours_alone.clone(), "bare SQLite", bare, to_bare);
        report.beside_within(alone, "rows/s", ours_alone, "SQLite's thread", threaded, to_bare);
    }
}

/// Bytes and flushes of a device that holds nothing but what is measured.
fn wear(rounds: usize, report: &mut Report) {
    for load in [
        Load { batch: 10, text: 0, warm_up: 20_000, count: 30_000 },
        Load { batch: 100, text: 0, warm_up: 60_000, count: 300_000 },
        Load { batch: 1000, text: 0, warm_up: 150_000, count: 500_000 },
        Load { batch: 100, text: TEXT, warm_up: 40_000, count: 100_000 },
        Load { batch: 1000, text: TEXT, warm_up: 60_000, count: 120_000 },
    ] {
        let what = format!("spool device bytes, {load}");
        let mut figures: [Vec<f64>; 8] = Default::default();
        for _ in 0..rounds {
            match wear_of_each(load) {
                Ok(measured) => figures.iter_mut().zip(measured).for_each(|(all, one)| all.push(one)),
                Err(why) => return report.skipped(what, why),
            }
        }
        let [ours, raw, bare, flushes, kept, forgotten, bare_kept, bare_dropped] = figures;
        let three = Some(Limit::AtMost(3.0));
        report.beside_within(what.clone(), "B/row", ours.clone(), "raw file", raw, three);
        report.beside_within(what, "B/row", ours, "bare SQLite", bare, None);
        report.at_most(format!("spool flushes, {load}"), "a commit", flushes, 1.1);
        let limit = Some(Limit::AtMost(1.05));
        report.beside_within(
            format!("delete after ack, {load}"),
            "B/row",
            forgotten,
            "all kept",
            kept,
            limit,
        );
        let what = format!("bare SQLite that drops, {load}");
        report.beside_within(what, "B/row", bare_dropped, "all kept", bare_kept, None);
    }
}

/// Bytes a row of the spool, the raw file and bare SQLite, the spool's flushes a commit, and its bytes a row when an
/// uplink confirms each commit: when all is kept, and when what is confirmed is deleted. Last, bare SQLite's bytes a
/// row when it fills table after table: when all are kept, and when the oldest is dropped.
fn wear_of_each(load: Load) -> Result<[f64; 8], String> {
    let spool = |options: &[&str]| -> Result<(f64, f64), String> {
        let disk = LoopDisk::new(DISK_MEGABYTES)?;
        // Small enough that some is dropped, and for large commits large enough for the log of a store of any size.
        let small = ["--max-size", if load.text > 0 { "128" } else { "64" }];
        let mut spool = Spool::start(disk.root(), load, &[&small, options].concat());
        let before = disk.wear();
        let figures = spool.measure();
        let spent = since(before, disk.wear());
        let (commits, first) = (figures["commits"].as_f64(), figures["first_seq"].as_u64());
        let is_dropped = first.expect("its first place") > load.warm_up as u64;
        assert_eq!(is_dropped, options.contains(&"--forget"), "rows are dropped when they may be: {figures}");
        Ok((spent.bytes as f64 / load.count as f64, spent.flushes as f64 / commits.expect("its commits")))
    };
    let peer = |measure: &mut dyn FnMut(&LoopDisk) -> Wear| -> Result<f64, String> {
        Ok(measure(&LoopDisk::new(DISK_MEGABYTES)?).bytes as f64 / load.count as f64)
    };
    let raw = peer(&mut |disk| {
        let mut raw = RawFile::create(disk.root(), load);
        let before = disk.wear();
        raw.measure();
        since(before, disk.wear())
    })?;
    let bare = |tables: Option<Tables>| {
        peer(&mut |disk| {
            let mut bare = Bare::create(disk.root(), load, tables);
            let before = disk.wear();
            bare.measure();
            since(before, disk.wear())
        })
    };
    // Whole batches; the warm-up fills those that are kept, so that the measurement drops the first one soon.
    let rows = load.warm_up / 3 / load.batch * load.batch;
    let bare_kept = bare(Some(Tables { rows, kept: usize::MAX }))?;
    let bare_dropped = bare(Some(Tables { rows, kept: 2 }))?;
    let bare = bare(None)?;
    let (ours, flushes) = spool(&[])?;
    let (kept, _) = spool(&["--confirm"])?;
    let (forgotten, _) = spool(&["--confirm", "--forget"])?;
    Ok([ours, raw, bare, flushes, kept, forgotten, bare_kept, bare_dropped])
}

fn since(before: Wear, after: Wear) -> Wear {
    Wear { bytes: after.bytes - before.bytes, flushes: after.flushes - before.flushes }
}

/// `tidegate bench-spool`, warmed up.
struct Spool {
    process: Child,
    answers: BufReader<std::process::ChildStdout>,
}

impl Spool {
    fn start(directory: &Path, load: Load, options: &[&str]) -> Self {
        let Load { batch, text, warm_up, count } = load;
        let text = (text > 0).then(|| format!("--text={text}"));
        let mut process = Command::new(binary())
            .args(["bench-spool", "--attended", "--batch", &batch.to_string(), "--count", &count.to_string()])
            .args(["--warm-up", &warm_up.to_string()])
            .args(text)
            .args(options)
            .arg("--state-dir")
            .arg(directory.join("state"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary can be started");
        let answers = BufReader::new(process.stdout.take().expect("piped"));
        let mut spool = Self { process, answers };
        let word = spool.answer();
        assert_eq!(word.trim(), "warm");
        spool
    }

    /// Its figures; it still holds its files open then.
    fn measure(&mut self) -> Value {
        self.process.stdin.as_mut().expect("piped").write_all(b"\n").expect("it waits for a line");
        serde_json::from_str(&self.answer()).expect("its answer is JSON")
    }

    fn answer(&mut self) -> String {
        let mut line = String::new();
        let _ = self.answers.read_line(&mut line);
        if line.is_empty() {
            let mut error = String::new();
            let _ = self.process.stderr.take().expect("piped").read_to_string(&mut error);
            panic!("tidegate bench-spool has ended: {error}");
        }
        line
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
}

/// A row as the spool's table holds it.
#[derive(Debug, Clone, Copy)]
struct Row {
    seq: i64,
    kind: i64,
    channel: i64,
    boot: i64,
    mono: i64,
    wall: i64,
    clock: i64,
    quality: i64,
    value: f64,
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "batch {} of {} B", self.batch, self.record())
    }
}

impl Load {
    /// Bytes of a row in the raw file.
    fn record(&self) -> usize {
        FIXED + if self.text > 0 { self.text } else { 8 }
    }
}

impl Row {
    /// The row behind so many others, measured now, with the numbers that the spool gives.
    fn make(before: usize, start: Instant) -> Self {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock behind 1970");
        Self {
            seq: before as i64 + 1,
            kind: 0,
            channel: before as i64 % 12 + 1,
            boot: 1,
            mono: start.elapsed().as_nanos() as i64 + UPTIME_NS,
            wall: wall.as_nanos() as i64,
            clock: 4,
            quality: 0,
            value: before as f64 / 8.0,
        }
    }

    fn write(&self, text: &str, bytes: &mut Vec<u8>) {
        let mut record = [0; FIXED];
        record[0..8].copy_from_slice(&self.seq.to_le_bytes());
        record[8..16].copy_from_slice(&self.mono.to_le_bytes());
        record[16..24].copy_from_slice(&self.wall.to_le_bytes());
        record[24..28].copy_from_slice(&(self.channel as u32).to_le_bytes());
        record[28..32].copy_from_slice(&(self.boot as u32).to_le_bytes());
        record[32..35].copy_from_slice(&[self.kind as u8, self.clock as u8, self.quality as u8]);
        bytes.extend_from_slice(&record);
        if text.is_empty() {
            bytes.extend_from_slice(&self.value.to_le_bytes());
        } else {
            bytes.extend_from_slice(text.as_bytes());
        }
    }
}

/// Gives `count` rows to `append`, a batch at a time; how long it took.
fn feed(done: &mut usize, batch: usize, count: usize, mut append: impl FnMut(&[Row])) -> Duration {
    let start = Instant::now();
    let end = *done + count;
    let mut spent = Duration::ZERO;
    let mut rows = Vec::with_capacity(batch);
    while *done < end {
        rows.clear();
        rows.extend((*done..end.min(*done + batch)).map(|before| Row::make(before, start)));
        *done += rows.len();
        let begun = Instant::now();
        append(&rows);
        spent += begun.elapsed();
    }
    spent
}

/// Fixed records in a file that does not grow any more.
struct RawFile {
    file: File,
    at: u64,
    bytes: Vec<u8>,
    text: String,
    load: Load,
    done: usize,
}

impl RawFile {
    fn create(directory: &Path, load: Load) -> Self {
        let mut file = File::create(directory.join("raw")).expect("the directory is writable");
        let zeros = vec![0; load.record() * 10_000];
        for _ in 0..(load.warm_up + load.count).div_ceil(10_000) {
            file.write_all(&zeros).expect("there is room");
        }
        file.sync_all().expect("the disk takes it");
        let mut raw = Self { file, at: 0, bytes: Vec::new(), text: "t".repeat(load.text), load, done: 0 };
        raw.append(load.warm_up);
        raw
    }

    fn measure(&mut self) -> Duration {
        self.append(self.load.count)
    }

    fn append(&mut self, count: usize) -> Duration {
        let Self { file, at, bytes, text, load, done } = self;
        feed(done, load.batch, count, |rows| {
            bytes.clear();
            for row in rows {
                row.write(text, bytes);
            }
            file.write_all_at(bytes, *at).expect("there is room");
            file.sync_data().expect("the disk takes it");
            *at += bytes.len() as u64;
        })
    }
}

/// Tables of so many rows, of which the last `kept` and the one being filled are there.
#[derive(Debug, Clone, Copy)]
struct Tables {
    rows: usize,
    kept: usize,
}

/// One table in SQLite, or one behind the other.
struct Bare {
    connection: Connection,
    text: String,
    load: Load,
    done: usize,
    tables: Tables,
}

impl Bare {
    fn create(directory: &Path, load: Load, tables: Option<Tables>) -> Self {
        let open = || -> rusqlite::Result<Connection> {
            let connection = Connection::open(directory.join("bare.db"))?;
            connection.pragma_update(None, "journal_mode", "WAL")?;
            connection.pragma_update(None, "synchronous", "FULL")?;
            Ok(connection)
        };
        let connection = open().expect("SQLite can write there");
        let tables = tables.unwrap_or(Tables { rows: usize::MAX, kept: usize::MAX });
        let mut bare = Self { connection, text: "t".repeat(load.text), load, done: 0, tables };
        bare.append(load.warm_up);
        bare
    }

    fn measure(&mut self) -> Duration {
        self.append(self.load.count)
    }

    fn append(&mut self, count: usize) -> Duration {
        let Self { connection, text, load, done, tables } = self;
        feed(done, load.batch, count, |rows| {
            insert(connection, text, *tables, rows).expect("SQLite can write there");
        })
    }

    /// As [`Bare::measure`], but the connection belongs to a thread of its own, which is given a batch at a time and
    /// answers when it is committed: what any store costs whose callers do not wait for the disk themselves.
    fn measure_behind_a_thread(&mut self) -> Duration {
        let Self { connection, text, load, done, tables } = self;
        let (batches, jobs) = mpsc::channel::<Vec<Row>>();
        let (answers, commits) = mpsc::channel();
        thread::scope(|scope| {
            scope.spawn(move || {
                for rows in jobs {
                    insert(connection, text, *tables, &rows).expect("SQLite can write there");
                    answers.send(()).expect("who asked waits");
                }
            });
            let spent = feed(done, load.batch, load.count, |rows| {
                batches.send(rows.to_vec()).expect("the thread lives");
                commits.recv().expect("the thread lives");
            });
            drop(batches);
            spent
        })
    }
}

/// One transaction.
fn insert(connection: &mut Connection, text: &str, tables: Tables, rows: &[Row]) -> rusqlite::Result<()> {
    let transaction = connection.transaction()?;
    let first = rows.first().map_or(0, |row| row.seq as usize - 1);
    // A batch is in the table of its first row.
    let table = first / tables.rows;
    if first.is_multiple_of(tables.rows) {
        transaction.execute_batch(&format!(
            "CREATE TABLE r{table} (seq INTEGER PRIMARY KEY, kind INTEGER NOT NULL, channel INTEGER NOT NULL, \
             boot INTEGER NOT NULL, mono INTEGER NOT NULL, wall INTEGER NOT NULL, clock INTEGER NOT NULL, \
             quality INTEGER NOT NULL, value)",
        ))?;
        if let Some(oldest) = table.checked_sub(tables.kept).and_then(|table| table.checked_sub(1)) {
            transaction.execute_batch(&format!("DROP TABLE r{oldest}"))?;
        }
    }
    {
        let insert = format!("INSERT INTO r{table} VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)");
        let mut insert = transaction.prepare_cached(&insert)?;
        for row in rows {
            let Row { seq, kind, channel, boot, mono, wall, clock, quality, value } = *row;
            if text.is_empty() {
                insert.execute((seq, kind, channel, boot, mono, wall, clock, quality, value))?;
            } else {
                insert.execute((seq, kind, channel, boot, mono, wall, clock, quality, text))?;
            }
        }
    }
    transaction.commit()
}

/// Bytes of a row in the raw file but for its value.
const FIXED: usize = 35;
/// With the others, a row of 200 bytes.
const TEXT: usize = 165;
/// The monotonic time of a machine that has run for a day.
const UPTIME_NS: i64 = 86_400 * 1_000_000_000;
/// Room for the largest load in every form, and for the file system's own journal.
const DISK_MEGABYTES: u64 = 256;
