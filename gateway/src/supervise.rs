//! Every task of the daemon is started here: the first that ends unasked ends all, with its name.

use std::time::Duration;

use log::{error, warn};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// The running tasks and the one token that stops them.
#[derive(Debug, Default)]
pub struct Supervisor {
    tasks: JoinSet<&'static str>,
    stop: CancellationToken,
}

impl Supervisor {
    /// The token that fires when everything is to end.
    pub fn token(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Starts a task that runs as long as the gateway does.
    pub fn spawn(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(async move {
            task.await;
            name
        });
    }

    /// Waits until a task ends although nobody asked; gives its name. Cancel-safe.
    pub async fn first_to_end(&mut self) -> &'static str {
        loop {
            match self.tasks.join_next().await {
                Some(Ok(name)) if self.stop.is_cancelled() => warn!(task:% = name; "ended"),
                Some(Ok(name)) => return name,
                Some(Err(failure)) => {
                    error!("a task failed: {failure}");
                    return "a task that panicked";
                }
                None => std::future::pending().await,
            }
        }
    }

    /// Asks all tasks to end and waits for them, at most `limit`.
    pub async fn stop(mut self, limit: Duration) {
        self.stop.cancel();
        let all = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(limit, all).await.is_err() {
            warn!("some tasks did not end within {limit:?} and are dropped");
        }
    }
}
