//! Where log lines go: to the journal with their key-values as fields when systemd started us, else to stderr for a
//! person.
//!
//! `TIDEGATE_LOG` sets what is shown: a level (`debug`), or levels by target (`info,tidegate::uplink=trace`).

use std::fmt::Write as _;
use std::io::{IsTerminal as _, Write as _};

use log::kv::{self, VisitSource};
use log::{Level, LevelFilter, Log, Metadata, Record};
use systemd_journal_logger::{JournalLog, connected_to_journal};

/// Sets the logger up; called once. A second call changes nothing.
pub fn start() {
    let filter = Filter::parse(&std::env::var("TIDEGATE_LOG").unwrap_or_default());
    let most = filter.most();
    let logger: Box<dyn Log> = match is_to_journal().then(JournalLog::new).and_then(Result::ok) {
        Some(journal) => {
            let fields = [("TIDEGATE_VERSION", env!("CARGO_PKG_VERSION"))];
            Box::new(Filtered { filter, sink: journal.with_extra_fields(fields) })
        }
        None => Box::new(Filtered {
            filter,
            sink: Stderr { with_colour: std::io::stderr().is_terminal() && !no_colour() },
        }),
    };
    if log::set_boxed_logger(logger).is_ok() {
        log::set_max_level(most);
    }
}

/// Whether log lines go to the journal: nobody watches a terminal then.
pub fn is_to_journal() -> bool {
    connected_to_journal()
}

/// Whether the user asked for no colours (<https://no-color.org>).
pub fn no_colour() -> bool {
    std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
}

struct Filtered<L> {
    filter: Filter,
    sink: L,
}

impl<L: Log> Log for Filtered<L> {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= self.filter.level_of(metadata.target())
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            self.sink.log(record);
        }
    }

    fn flush(&self) {
        self.sink.flush();
    }
}

/// Levels by target; the longest matching target decides.
struct Filter {
    default: LevelFilter,
    targets: Vec<(String, LevelFilter)>,
}

impl Filter {
    /// Reads `info,target=debug`; what is not understood is passed over.
    fn parse(text: &str) -> Self {
        // Libraries speak at info of things that are ours to say.
        let quiet =
            ["lapin", "amq_protocol", "async_rs", "tcp_stream", "rustls", "hyper", "tungstenite", "tracing"];
        let mut filter = Self {
            default: LevelFilter::Info,
            targets: quiet.iter().map(|target| ((*target).to_owned(), LevelFilter::Error)).collect(),
        };
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            match part.split_once('=') {
                None => filter.default = part.parse().unwrap_or(filter.default),
                Some((target, level)) => {
                    if let Ok(level) = level.parse() {
                        filter.targets.retain(|(known, _)| known != target);
                        filter.targets.push((target.to_owned(), level));
                    }
                }
            }
        }
        filter.targets.sort_by_key(|(target, _)| std::cmp::Reverse(target.len()));
        filter
    }

    fn level_of(&self, target: &str) -> LevelFilter {
        self.targets
            .iter()
            .find(|(prefix, _)| target.starts_with(prefix.as_str()))
            .map_or(self.default, |(_, level)| *level)
    }

    fn most(&self) -> LevelFilter {
        self.targets.iter().map(|(_, level)| *level).fold(self.default, Ord::max)
    }
}

/// One line a record: level, message, key-values. No time: whoever keeps the lines adds it.
struct Stderr {
    with_colour: bool,
}

impl Log for Stderr {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        struct Pairs<'a>(&'a mut String);
        impl<'kvs> VisitSource<'kvs> for Pairs<'_> {
            fn visit_pair(&mut self, key: kv::Key<'kvs>, value: kv::Value<'kvs>) -> Result<(), kv::Error> {
                let _ = write!(self.0, " {key}={value}");
                Ok(())
            }
        }
        let (colour, word) = match record.level() {
            Level::Error => ("31", "error"),
            Level::Warn => ("33", "warn"),
            Level::Info => ("32", "info"),
            Level::Debug => ("34", "debug"),
            Level::Trace => ("90", "trace"),
        };
        let mut pairs = String::new();
        let _ = record.key_values().visit(&mut Pairs(&mut pairs));
        let message = record.args().to_string();
        let line: String = message.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let line = if self.with_colour {
            format!("\x1b[{colour}m{word:>5}\x1b[0m {line}\x1b[90m{pairs}\x1b[0m\n")
        } else {
            format!("{word:>5} {line}{pairs}\n")
        };
        // A closed stderr is no reason to stop.
        let _ = std::io::stderr().write_all(line.as_bytes());
    }

    fn flush(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_target_decides() {
        let filter = Filter::parse("warn, tidegate=info,tidegate::uplink=trace,nonsense=loud");
        assert_eq!(filter.level_of("other"), LevelFilter::Warn);
        assert_eq!(filter.level_of("tidegate::spool"), LevelFilter::Info);
        assert_eq!(filter.level_of("tidegate::uplink::mqtt"), LevelFilter::Trace);
        assert_eq!(filter.level_of("lapin::channel"), LevelFilter::Error);
        assert_eq!(filter.most(), LevelFilter::Trace);
    }
}
