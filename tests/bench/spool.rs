//! The spool's append rate beside the least that SQLite asks for the same guarantee: one table, the same batch in one
//! transaction, WAL with `synchronous=FULL`, on the same disk.

use std::process::Command;
use std::time::Instant;

use harness::{Scratch, binary};
use rusqlite::Connection;

use crate::report::Report;

pub(crate) fn run(rounds: usize, report: &mut Report) {
    for (batch, count) in [(10, 5_000), (100, 50_000), (1000, 200_000)] {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for round in 0..rounds {
            for turn in 0..2 {
                if (turn + round) % 2 == 0 {
                    ours.push(spool(batch, count));
                } else {
                    theirs.push(bare(batch, count));
                }
            }
        }
        report.beside(format!("spool append, batch {batch}"), "rows/s", ours, "bare SQLite", theirs);
    }
}

fn spool(batch: u32, count: u32) -> f64 {
    let scratch = Scratch::new("spool-bench");
    let output = Command::new(binary())
        .args(["bench-spool", "--batch", &batch.to_string(), "--count", &count.to_string(), "--state-dir"])
        .arg(&*scratch)
        .output()
        .expect("the binary can be started");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "tidegate bench-spool: {}: {error}", output.status);
    let figures: serde_json::Value = serde_json::from_slice(&output.stdout).expect("its answer is JSON");
    figures["rows_per_s"].as_f64().expect("its answer has rows_per_s")
}

fn bare(batch: u32, count: u32) -> f64 {
    let scratch = Scratch::new("sqlite-bench");
    let run = || -> rusqlite::Result<f64> {
        let mut connection = Connection::open(scratch.join("bare.db"))?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.execute("CREATE TABLE r (seq INTEGER PRIMARY KEY, payload BLOB)", [])?;
        let payload = [0x5A; 100];
        let begun = Instant::now();
        let mut seq = 0;
        while seq < count {
            let transaction = connection.transaction()?;
            {
                let mut insert = transaction.prepare_cached("INSERT INTO r VALUES (?1, ?2)")?;
                for _ in 0..batch {
                    insert.execute((seq, payload))?;
                    seq += 1;
                }
            }
            transaction.commit()?;
        }
        Ok(f64::from(seq) / begun.elapsed().as_secs_f64())
    };
    run().expect("SQLite can write to the temporary directory")
}
