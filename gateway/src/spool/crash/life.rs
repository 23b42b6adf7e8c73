//! One run of the whole spool, threads and all: what was asked of it, what it promised, and what of that a disk holds.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use rusqlite::OpenFlags;

use super::super::damage::open_or_quarantine;
use super::super::entry::{Body, Entry};
use super::super::reader::Reader;
use super::super::store::Batch;
use super::super::{Begun, CommandRow, Hole, Options, Progress, Seq, Spool, WhenFull, store_path, vfs};
use super::Random;
use super::recorder::Watched;
use crate::clock::Clock;

/// What was asked of the spool, and what it answered.
#[derive(Default)]
pub(super) struct Life {
    promises: Vec<Promise>,
    requests: Vec<Request>,
    /// What each uplink's peer had, ever more of it; requests and promises name places in here.
    told: HashMap<String, Vec<Progress>>,
}

/// What the spool has promised by one moment of the record.
#[derive(Default)]
struct Promise {
    /// The operations recorded by then.
    at: usize,
    /// Entries whose append was answered, by place, with what they hold.
    entries: Vec<(u64, u64)>,
    /// The progress of an uplink that was seen committed: its number in [`Life::told`].
    progress: Vec<(String, usize)>,
    /// The newest of each numbered thing that was written down: a command begun or ended, a blob, a protocol's state.
    written: Vec<(&'static str, u64)>,
}

/// What was asked for at one moment: it may be found on the disk, promised or not.
struct Request {
    at: usize,
    /// What the entries hold, in order; one append each.
    appends: Vec<Vec<u64>>,
    /// How much had been told of each uplink: a number of items in [`Life::told`].
    told: HashMap<String, usize>,
}

/// What a disk held, once the store had opened it.
#[derive(Default, Clone)]
pub(super) struct Found {
    /// What the entries hold, by place; [`NO_NUMBER`] where they are none of ours.
    entries: BTreeMap<u64, u64>,
    /// The oldest place of telemetry that may be there.
    pub(super) first: u64,
    last: u64,
    progress: HashMap<String, Progress>,
    /// Places that a gap names.
    lost: Vec<(u64, u64)>,
    written: HashMap<&'static str, u64>,
}

impl Life {
    /// Lives on what `directory` holds, which is `begun`, until a clean close.
    pub(super) fn live(
        random: &mut Random,
        watched: &Watched,
        directory: &Path,
        begun: &Found,
    ) -> Result<Self, String> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let mut life = Self::default();
        for uplink in UPLINKS {
            let progress = begun.progress.get(uplink).cloned();
            life.told.insert(uplink.to_owned(), vec![progress.unwrap_or_else(|| Progress::at(Seq(0)))]);
        }
        let mut worker = Worker {
            random,
            watched,
            number: begun.entries.values().chain(begun.written.values()).max().copied().unwrap_or(NO_NUMBER),
            last: begun.last,
        };
        worker.ask(&mut life, Vec::new());
        runtime.block_on(async {
            let (spool, damage) =
                Spool::open(directory, options(), Clock::rebooted()).map_err(|e| e.to_string())?;
            if let Some(damage) = damage {
                return Err(format!("damaged: {damage:?}"));
            }
            for _ in 0..STEPS {
                match worker.random.below(12) {
                    0..=2 => worker.confirm(&mut life, &spool).await?,
                    3 => worker.write_down(&mut life, &spool).await?,
                    _ => worker.append(&mut life, &spool).await?,
                }
            }
            spool.close().await;
            Ok(life)
        })
    }

    /// Holds what a disk held against what had been promised when the power was cut before operation `moment`.
    pub(super) fn check(&self, moment: usize, begun: &Found, found: &Found) -> Result<(), String> {
        let asked = self.asked(moment);
        let mut known = begun.entries.clone();
        known.extend(self.promised(moment).flat_map(|promise| promise.entries.iter().copied()));
        let is_named =
            |seq: u64| found.lost.iter().chain(&begun.lost).any(|(from, to)| (*from..=*to).contains(&seq));
        let had: Vec<&Progress> =
            UPLINKS.iter().map(|uplink| &self.told[*uplink][asked.told[*uplink] - 1]).collect();
        for (seq, number) in &known {
            match found.entries.get(seq) {
                Some(held) if held == number => {}
                Some(held) => return Err(format!("{seq} holds {held:x} instead of {number:x}")),
                None if is_named(*seq) => {}
                None if is_alarm(*number) && had.iter().all(|had| had.alarm.0 >= *seq) => {}
                None if is_alarm(*number) => {
                    return Err(format!("{seq}, an alarm, was promised and is lost"));
                }
                // Dropped, which is right when every uplink had it: what all have makes room first, wherever it stands.
                None if had.iter().all(|had| had.has(Seq(*seq), Seq(*seq))) => {}
                None if *seq >= found.first => return Err(format!("{seq} was promised and is lost")),
                None => {
                    return Err(format!("{seq} was dropped, not every uplink had it and no gap names it"));
                }
            }
        }
        let last = known.keys().last().copied().unwrap_or_default();
        if found.last < last {
            return Err(format!("the next place is {}, {last} was given out", found.last + 1));
        }
        check_whole(&known, asked, found)?;
        self.check_progress(moment, begun, found)?;
        for (what, number) in self.promised(moment).flat_map(|promise| &promise.written) {
            if found.written.get(what) < Some(number) {
                return Err(format!(
                    "{what} {number:x} was promised, {:x?} is there",
                    found.written.get(what)
                ));
            }
        }
        Ok(())
    }

    /// An uplink's progress is one that was told, no older than the newest that was promised.
    fn check_progress(&self, moment: usize, begun: &Found, found: &Found) -> Result<(), String> {
        for uplink in UPLINKS {
            let told = &self.told[uplink][..self.asked(moment).told[uplink]];
            let promised = self.promised(moment).flat_map(|promise| &promise.progress);
            let oldest = promised.filter(|(name, _)| name == uplink).map(|(_, at)| *at).max().unwrap_or(0);
            match found.progress.get(uplink) {
                Some(held) if told[oldest..].contains(held) => {}
                None if oldest == 0 && !begun.progress.contains_key(uplink) => {}
                held => {
                    return Err(format!(
                        "{uplink}: {held:?} is there, promised was {:?}, told {:?}",
                        told[oldest],
                        told.last()
                    ));
                }
            }
        }
        Ok(())
    }

    /// Whether the disk held entries that had not been promised.
    pub(super) fn is_early(&self, moment: usize, found: &Found) -> bool {
        let last = self.promised(moment).flat_map(|promise| &promise.entries).map(|(seq, _)| *seq).max();
        last.is_some_and(|last| found.last > last)
    }

    fn promised(&self, moment: usize) -> impl Iterator<Item = &Promise> {
        self.promises.iter().filter(move |promise| promise.at <= moment)
    }

    /// The newest request by that moment.
    fn asked(&self, moment: usize) -> &Request {
        let mut asked = self.requests.iter().rev();
        asked.find(|request| request.at <= moment).expect("the first one is made before anything is written")
    }
}

/// What is there without having been promised was asked for, and an append is there as a whole or not at all.
fn check_whole(known: &BTreeMap<u64, u64>, asked: &Request, found: &Found) -> Result<(), String> {
    let new = found.entries.iter().filter(|(seq, number)| !known.contains_key(seq) && **number != NO_NUMBER);
    let new: Vec<u64> = new.map(|(_, number)| *number).collect();
    let mut left = &new[..];
    for append in &asked.appends {
        left = left.strip_prefix(&append[..]).unwrap_or(left);
    }
    if left.is_empty() {
        return Ok(());
    }
    Err(format!("{} entries that nobody asked for, or parts of an append", left.len()))
}

struct Worker<'a> {
    random: &'a mut Random,
    watched: &'a Watched,
    /// The newest that was given to anything: numbers only grow, over all lives.
    number: u64,
    last: u64,
}

impl Worker<'_> {
    fn ask(&mut self, life: &mut Life, appends: Vec<Vec<u64>>) {
        let told = life.told.iter().map(|(uplink, told)| (uplink.clone(), told.len())).collect();
        life.requests.push(Request { at: self.watched.now(), appends, told });
    }

    fn next(&mut self) -> u64 {
        self.number += 1;
        // The lowest bit says whether an entry is an alarm.
        self.number = self.number & !1 | u64::from(self.random.below(20) == 0);
        self.number += 2;
        self.number
    }

    /// Appends, sometimes several at once, which then share a commit.
    async fn append(&mut self, life: &mut Life, spool: &Spool) -> Result<(), String> {
        let groups = if self.random.below(4) == 0 { 1 + self.random.below(4) } else { 1 };
        let mut appends = Vec::new();
        for _ in 0..groups {
            let length = 1 + self.random.below(12);
            appends.push((0..length).map(|_| self.next()).collect::<Vec<u64>>());
        }
        self.ask(life, appends.clone());
        let is_urgent = self.random.below(4) != 0;
        let waiting =
            appends.iter().map(|group| spool.append(group.iter().copied().map(entry).collect(), is_urgent));
        let answers = futures_util::future::join_all(waiting).await;
        let mut promise = self.promise(life, spool);
        for (group, answer) in appends.iter().zip(answers) {
            let places = answer.map_err(|error| error.to_string())?;
            self.last = self.last.max(places.end.0 - 1);
            promise.entries.extend((places.start.0..places.end.0).zip(group.iter().copied()));
        }
        life.promises.push(promise);
        Ok(())
    }

    /// A peer has more: everything to a place, or with a stretch left behind, or some of what was left behind.
    async fn confirm(&mut self, life: &mut Life, spool: &Spool) -> Result<(), String> {
        let uplink = UPLINKS[self.random.below(2) as usize];
        let mut progress = life.told[uplink].last().expect("the first is there from the beginning").clone();
        if let Some(hole) = progress.holes.first_mut() {
            hole.acked = Seq(hole.acked.0 + self.random.below(hole.until.0 - hole.acked.0 + 1));
            if hole.acked == hole.until {
                progress.holes.remove(0);
            }
        }
        let further =
            |random: &mut Random, from: Seq| Seq(from.0 + random.below(self.last.saturating_sub(from.0) + 1));
        let live = further(self.random, progress.live);
        if self.random.below(4) == 0 && progress.holes.len() < 3 && live > progress.live {
            progress.holes.push(Hole { acked: progress.live, until: live });
        }
        progress.live = live;
        progress.alarm = further(self.random, progress.alarm);
        let told = life.told.get_mut(uplink).expect("all uplinks are there");
        if told.last() == Some(&progress) {
            return Ok(());
        }
        told.push(progress.clone());
        self.ask(life, Vec::new());
        if self.random.below(3) == 0 {
            let state = self.next();
            let stored = spool.store_progress(uplink, progress, state.to_le_bytes().to_vec()).await;
            stored.map_err(|error| error.to_string())?;
            let mut promise = self.promise(life, spool);
            promise.written.push((if uplink == UPLINKS[0] { "state a" } else { "state b" }, state));
            life.promises.push(promise);
            return Ok(());
        }
        let is_urgent = self.random.below(2) == 0;
        spool.note_progress(uplink, progress, is_urgent).await.map_err(|error| error.to_string())
    }

    /// Something small that has to last.
    async fn write_down(&mut self, life: &mut Life, spool: &Spool) -> Result<(), String> {
        let number = self.next();
        self.ask(life, Vec::new());
        let written = if self.random.below(2) == 0 {
            spool
                .set_meta("number", number.to_le_bytes().to_vec())
                .await
                .map_err(|error| error.to_string())?;
            vec![("blob", number)]
        } else {
            let id = number.to_string();
            let command =
                CommandRow { id: id.clone(), channel: "pump/state".into(), received_ns: 1, expires_ns: None };
            let begun = spool.begin_command(command).await.map_err(|error| error.to_string())?;
            if begun != Begun::New {
                return Err(format!("a new command is {begun:?}"));
            }
            let mut promise = self.promise(life, spool);
            promise.written.push(("command", number));
            life.promises.push(promise);
            spool.finish_command(&id, "done", None).await.map_err(|error| error.to_string())?;
            vec![("outcome", number)]
        };
        let mut promise = self.promise(life, spool);
        promise.written = written;
        life.promises.push(promise);
        Ok(())
    }

    /// A promise as of now. What is committed while we look is promised no earlier than it is.
    fn promise(&self, life: &Life, spool: &Spool) -> Promise {
        let committed = spool.committed().borrow().clone();
        let place = |(uplink, progress): (&String, &Progress)| {
            let at = life.told[uplink].iter().rposition(|told| told == progress)?;
            Some((uplink.clone(), at))
        };
        let progress = committed.progress.iter().filter_map(place).collect();
        Promise { at: self.watched.now(), progress, ..Promise::default() }
    }
}

impl Found {
    /// Opens what a power cut left, as the gateway does at start, and reads everything in it.
    pub(super) fn open(directory: &Path) -> Result<Self, String> {
        let opened = open_or_quarantine(directory, &options(), Clock::rebooted());
        let (mut store, damage) = opened.map_err(|error| format!("it does not open: {error}"))?;
        if let Some(damage) = damage {
            return Err(format!("taken for damaged: {damage:?}"));
        }
        let first = store.partitions.first().map_or(0, |first| first.first.0);
        let mut found = Self { first, last: store.last_seq().0, ..Self::default() };
        found.progress = (*store.committed().progress).clone();
        let mut reader = Reader::open(&store_path(directory)).map_err(|error| error.to_string())?;
        for stored in reader.after(Seq(0), usize::MAX >> 1).map_err(|error| error.to_string())? {
            let number = match &stored.body {
                Body::Message { payload, .. } => number_in(payload)?,
                Body::Alarm { text, .. } => text.parse().map_err(|_| format!("an alarm says {text}"))?,
                Body::Gap(gap) => {
                    found.lost.extend(gap.from_seq.zip(gap.to_seq));
                    NO_NUMBER
                }
                other => return Err(format!("nobody appended {other:?}")),
            };
            found.entries.insert(stored.seq.0, number);
        }
        found.read_written(directory).map_err(|error| error.to_string())?;
        // It goes on where it stopped.
        let batch = Batch { entries: vec![entry(2)], ..Batch::default() };
        store.commit(&batch).map_err(|error| format!("no append: {error}"))?;
        if store.last_seq().0 <= found.last {
            return Err(format!("the next place is {} behind {}", store.last_seq(), found.last));
        }
        store.let_go().map_err(|error| error.to_string())?;
        Ok(found)
    }

    /// The newest of each numbered thing.
    fn read_written(&mut self, directory: &Path) -> rusqlite::Result<()> {
        let db = vfs::open(&store_path(directory), OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        let mut read = |what: &'static str, sql: &str| -> rusqlite::Result<()> {
            let mut statement = db.prepare(sql)?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                let number = match row.get_ref(0)? {
                    rusqlite::types::ValueRef::Integer(number) => number as u64,
                    blob => blob
                        .as_blob()
                        .ok()
                        .and_then(|bytes| bytes.try_into().ok())
                        .map_or(0, u64::from_le_bytes),
                };
                self.written.insert(what, number);
            }
            Ok(())
        };
        read("blob", "SELECT value FROM blob WHERE key = 'number'")?;
        read("command", "SELECT CAST(id AS INTEGER) FROM command ORDER BY n DESC LIMIT 1")?;
        read(
            "outcome",
            "SELECT CAST(id AS INTEGER) FROM command WHERE outcome = 'done' ORDER BY n DESC LIMIT 1",
        )?;
        read("state a", "SELECT value FROM blob WHERE key = 'state/a'")?;
        read("state b", "SELECT value FROM blob WHERE key = 'state/b'")
    }
}

/// An entry whose every byte follows from its number.
pub(in super::super) fn entry(number: u64) -> Entry {
    let stamp = clock().stamp();
    if is_alarm(number) {
        return Entry::Alarm { name: "a".into(), is_raised: true, text: number.to_string().into(), stamp };
    }
    let length = Random::new(number).below(2500) as usize;
    let mut payload = number.to_le_bytes().to_vec();
    payload.resize(8 + length, number as u8);
    Entry::Message { topic: "t".into(), payload: payload.into(), stamp }
}

fn is_alarm(number: u64) -> bool {
    number & 1 == 1
}

pub(in super::super) fn number_in(payload: &[u8]) -> Result<u64, String> {
    let number =
        payload.first_chunk().map(|bytes| u64::from_le_bytes(*bytes)).ok_or("a message without content")?;
    match entry(number) {
        Entry::Message { payload: expected, .. } if expected == payload => Ok(number),
        _ => Err(format!("the content of {number:x} is not what was appended")),
    }
}

pub(super) fn options() -> Options {
    Options {
        max_size: 1 << 20,
        rpo: Duration::from_millis(1),
        wear_budget: u64::MAX,
        when_full: WhenFull::DropOldest,
        retain: Duration::from_secs(3600),
        uplinks: UPLINKS.map(str::to_owned).to_vec(),
    }
}

/// Made once: it asks the system which boot this is.
pub(super) fn clock() -> Clock {
    static CLOCK: OnceLock<Clock> = OnceLock::new();
    *CLOCK.get_or_init(Clock::new)
}

const UPLINKS: [&str; 2] = ["a", "b"];
/// Jobs of one life: enough to fill partitions, to drop some and to begin the log anew.
const STEPS: usize = 300;
/// Stands for entries that are none of ours.
const NO_NUMBER: u64 = 0;
