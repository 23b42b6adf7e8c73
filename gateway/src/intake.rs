//! The one bounded queue in: readings, LAN clients' messages and outcomes on their way to the spool.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::spool::{Entry, Gap, GapReason, Spool};

/// Puts entries on the way to the spool.
#[derive(Clone)]
pub struct Intake {
    queue: mpsc::Sender<Item>,
    dropped: Arc<AtomicU64>,
}

struct Item {
    entry: Entry,
    waiting: Option<Done>,
}

impl Intake {
    /// The queue and the task that empties it.
    pub fn new(
        spool: Spool,
        clock: Clock,
        stop: CancellationToken,
    ) -> (Self, impl Future<Output = ()> + Send) {
        let (queue, items) = mpsc::channel(QUEUE);
        let intake = Self { queue, dropped: Arc::default() };
        (intake.clone(), run(items, spool, clock, intake.dropped, stop))
    }

    /// Queues an entry that nobody waits for. Full: the entry is dropped and counted, and the count becomes a gap.
    pub fn offer(&self, entry: Entry) {
        if self.queue.try_send(Item { entry, waiting: None }).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Queues an entry and fires `done` after the commit that holds it. Full: waits.
    pub async fn store(&self, entry: Entry, done: Done) {
        // A closed queue drops `done`, which its receiver takes for a refusal.
        let _ = self.queue.send(Item { entry, waiting: Some(done) }).await;
    }

    /// Entries dropped because the queue was full, since start.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

async fn run(
    mut items: mpsc::Receiver<Item>,
    spool: Spool,
    clock: Clock,
    dropped: Arc<AtomicU64>,
    stop: CancellationToken,
) {
    let mut commits = FuturesUnordered::new();
    let mut batch = Vec::with_capacity(BATCH);
    let mut told = 0;
    loop {
        tokio::select! {
            // Cancelled: what is queued is still taken below.
            () = stop.cancelled() => break,
            Some(()) = commits.next() => {}
            // Cancel-safe: items are moved only when the call completes.
            taken = items.recv_many(&mut batch, BATCH), if commits.len() < COMMITS_IN_FLIGHT => {
                if taken == 0 {
                    break;
                }
                let lost = dropped.load(Ordering::Relaxed);
                if lost > told {
                    let gap = Gap { from_seq: None, to_seq: None, count: Some(lost - told), reason: GapReason::Overload };
                    batch.push(Item { entry: Entry::Gap { gap, stamp: clock.stamp() }, waiting: None });
                    told = lost;
                }
                hand_over(&spool, &mut batch, &mut commits).await;
            }
        }
    }
    items.close();
    while items.recv_many(&mut batch, BATCH).await > 0 {
        hand_over(&spool, &mut batch, &mut commits).await;
    }
    while commits.next().await.is_some() {}
}

/// Hands a batch to the spool's writer. What nobody waits for is handed over and done with; the writer decides when to
/// commit it. A full writer is waited for, and meanwhile the queue fills.
async fn hand_over(spool: &Spool, batch: &mut Vec<Item>, commits: &mut FuturesUnordered<BoxFuture<'_, ()>>) {
    let is_waited_for = batch.iter().any(|item| item.waiting.is_some());
    let (entries, waiting): (Vec<Entry>, Vec<_>) =
        batch.drain(..).map(|item| (item.entry, item.waiting)).unzip();
    if is_waited_for {
        commits.push(Box::pin(commit(spool.clone(), entries, waiting)));
    } else {
        // A closed spool is the end of the gateway: nothing is left to tell.
        let _ = spool.offer(entries).await;
    }
}

async fn commit(spool: Spool, entries: Vec<Entry>, waiting: Vec<Option<Done>>) {
    let result = spool.append(entries, true).await.map(drop).map_err(|error| error.to_string());
    for done in waiting.into_iter().flatten() {
        let _ = done.send(result.clone());
    }
}

type Done = oneshot::Sender<Result<(), String>>;

/// Full: telemetry is dropped and counted, whoever waits for a commit waits longer.
const QUEUE: usize = 16_384;
/// Entries per append.
const BATCH: usize = 1024;
/// Appends under way that somebody waits for; the spool's writer joins them into one commit.
const COMMITS_IN_FLIGHT: usize = 8;
