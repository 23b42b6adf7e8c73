//! Between SQLite and the disk: every page of the database carries a check sum, and one whose sum does not hold is an
//! error when it is read, never a value.
//!
//! Constraints: SQLite checks its write-ahead log and not its database; a card that turns a bit or loses a block would
//! go unnoticed. The database is made with eight bytes reserved at the end of each page ([`RESERVED`]; SQLite's file
//! format, section 1.3.4). A page gets its sum when it is written to the database, which in WAL mode is at a
//! checkpoint, and is checked when it is read from there. In the log a page has the log's own sums.
//!
//! Layout of the reserved bytes: the CRC-32 of the page before them and of the page's number, big-endian, and
//! [`MAGIC`]. The number is in it because a card may put a page in the wrong place. A store that was made without
//! reserved bytes is neither summed nor checked.
//!
//! Under test it also records what is written, for [`super::crash`].
#![expect(
    unsafe_code,
    reason = "SQLite asks its VFS for a table of C functions; rusqlite has no face for that"
)]

use std::cell::Cell;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::path::Path;
use std::sync::OnceLock;

use rusqlite::{Connection, OpenFlags, ffi};

#[cfg(test)]
use super::crash::Recorder;

/// Opens a database whose pages are checked.
///
/// # Errors
/// What SQLite says.
pub(super) fn open(path: &Path, flags: OpenFlags) -> rusqlite::Result<Connection> {
    static REGISTERED: OnceLock<()> = OnceLock::new();
    REGISTERED.get_or_init(register);
    Connection::open_with_flags_and_vfs(path, flags, NAME)
}

/// Has a database that is about to be made leave room for the sums.
///
/// # Errors
/// The database is not empty.
pub(super) fn reserve(db: &Connection) -> rusqlite::Result<()> {
    let mut bytes = RESERVED as c_int;
    // SAFETY: the handle is open for the length of the call, and this control takes a pointer to an int.
    let code = unsafe {
        ffi::sqlite3_file_control(
            db.handle(),
            c"main".as_ptr(),
            ffi::SQLITE_FCNTL_RESERVE_BYTES,
            (&raw mut bytes).cast(),
        )
    };
    if code == ffi::SQLITE_OK {
        return Ok(());
    }
    Err(rusqlite::Error::SqliteFailure(ffi::Error::new(code), None))
}

/// Whether page `number` (from 1) is what was written.
pub(super) fn is_sound(number: u64, page: &[u8]) -> bool {
    let (content, reserved) = page.split_at(PAGE - RESERVED);
    reserved == tail(number, content)
}

/// Whether a page was written with a sum, sound or not.
pub(super) fn is_summed(page: &[u8]) -> bool {
    page.ends_with(&MAGIC)
}

fn tail(number: u64, content: &[u8]) -> [u8; RESERVED] {
    let mut sum = crc32fast::Hasher::new();
    sum.update(&number.to_be_bytes());
    sum.update(content);
    let mut tail = [0; RESERVED];
    tail[..4].copy_from_slice(&sum.finalize().to_be_bytes());
    tail[4..].copy_from_slice(&MAGIC);
    tail
}

/// What we know of an open file.
struct Ours {
    is_database: bool,
    /// Whether its pages carry sums, once its first page was seen.
    is_summed: Cell<bool>,
    #[cfg(test)]
    recorder: Option<Recorder>,
}

impl Ours {
    /// The number of the page that is read or written, where its sum matters.
    fn page(&self, n: c_int, at: i64) -> Option<u64> {
        let is_page = self.is_database && n as usize == PAGE && at % PAGE as i64 == 0;
        is_page.then_some(at as u64 / PAGE as u64 + 1)
    }

    /// Learns from the file's first page whether there are sums: from its header, and from the page itself, because the
    /// header may be what is damaged.
    fn learn(&self, page: &[u8]) {
        self.is_summed.set(usize::from(page[RESERVED_AT]) == RESERVED || is_summed(page));
    }
}

/// An open file: SQLite's part first, then ours; the system's own file lies right behind in the same memory.
#[repr(C)]
struct File {
    base: ffi::sqlite3_file,
    ours: *mut Ours,
}

/// Makes the VFS known to SQLite under [`NAME`], above the system's own.
fn register() {
    // SAFETY: the default VFS is never unregistered, and its table may be copied: its functions take everything they
    // need from `pAppData`, which is copied with it. The copy is leaked and so lives as long as SQLite holds it.
    unsafe {
        let system = ffi::sqlite3_vfs_find(std::ptr::null());
        assert!(!system.is_null(), "SQLite has a default VFS");
        let mut ours = *system;
        ours.zName = NAME.as_ptr();
        ours.pNext = std::ptr::null_mut();
        ours.szOsFile += size_of::<File>() as c_int;
        ours.xOpen = Some(open_file);
        ours.xDelete = Some(delete);
        SYSTEM.get_or_init(|| System(system));
        let registered = ffi::sqlite3_vfs_register(Box::leak(Box::new(ours)), 0);
        assert_eq!(registered, ffi::SQLITE_OK, "SQLite takes the VFS");
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

#[cfg(test)]
unsafe fn recorder(path: *const c_char) -> Option<Recorder> {
    if path.is_null() {
        return None;
    }
    // SAFETY: SQLite's paths are terminated strings that live for the call.
    Recorder::of(Path::new(unsafe { CStr::from_ptr(path) }.to_str().ok()?))
}

unsafe extern "C" fn open_file(
    _: *mut ffi::sqlite3_vfs,
    path: ffi::sqlite3_filename,
    file: *mut ffi::sqlite3_file,
    flags: c_int,
    out: *mut c_int,
) -> c_int {
    // SAFETY: SQLite gives `szOsFile` bytes at `file`: room for our part and the system's behind it, or for the
    // system's alone. Its paths and flags pass through as they came.
    unsafe {
        let Some(system_open) = (*system()).xOpen else { return ffi::SQLITE_CANTOPEN };
        let is_database = flags & ffi::SQLITE_OPEN_MAIN_DB != 0;
        #[cfg(test)]
        let recorder = recorder(path);
        #[cfg(test)]
        let is_ours = is_database || recorder.is_some();
        #[cfg(not(test))]
        let is_ours = is_database;
        if !is_ours {
            return system_open(system(), path, file, flags, out);
        }
        let code = system_open(system(), path, below(file), flags, out);
        let shim = file.cast::<File>();
        // Without methods SQLite does not call close.
        (*shim).base.pMethods = std::ptr::null();
        if code == ffi::SQLITE_OK {
            (*shim).base.pMethods = &raw const METHODS;
            (*shim).ours = Box::into_raw(Box::new(Ours {
                is_database,
                is_summed: Cell::new(false),
                #[cfg(test)]
                recorder,
            }));
            let mut page = [0; PAGE];
            if is_database
                && let Some(read) = (*(*below(file)).pMethods).xRead
                && read(below(file), page.as_mut_ptr().cast(), PAGE as c_int, 0) == ffi::SQLITE_OK
            {
                ours(file).learn(&page);
            }
        }
        code
    }
}

unsafe extern "C" fn delete(_: *mut ffi::sqlite3_vfs, path: *const c_char, is_synced: c_int) -> c_int {
    // SAFETY: passed through as it came.
    let code =
        unsafe { (*system()).xDelete.map_or(ffi::SQLITE_IOERR, |delete| delete(system(), path, is_synced)) };
    #[cfg(test)]
    if code == ffi::SQLITE_OK
        // SAFETY: SQLite's own path.
        && let Some(recorder) = unsafe { recorder(path) }
    {
        recorder.deleted(is_synced != 0);
    }
    code
}

/// The system's file behind ours.
unsafe fn below(file: *mut ffi::sqlite3_file) -> *mut ffi::sqlite3_file {
    // SAFETY: `open_file` has made room for both; `File` is as aligned as a pointer, which the system's file begins
    // with.
    unsafe { file.cast::<File>().add(1).cast() }
}

/// What we know of an open file.
unsafe fn ours<'a>(file: *mut ffi::sqlite3_file) -> &'a Ours {
    // SAFETY: set by `open_file` and given free by `close`, between which SQLite calls all other methods.
    unsafe { &*(*file.cast::<File>()).ours }
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

// SAFETY, for all of these: SQLite calls a method with a file that `open_file` has set up and buffers of the length it
// names; all of it passes through, pages on their way to the database with their sum.

unsafe extern "C" fn close(file: *mut ffi::sqlite3_file) -> c_int {
    unsafe {
        drop(Box::from_raw((*file.cast::<File>()).ours));
        pass!(file, xClose)
    }
}

unsafe extern "C" fn read(file: *mut ffi::sqlite3_file, to: *mut c_void, n: c_int, at: i64) -> c_int {
    unsafe {
        let code = pass!(file, xRead, to, n, at);
        if code == ffi::SQLITE_OK
            && let Some(number) = ours(file).page(n, at)
        {
            let page = std::slice::from_raw_parts(to.cast::<u8>(), PAGE);
            if number == 1 {
                ours(file).learn(page);
            }
            if ours(file).is_summed.get() && !is_sound(number, page) {
                return ffi::SQLITE_IOERR_DATA;
            }
        }
        // SQLite takes what is missing at the end of a file for zeros.
        if code == ffi::SQLITE_IOERR_SHORT_READ
            && ours(file).is_summed.get()
            && ours(file).page(n, at).is_some()
        {
            return ffi::SQLITE_IOERR_DATA;
        }
        code
    }
}

unsafe extern "C" fn write(file: *mut ffi::sqlite3_file, from: *const c_void, n: c_int, at: i64) -> c_int {
    unsafe {
        let data = std::slice::from_raw_parts(from.cast::<u8>(), n as usize);
        let Some(number) = ours(file).page(n, at) else { return write_through(file, data, at) };
        if number == 1 {
            ours(file).learn(data);
        }
        if !ours(file).is_summed.get() {
            return write_through(file, data, at);
        }
        let mut page = [0; PAGE];
        let (content, reserved) = page.split_at_mut(PAGE - RESERVED);
        content.copy_from_slice(&data[..PAGE - RESERVED]);
        reserved.copy_from_slice(&tail(number, content));
        write_through(file, &page, at)
    }
}

unsafe fn write_through(file: *mut ffi::sqlite3_file, data: &[u8], at: i64) -> c_int {
    // SAFETY: as of a method.
    unsafe {
        let code = pass!(file, xWrite, data.as_ptr().cast(), data.len() as c_int, at);
        #[cfg(test)]
        if code == ffi::SQLITE_OK
            && let Some(recorder) = &ours(file).recorder
        {
            recorder.wrote(at as usize, data);
        }
        code
    }
}

unsafe extern "C" fn truncate(file: *mut ffi::sqlite3_file, size: i64) -> c_int {
    unsafe {
        let code = pass!(file, xTruncate, size);
        #[cfg(test)]
        if code == ffi::SQLITE_OK
            && let Some(recorder) = &ours(file).recorder
        {
            recorder.truncated(size as usize);
        }
        code
    }
}

unsafe extern "C" fn sync(file: *mut ffi::sqlite3_file, flags: c_int) -> c_int {
    unsafe {
        #[cfg(test)]
        if let Some(recorder) = &ours(file).recorder {
            // The real flush is left out: what counts is that it was asked for, and when.
            recorder.synced();
            return ffi::SQLITE_OK;
        }
        pass!(file, xSync, flags)
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
        #[cfg(test)]
        if what == ffi::SQLITE_FCNTL_PRAGMA
            && ours(file).recorder.as_ref().is_some_and(|recorder| recorder.is_normal)
        {
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

/// No page is mapped: it would be read without being checked.
unsafe extern "C" fn fetch(_: *mut ffi::sqlite3_file, _: i64, _: c_int, to: *mut *mut c_void) -> c_int {
    unsafe { to.write(std::ptr::null_mut()) };
    ffi::SQLITE_OK
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

/// The name under which SQLite knows it.
const NAME: &CStr = c"tidegate";
/// The length of a page in bytes.
pub(super) const PAGE: usize = 4096;
/// Bytes at the end of a page that SQLite leaves to us.
pub(super) const RESERVED: usize = 8;
/// Where the header of a database says how many bytes are reserved.
const RESERVED_AT: usize = 20;
/// Says that a page was written with its sum.
const MAGIC: [u8; 4] = *b"tgs1";

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    fn database(directory: &TempDir) -> Connection {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE;
        open(&directory.path().join("a.db"), flags).unwrap()
    }

    fn filled(directory: &TempDir, with_sums: bool) -> Vec<u8> {
        let db = database(directory);
        if with_sums {
            reserve(&db).unwrap();
        }
        db.pragma_update(None, "journal_mode", "WAL").unwrap();
        db.execute_batch("CREATE TABLE t (n INTEGER PRIMARY KEY, b BLOB)").unwrap();
        for n in 0..200 {
            db.execute("INSERT INTO t VALUES (?, zeroblob(300))", [n]).unwrap();
        }
        drop(db);
        std::fs::read(directory.path().join("a.db")).unwrap()
    }

    #[test]
    fn every_page_has_a_sum_and_one_turned_bit_is_an_error_not_a_value() {
        let directory = TempDir::new().unwrap();
        let bytes = filled(&directory, true);
        for (at, page) in bytes.chunks(PAGE).enumerate() {
            assert!(is_sound(at as u64 + 1, page), "page {}", at + 1);
            assert!(!is_sound(at as u64 + 2, page), "in another place it is another page");
        }
        for place in [PAGE + 2000, 5 * PAGE + 3, 9 * PAGE + PAGE - 1] {
            let mut damaged = bytes.clone();
            damaged[place] ^= 4;
            std::fs::write(directory.path().join("a.db"), damaged).unwrap();
            let read = database(&directory)
                .query_row("SELECT count(*), sum(length(b)) FROM t", [], |row| row.get::<_, i64>(0));
            let Err(rusqlite::Error::SqliteFailure(error, _)) = read else { panic!("{place}: {read:?}") };
            assert_eq!(error.extended_code, ffi::SQLITE_IOERR_DATA);
        }
        // In a page and between two.
        for length in [bytes.len() - 100, bytes.len() - PAGE, bytes.len() - 3 * PAGE - 7] {
            std::fs::write(directory.path().join("a.db"), &bytes[..length]).unwrap();
            let read = database(&directory)
                .query_row("SELECT count(*), sum(length(b)) FROM t", [], |row| row.get::<_, i64>(0));
            assert!(read.is_err(), "cut to {length}: {read:?}");
        }
    }

    #[test]
    fn a_database_without_room_for_sums_is_left_as_it_is() {
        let directory = TempDir::new().unwrap();
        let bytes = filled(&directory, false);
        assert!(!bytes.chunks(PAGE).any(is_summed));
        let count = database(&directory).query_row("SELECT count(*) FROM t", [], |row| row.get::<_, i64>(0));
        assert_eq!(count, Ok(200));
    }
}
