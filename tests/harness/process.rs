//! A child process: its lines awaited, its log kept, its end certain.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Sender, channel, sync_channel};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// A process in a group of its own, whose standard output and error go line by line to a log.
///
/// When dropped, the group is killed; when the test is failing, the end of the log is printed first. The process also
/// dies with the test's process, however that ends.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    lines: Arc<Lines>,
    ended: Option<ExitStatus>,
}

/// What stands before a command line to run it in a namespace of its own: `kind` is `--mount` or `--net`. Where that is
/// allowed as it is (to root), no user namespace is made: not every place allows one.
pub fn unshare(kind: &str) -> Vec<&str> {
    let is_allowed = Command::new("unshare").args([kind, "true"]).stderr(Stdio::null()).status();
    let mut words = vec!["unshare", kind];
    if !is_allowed.is_ok_and(|status| status.success()) {
        words.push("--map-root-user");
    }
    words
}

#[derive(Debug, Default)]
struct Lines {
    seen: Mutex<Seen>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Seen {
    lines: Vec<String>,
    open_streams: usize,
}

impl Process {
    /// Starts `command`; its output is appended to `NAME.log` in `dir`.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(name: &str, dir: &Path, mut command: Command) -> Self {
        command.stdin(Stdio::null());
        Self::spawn(name, dir, command)
    }

    /// The same for one that reads what [`Process::say`] writes.
    pub fn start_listening(name: &str, dir: &Path, mut command: Command) -> Self {
        command.stdin(Stdio::piped());
        Self::spawn(name, dir, command)
    }

    fn spawn(name: &str, dir: &Path, mut command: Command) -> Self {
        let log = dir.join(format!("{name}.log"));
        let file = File::options().create(true).append(true).open(&log);
        let file = Arc::new(file.unwrap_or_else(|e| panic!("cannot open {}: {e}", log.display())));
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        die_with_this_process(&mut command);
        let shown = format!("{command:?}");
        let mut child = spawn(command).unwrap_or_else(|e| panic!("cannot start {name}: {e}: {shown}"));
        let lines = Arc::new(Lines::default());
        lines.lock().open_streams = 2;
        follow(child.stdout.take().expect("piped"), Arc::clone(&file), Arc::clone(&lines));
        follow(child.stderr.take().expect("piped"), file, Arc::clone(&lines));
        Self { name: name.to_owned(), child, log, lines, ended: None }
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Everything it has printed since it was started, line by line.
    pub fn lines(&self) -> Vec<String> {
        self.lines.lock().lines.clone()
    }

    /// Writes a line to its standard input; what it no longer reads is lost.
    ///
    /// # Panics
    /// When it was not started to listen.
    pub fn say(&mut self, line: &str) {
        let input = self.child.stdin.as_mut().expect("it was started to listen");
        // Whoever waits for its answer sees that it has ended.
        let _ = input.write_all(format!("{line}\n").as_bytes());
    }

    /// The line with that number, counted from zero, as soon as it is printed; `None` when its output ends first, or
    /// after `limit`.
    pub fn line(&self, number: usize, limit: Duration) -> Option<String> {
        let seen = self.lines.lock();
        let is_to_come = |seen: &mut Seen| seen.lines.len() <= number && seen.open_streams > 0;
        let (seen, _) = self
            .lines
            .changed
            .wait_timeout_while(seen, limit, is_to_come)
            .unwrap_or_else(PoisonError::into_inner);
        seen.lines.get(number).cloned()
    }

    /// Waits for the first line that contains `needle`, those already printed included.
    ///
    /// # Panics
    /// When the process closes its output first, or after `limit`.
    pub fn wait_for_line(&self, needle: &str, limit: Duration) -> String {
        let deadline = Instant::now() + limit;
        let mut seen = self.lines.lock();
        let mut next = 0;
        loop {
            if let Some(line) = seen.lines[next..].iter().find(|line| line.contains(needle)) {
                return line.clone();
            }
            next = seen.lines.len();
            let left = deadline.saturating_duration_since(Instant::now());
            let is_closed = seen.open_streams == 0;
            if is_closed || left.is_zero() {
                drop(seen);
                let why = if is_closed { "it ended".to_owned() } else { format!("{limit:?} went by") };
                panic!("{}: no line with `{needle}`: {why}\n{}", self.name, self.end_of_log());
            }
            seen = self.lines.changed.wait_timeout(seen, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.try_wait().is_none()
    }

    /// Sends `SIGKILL` to the whole group and waits for its end.
    pub fn kill(&mut self) {
        if self.try_wait().is_none() {
            signal_group(self.child.id(), libc::SIGKILL);
            self.ended = self.child.wait().ok();
        }
        self.lines.wait_closed();
    }

    /// Sends `SIGTERM` and waits; the time it took and how it ended.
    ///
    /// # Panics
    /// When it still runs after `limit`.
    pub fn terminate(&mut self, limit: Duration) -> (Duration, ExitStatus) {
        let begun = Instant::now();
        if self.try_wait().is_none() {
            signal(self.child.id(), libc::SIGTERM);
        }
        let status = self.wait(limit);
        (begun.elapsed(), status)
    }

    /// Sends a signal to the process.
    pub fn signal(&self, number: i32) {
        signal(self.child.id(), number);
    }

    /// Waits for it to end by itself.
    ///
    /// # Panics
    /// When it still runs after `limit`.
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        let ended = wait_until(limit, || self.try_wait());
        let status = ended.unwrap_or_else(|| {
            panic!("{} still runs after {limit:?}\n{}", self.name, self.end_of_log());
        });
        self.lines.wait_closed();
        status
    }

    /// Resident memory in bytes, from `/proc`; `None` when it has ended.
    pub fn resident_bytes(&self) -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).ok()?;
        let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib * 1024)
    }

    /// Bytes that it has caused to be written to a disk; `None` once it has ended, or where the kernel does not count.
    pub fn written_bytes(&self) -> Option<u64> {
        let counts = std::fs::read_to_string(format!("/proc/{}/io", self.id())).ok()?;
        counts.lines().find_map(|line| line.strip_prefix("write_bytes: ")?.parse().ok())
    }

    /// The time all its threads have spent on a processor, to the nanosecond; `None` when it has ended.
    ///
    /// A thread that has ended takes its part with it: compare two moments with the same threads.
    pub fn cpu_time(&self) -> Option<Duration> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.child.id())).ok()?;
        let mut total = Duration::ZERO;
        for task in tasks.flatten() {
            let Ok(text) = fs::read_to_string(task.path().join("schedstat")) else { continue };
            let first = text.split_whitespace().next().and_then(|word| word.parse().ok());
            total += Duration::from_nanos(first.unwrap_or(0));
        }
        Some(total)
    }

    fn try_wait(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().ok().flatten();
        }
        self.ended
    }

    fn end_of_log(&self) -> String {
        let seen = self.lines.lock();
        let from = seen.lines.len().saturating_sub(40);
        format!("--- {} (whole log: {})\n{}", self.name, self.log.display(), seen.lines[from..].join("\n"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{}", self.end_of_log());
        }
        self.kill();
    }
}

impl Lines {
    fn lock(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A grandchild may hold the pipe for ever, so this waits a second and no longer.
    fn wait_closed(&self) {
        let seen = self.lock();
        let _ = self.changed.wait_timeout_while(seen, Duration::from_secs(1), |seen| seen.open_streams > 0);
    }
}

/// Asks `check` every 5 ms until it answers, at most for `limit`; for what gives no event to wait for.
pub fn wait_until<T>(limit: Duration, mut check: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = check() {
            return Some(found);
        }
        if Instant::now() >= deadline {
            return None;
        }
        thread::sleep(Duration::from_millis(5));
    }
}

fn follow(stream: impl Read + Send + 'static, mut file: Arc<File>, lines: Arc<Lines>) {
    thread::spawn(move || {
        let mut reader = BufReader::new(stream);
        let mut raw = Vec::new();
        while reader.read_until(b'\n', &mut raw).is_ok_and(|n| n > 0) {
            // The log is for people: losing a line of it to a full disk fails nothing.
            let _ = file.write_all(&raw);
            let line = String::from_utf8_lossy(&raw).trim_end().to_owned();
            lines.lock().lines.push(line);
            lines.changed.notify_all();
            raw.clear();
        }
        lines.lock().open_streams -= 1;
        lines.changed.notify_all();
    });
}

/// Starts the command from one thread that lives as long as the process: `PR_SET_PDEATHSIG` follows the parent's
/// thread, and a test's own thread may end before what it started.
fn spawn(command: Command) -> std::io::Result<Child> {
    type Job = (Command, std::sync::mpsc::SyncSender<std::io::Result<Child>>);
    static SPAWNER: OnceLock<Sender<Job>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        // Unbounded, but every sender waits for its answer: as long as the number of threads.
        let (jobs, queue) = channel::<Job>();
        thread::spawn(move || {
            for (mut command, answer) in queue {
                let _ = answer.send(command.spawn());
            }
        });
        jobs
    });
    let (answer, started) = sync_channel(1);
    spawner.send((command, answer)).expect("the spawner lives as long as the process");
    started.recv().expect("the spawner answers every job")
}

#[expect(unsafe_code, reason = "prctl is async-signal-safe and touches only the child")]
fn die_with_this_process(command: &mut Command) {
    // SAFETY: the closure makes one system call and allocates nothing.
    unsafe {
        command.pre_exec(|| {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            Ok(())
        });
    }
}

#[expect(unsafe_code, reason = "std has no way to send a signal other than SIGKILL")]
fn signal(id: u32, number: i32) {
    // SAFETY: kill has no memory effects; the id is that of a child not yet waited for.
    unsafe { libc::kill(id as i32, number) };
}

#[expect(unsafe_code, reason = "std cannot signal a process group")]
fn signal_group(id: u32, number: i32) {
    // SAFETY: as above; the child leads a group of its own.
    unsafe { libc::kill(-(id as i32), number) };
}
