//! What an input may cost, and where it is left when it costs more.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};
use std::{fs, panic, process, thread};

/// The longest one input may take, unoptimised and on a busy machine.
pub(crate) const LIMIT: Duration = Duration::from_secs(5);
/// The most memory the process may come to hold.
pub(crate) const MEMORY: u64 = 800_000_000;

/// The input being tried: written by the one who tries, read by the panic hook and the watcher.
static CURRENT: Mutex<Vec<u8>> = Mutex::new(Vec::new());
static COUNT: AtomicU64 = AtomicU64::new(0);
static IS_OVER: AtomicBool = AtomicBool::new(false);
static NAME: OnceLock<&'static str> = OnceLock::new();

/// Leaves the input behind on a panic, and starts the watcher of time and memory.
pub(crate) fn begin(name: &'static str) {
    NAME.get_or_init(|| name);
    let usual = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        usual(panic);
        leave("panic");
    }));
    thread::spawn(|| {
        let (mut last, mut since) = (0, Instant::now());
        while !IS_OVER.load(Ordering::Relaxed) {
            thread::sleep(Duration::from_millis(100));
            let count = COUNT.load(Ordering::Relaxed);
            if count != last {
                (last, since) = (count, Instant::now());
            } else if since.elapsed() > LIMIT {
                leave("too long");
                process::abort();
            }
            if resident() > MEMORY {
                leave("too much memory");
                process::abort();
            }
        }
    });
}

/// The input that is tried next.
pub(crate) fn note(input: &[u8]) {
    let mut current = CURRENT.lock().unwrap_or_else(PoisonError::into_inner);
    current.clear();
    current.extend_from_slice(input);
    COUNT.fetch_add(1, Ordering::Relaxed);
}

/// Everything has been tried.
pub(crate) fn end() {
    IS_OVER.store(true, Ordering::Relaxed);
}

fn leave(why: &str) {
    let name = NAME.get().unwrap_or(&"?");
    let input = CURRENT.lock().unwrap_or_else(PoisonError::into_inner);
    let path: PathBuf = harness::out_dir().join(format!("fuzz-{name}.bin"));
    match fs::write(&path, &*input) {
        Ok(()) => eprintln!("{name}: {why}; see it again: fuzz --replay {name} {}", path.display()),
        Err(error) => eprintln!("{name}: {why}; {} cannot be written: {error}: {input:02x?}", path.display()),
    }
}

fn resident() -> u64 {
    let statm = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split(' ').nth(1).and_then(|word| word.parse::<u64>().ok());
    pages.unwrap_or(0) * 4096
}
