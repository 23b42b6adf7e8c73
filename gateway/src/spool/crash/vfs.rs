//! A shim between SQLite and the disk: everything passes through to the system's own VFS, and what is written to a
//! watched directory is recorded in order, so that [`super::disk`] can rebuild what a power cut would have left.
//!
//! It is the test process's default VFS, so that the store under test opens its files as it always does. Directories
//! that are not watched never meet it: their files get the system's methods directly. The shared memory beside a WAL
//! is no disk and passes through.
#![expect(
    unsafe_code,
    reason = "SQLite asks its VFS for a table of C functions; rusqlite has no face for that"
)]

use std::ffi::{CStr, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use rusqlite::ffi;

use super::disk::Log;

/// A directory whose writes are recorded, for as long as this is held.
pub(super) struct Watched {
    directory: PathBuf,
    log: Arc<Mutex<Log>>,
}

impl Watched {
    /// Records what SQLite writes in `directory` from now on, to files opened from now on. With `is_normal`,
    /// connections there run with `synchronous=NORMAL` whatever they ask for.
    pub(super) fn new(directory: &Path, is_normal: bool) -> Self {
        static SHIM: OnceLock<()> = OnceLock::new();
        SHIM.get_or_init(register);
        let log = Arc::new(Mutex::new(Log::default()));
        let entry = Entry { directory: directory.to_owned(), log: log.clone(), is_normal };
        watched().push(entry);
        Self { directory: directory.to_owned(), log }
    }

    /// How many operations have been recorded: a moment to cut the power at.
    pub(super) fn now(&self) -> usize {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Everything recorded so far; later writes are no longer in it.
    pub(super) fn take(&self) -> Log {
        std::mem::take(&mut self.log.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        watched().retain(|entry| entry.directory != self.directory);
    }
}

struct Entry {
    directory: PathBuf,
    log: Arc<Mutex<Log>>,
    is_normal: bool,
}

fn watched() -> std::sync::MutexGuard<'static, Vec<Entry>> {
    static WATCHED: Mutex<Vec<Entry>> = Mutex::new(Vec::new());
    WATCHED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Who records what happens to the file at `path`; its number in the log.
fn recorder(path: *const c_char) -> Option<Recorder> {
    if path.is_null() {
        return None;
    }
    // SAFETY: SQLite's paths are terminated strings that live for the call.
    let path = Path::new(unsafe { CStr::from_ptr(path) }.to_str().ok()?);
    let watched = watched();
    let entry = watched.iter().find(|entry| path.parent() == Some(&entry.directory))?;
    let name = path.file_name()?.to_str()?;
    let file = entry.log.lock().unwrap_or_else(PoisonError::into_inner).file(name);
    Some(Recorder { log: entry.log.clone(), file, is_normal: entry.is_normal })
}

struct Recorder {
    log: Arc<Mutex<Log>>,
    file: usize,
    is_normal: bool,
}

impl Recorder {
    fn log(&self) -> std::sync::MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An open file: SQLite's part first, then ours; the system's own file lies right behind in the same memory.
#[repr(C)]
struct File {
    base: ffi::sqlite3_file,
    recorder: *mut Recorder,
}

/// Puts the shim before the system's VFS.
fn register() {
    // SAFETY: the default VFS is never unregistered, and its table may be copied: its functions take everything they
    // need from `pAppData`, which is copied with it. The copy is leaked and so lives as long as SQLite holds it.
    unsafe {
        let system = ffi::sqlite3_vfs_find(std::ptr::null());
        assert!(!system.is_null(), "SQLite has a default VFS");
        let mut shim = *system;
        shim.zName = c"recording".as_ptr();
        shim.pNext = std::ptr::null_mut();
        shim.szOsFile += size_of::<File>() as c_int;
        shim.xOpen = Some(open);
        shim.xDelete = Some(delete);
        SYSTEM.get_or_init(|| System(system));
        let registered = ffi::sqlite3_vfs_register(Box::leak(Box::new(shim)), 1);
        assert_eq!(registered, ffi::SQLITE_OK, "SQLite takes the shim");
    }
}

struct System(*mut ffi::sqlite3_vfs);
// SAFETY: the table it points to is written once, before SQLite's first use, and only read here.
unsafe impl Send for System {}
// SAFETY: as above.
unsafe impl Sync for System {}

static SYSTEM: OnceLock<System> = OnceLock::new();

fn system() -> *mut ffi::sqlite3_vfs {
    SYSTEM.get().expect("registered before anything is opened").0
}

unsafe extern "C" fn open(
    _: *mut ffi::sqlite3_vfs,
    path: ffi::sqlite3_filename,
    file: *mut ffi::sqlite3_file,
    flags: c_int,
    out: *mut c_int,
) -> c_int {
    let recorder = recorder(path);
    // SAFETY: SQLite gives `szOsFile` bytes at `file`: room for our part and the system's behind it, or for the
    // system's alone. Its paths and flags pass through as they came.
    unsafe {
        let Some(system_open) = (*system()).xOpen else { return ffi::SQLITE_CANTOPEN };
        let Some(recorder) = recorder else { return system_open(system(), path, file, flags, out) };
        let code = system_open(system(), path, below(file), flags, out);
        let ours = file.cast::<File>();
        // Without methods SQLite does not call close.
        (*ours).base.pMethods = std::ptr::null();
        if code == ffi::SQLITE_OK {
            (*ours).base.pMethods = &raw const METHODS;
            (*ours).recorder = Box::into_raw(Box::new(recorder));
        }
        code
    }
}

unsafe extern "C" fn delete(_: *mut ffi::sqlite3_vfs, path: *const c_char, is_synced: c_int) -> c_int {
    // SAFETY: passed through as it came.
    let code =
        unsafe { (*system()).xDelete.map_or(ffi::SQLITE_IOERR, |delete| delete(system(), path, is_synced)) };
    if code == ffi::SQLITE_OK
        && let Some(recorder) = recorder(path)
    {
        recorder.log().delete(recorder.file, is_synced != 0);
    }
    code
}

/// The system's file behind ours.
unsafe fn below(file: *mut ffi::sqlite3_file) -> *mut ffi::sqlite3_file {
    // SAFETY: `open` has made room for both; `File` is as aligned as a pointer, which the system's file begins with.
    unsafe { file.cast::<File>().add(1).cast() }
}

/// Calls the system's method of that name on the system's file.
macro_rules! pass {
    ($file:expr, $method:ident $(, $argument:expr)*) => {{
        let below = below($file);
        match (*(*below).pMethods).$method {
            Some(method) => method(below $(, $argument)*),
            None => return ffi::SQLITE_IOERR,
        }
    }};
}

/// Our recorder of an open file.
unsafe fn recorder_of<'a>(file: *mut ffi::sqlite3_file) -> &'a Recorder {
    // SAFETY: set by `open` and given free by `close`, between which SQLite calls all other methods.
    unsafe { &*(*file.cast::<File>()).recorder }
}

// SAFETY, for all of these: SQLite calls a method with a file that `open` has set up and buffers of the length it
// names; all of it passes through unchanged.

unsafe extern "C" fn close(file: *mut ffi::sqlite3_file) -> c_int {
    unsafe {
        drop(Box::from_raw((*file.cast::<File>()).recorder));
        pass!(file, xClose)
    }
}

unsafe extern "C" fn read(file: *mut ffi::sqlite3_file, to: *mut c_void, n: c_int, at: i64) -> c_int {
    unsafe { pass!(file, xRead, to, n, at) }
}

unsafe extern "C" fn write(file: *mut ffi::sqlite3_file, from: *const c_void, n: c_int, at: i64) -> c_int {
    unsafe {
        let code = pass!(file, xWrite, from, n, at);
        if code == ffi::SQLITE_OK {
            let recorder = recorder_of(file);
            let data = std::slice::from_raw_parts(from.cast::<u8>(), n as usize);
            recorder.log().write(recorder.file, at as usize, data);
        }
        code
    }
}

unsafe extern "C" fn truncate(file: *mut ffi::sqlite3_file, size: i64) -> c_int {
    unsafe {
        let code = pass!(file, xTruncate, size);
        if code == ffi::SQLITE_OK {
            let recorder = recorder_of(file);
            recorder.log().truncate(recorder.file, size as usize);
        }
        code
    }
}

unsafe extern "C" fn sync(file: *mut ffi::sqlite3_file, flags: c_int) -> c_int {
    unsafe {
        // The real flush is left out: what counts is that it was asked for, and when.
        let recorder = recorder_of(file);
        let _ = flags;
        recorder.log().sync(recorder.file);
        ffi::SQLITE_OK
    }
}

unsafe extern "C" fn file_size(file: *mut ffi::sqlite3_file, size: *mut i64) -> c_int {
    unsafe { pass!(file, xFileSize, size) }
}

unsafe extern "C" fn lock(file: *mut ffi::sqlite3_file, level: c_int) -> c_int {
    unsafe { pass!(file, xLock, level) }
}

unsafe extern "C" fn unlock(file: *mut ffi::sqlite3_file, level: c_int) -> c_int {
    unsafe { pass!(file, xUnlock, level) }
}

unsafe extern "C" fn check_reserved_lock(file: *mut ffi::sqlite3_file, is_held: *mut c_int) -> c_int {
    unsafe { pass!(file, xCheckReservedLock, is_held) }
}

unsafe extern "C" fn file_control(file: *mut ffi::sqlite3_file, what: c_int, with: *mut c_void) -> c_int {
    unsafe {
        if what == ffi::SQLITE_FCNTL_PRAGMA && recorder_of(file).is_normal {
            // The pragma's name and its value, which SQLite goes on with after this call.
            let words = with.cast::<*mut c_char>();
            let (name, value) = (*words.add(1), *words.add(2));
            if !value.is_null()
                && CStr::from_ptr(name).to_bytes().eq_ignore_ascii_case(b"synchronous")
                && [&b"full"[..], b"extra"].contains(&&*CStr::from_ptr(value).to_bytes().to_ascii_lowercase())
            {
                // `1` is NORMAL, and shorter than what stood there.
                value.write(b'1' as c_char);
                value.add(1).write(0);
            }
        }
        pass!(file, xFileControl, what, with)
    }
}

unsafe extern "C" fn sector_size(file: *mut ffi::sqlite3_file) -> c_int {
    unsafe { pass!(file, xSectorSize) }
}

unsafe extern "C" fn characteristics(file: *mut ffi::sqlite3_file) -> c_int {
    unsafe { pass!(file, xDeviceCharacteristics) }
}

unsafe extern "C" fn shm_map(
    file: *mut ffi::sqlite3_file,
    region: c_int,
    size: c_int,
    is_extended: c_int,
    at: *mut *mut c_void,
) -> c_int {
    unsafe { pass!(file, xShmMap, region, size, is_extended, at) }
}

unsafe extern "C" fn shm_lock(file: *mut ffi::sqlite3_file, at: c_int, n: c_int, flags: c_int) -> c_int {
    unsafe { pass!(file, xShmLock, at, n, flags) }
}

unsafe extern "C" fn shm_barrier(file: *mut ffi::sqlite3_file) {
    unsafe {
        let below = below(file);
        if let Some(barrier) = (*(*below).pMethods).xShmBarrier {
            barrier(below);
        }
    }
}

unsafe extern "C" fn shm_unmap(file: *mut ffi::sqlite3_file, is_deleted: c_int) -> c_int {
    unsafe { pass!(file, xShmUnmap, is_deleted) }
}

unsafe extern "C" fn fetch(file: *mut ffi::sqlite3_file, at: i64, n: c_int, to: *mut *mut c_void) -> c_int {
    unsafe { pass!(file, xFetch, at, n, to) }
}

unsafe extern "C" fn unfetch(file: *mut ffi::sqlite3_file, at: i64, what: *mut c_void) -> c_int {
    unsafe { pass!(file, xUnfetch, at, what) }
}

static METHODS: ffi::sqlite3_io_methods = ffi::sqlite3_io_methods {
    iVersion: 3,
    xClose: Some(close),
    xRead: Some(read),
    xWrite: Some(write),
    xTruncate: Some(truncate),
    xSync: Some(sync),
    xFileSize: Some(file_size),
    xLock: Some(lock),
    xUnlock: Some(unlock),
    xCheckReservedLock: Some(check_reserved_lock),
    xFileControl: Some(file_control),
    xSectorSize: Some(sector_size),
    xDeviceCharacteristics: Some(characteristics),
    xShmMap: Some(shm_map),
    xShmLock: Some(shm_lock),
    xShmBarrier: Some(shm_barrier),
    xShmUnmap: Some(shm_unmap),
    xFetch: Some(fetch),
    xUnfetch: Some(unfetch),
};
