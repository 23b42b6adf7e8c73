//! Records out of a single page of SQLite's, without the tree that it belonged to (SQLite's file format, sections 1.6
//! and 2). Every length is checked: a page whose sum holds is what SQLite wrote, but who reads remains trusts nothing.

use rusqlite::types::Value;

use super::super::vfs::{PAGE, RESERVED};

/// What kind of tree a page is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tree {
    /// Rows under an integer key.
    Table,
    /// Rows that are their own key, or an index.
    Index,
}

/// One row.
#[derive(Debug, Clone, PartialEq)]
pub(in super::super) struct Record {
    /// The integer key; 0 where there is none.
    pub(super) key: i64,
    pub(super) fields: Vec<Value>,
}

/// The kind of tree that page `number` holds records of; `None` for one that holds none.
pub(super) fn tree(number: u64, page: &[u8; PAGE]) -> Option<Tree> {
    match page[start(number)] {
        TABLE_LEAF => Some(Tree::Table),
        INDEX_LEAF | INDEX_INTERIOR => Some(Tree::Index),
        _ => None,
    }
}

/// How many records the page says that it holds.
pub(super) fn count(number: u64, page: &[u8; PAGE]) -> usize {
    let start = start(number);
    usize::from(u16::from_be_bytes([page[start + 3], page[start + 4]]))
}

/// The page's records, in order; those that do not read are left out.
pub(super) fn records(number: u64, page: &[u8; PAGE], overflow: &Overflow<'_>) -> Vec<Record> {
    (0..count(number, page)).filter_map(|at| record(number, page, at, overflow)).collect()
}

/// The page's record at `at`, if it reads.
pub(super) fn record(number: u64, page: &[u8; PAGE], at: usize, overflow: &Overflow<'_>) -> Option<Record> {
    let kind = page[start(number)];
    let pointers = start(number) + if kind == INDEX_INTERIOR { 12 } else { 8 };
    let pointer = page.get(pointers + 2 * at..)?.first_chunk::<2>()?;
    cell(kind, page.get(usize::from(u16::from_be_bytes(*pointer))..USABLE)?, overflow)
}

/// Gives so many bytes from an overflow page on.
pub(super) type Overflow<'a> = dyn Fn(u64, usize) -> Option<Vec<u8>> + 'a;

/// The header of a tree's page stands behind the file's own in the first one.
fn start(number: u64) -> usize {
    if number == 1 { 100 } else { 0 }
}

fn cell(kind: u8, cell: &[u8], overflow: &Overflow<'_>) -> Option<Record> {
    let mut cell = if kind == INDEX_INTERIOR { cell.get(4..)? } else { cell };
    let length = usize::try_from(varint(&mut cell)?).ok().filter(|length| *length <= MAX_RECORD)?;
    let key = if kind == TABLE_LEAF { varint(&mut cell)? } else { 0 };
    let most = if kind == TABLE_LEAF { USABLE - 35 } else { (USABLE - 12) * 64 / 255 - 23 };
    if length <= most {
        return Some(Record { key, fields: fields(cell.get(..length)?)? });
    }
    let least = (USABLE - 12) * 32 / 255 - 23;
    let whole = least + (length - least) % (USABLE - 4);
    let here = if whole <= most { whole } else { least };
    let next = u32::from_be_bytes(*cell.get(here..)?.first_chunk::<4>()?);
    let mut payload = cell.get(..here)?.to_vec();
    payload.extend(overflow(u64::from(next), length - here)?);
    Some(Record { key, fields: fields(&payload)? })
}

fn fields(payload: &[u8]) -> Option<Vec<Value>> {
    let mut header = payload;
    let length = usize::try_from(varint(&mut header)?).ok()?;
    let mut body = payload.get(length..)?;
    let mut header = payload.get(payload.len() - header.len()..length)?;
    let mut fields = Vec::new();
    while !header.is_empty() {
        let kind = varint(&mut header)?;
        let width = match kind {
            0 | 8 | 9 => 0,
            1..=4 => kind as usize,
            5 => 6,
            6 | 7 => 8,
            12.. => usize::try_from((kind - 12) / 2).ok()?,
            _ => return None,
        };
        let (content, rest) = body.split_at_checked(width)?;
        body = rest;
        fields.push(match kind {
            0 => Value::Null,
            8 => Value::Integer(0),
            9 => Value::Integer(1),
            7 => Value::Real(f64::from_be_bytes(content.try_into().ok()?)),
            1..=6 => Value::Integer(integer(content)),
            _ if kind % 2 == 0 => Value::Blob(content.to_vec()),
            _ => Value::Text(String::from_utf8(content.to_vec()).ok()?),
        });
    }
    Some(fields)
}

/// Big-endian, in two's complement.
fn integer(bytes: &[u8]) -> i64 {
    let sign = if bytes.first().is_some_and(|byte| byte & 0x80 != 0) { -1 } else { 0 };
    bytes.iter().fold(sign, |value, byte| value << 8 | i64::from(*byte))
}

/// A variable-length integer: seven bits a byte, the ninth byte whole.
fn varint(bytes: &mut &[u8]) -> Option<i64> {
    let mut value: u64 = 0;
    for at in 0..9 {
        let byte = *bytes.get(at)?;
        if at == 8 {
            value = value << 8 | u64::from(byte);
        } else {
            value = value << 7 | u64::from(byte & 0x7F);
            if byte & 0x80 != 0 {
                continue;
            }
        }
        *bytes = &bytes[at + 1..];
        return Some(value as i64);
    }
    None
}

/// What of a page is SQLite's.
const USABLE: usize = PAGE - RESERVED;
const INDEX_INTERIOR: u8 = 2;
const INDEX_LEAF: u8 = 10;
const TABLE_LEAF: u8 = 13;
/// More than any message or blob that the gateway takes.
const MAX_RECORD: usize = 64 << 20;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rusqlite::{OpenFlags, params};

    use super::super::super::vfs;
    use super::super::image::Image;
    use super::*;

    fn every(image: &Image, tree_of: Tree) -> Vec<Record> {
        let mut found = Vec::new();
        for number in (0..image.count()).map(|at| image.number(at)) {
            let mut page = [0; PAGE];
            assert!(image.read(number, &mut page), "page {number}");
            if tree(number, &page) == Some(tree_of) {
                found.extend(records(number, &page, &|page, length| image.overflow(page, length)));
            }
        }
        found
    }

    #[test]
    fn rows_read_from_single_pages_are_the_rows_that_were_written() {
        let directory = tempfile::TempDir::new().unwrap();
        let path = directory.path().join("a.db");
        let db = vfs::open(&path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE).unwrap();
        vfs::reserve(&db).unwrap();
        db.execute_batch("CREATE TABLE t (n INTEGER PRIMARY KEY, i INTEGER, r REAL, s TEXT, b BLOB)")
            .unwrap();
        db.execute_batch("CREATE TABLE w (i INTEGER, s TEXT, PRIMARY KEY (i, s)) WITHOUT ROWID").unwrap();
        let integers =
            [0, 1, -1, 127, -128, 40_000, 1 << 23, -(1 << 31), 1 << 40, 1 << 47, i64::MAX, i64::MIN];
        let lengths = [0, 1, 50, 4000, 4052, 4053, 4054, 4100, 8200, 100_000];
        let mut expected = Vec::new();
        for n in 0..600usize {
            let (i, length) = (integers[n % integers.len()], lengths[n % lengths.len()]);
            let (real, text, blob) = (n as f64 / 3.0, "ä".repeat(n % 70), vec![n as u8; length]);
            db.execute("INSERT INTO t VALUES (?, ?, ?, ?, ?)", params![n as i64 * 977, i, real, text, blob])
                .unwrap();
            db.execute("INSERT INTO w VALUES (?, ?)", params![n as i64, text]).unwrap();
            let fields =
                vec![Value::Null, Value::Integer(i), Value::Real(real), Value::Text(text), Value::Blob(blob)];
            expected.push(Record { key: n as i64 * 977, fields });
        }
        drop(db);
        let image = Image::open(&path).unwrap();
        let mut rows = every(&image, Tree::Table);
        rows.retain(|row| row.fields.len() == 5 && row.fields[0] == Value::Null);
        rows.sort_by_key(|row| row.key);
        for row in &mut rows {
            // A whole number in a column of reals is kept as an integer.
            if let Value::Integer(whole) = row.fields[2] {
                row.fields[2] = Value::Real(whole as f64);
            }
        }
        assert_eq!(rows.len(), expected.len());
        assert!(rows == expected);
        let mut keys: Vec<Value> =
            every(&image, Tree::Index).into_iter().map(|row| row.fields[0].clone()).collect();
        keys.sort_by_key(|key| if let Value::Integer(n) = key { *n } else { -1 });
        assert_eq!(keys, (0..600).map(Value::Integer).collect::<Vec<_>>());
    }

    proptest! {
        #[test]
        fn any_page_is_survived(bytes in proptest::collection::vec(any::<u8>(), PAGE), kind in 0..4usize, count in 0..400u16) {
            let mut page: [u8; PAGE] = bytes.try_into().unwrap();
            page[0] = [INDEX_INTERIOR, INDEX_LEAF, TABLE_LEAF, 5][kind];
            page[3..5].copy_from_slice(&count.to_be_bytes());
            for number in [1, 2] {
                if tree(number, &page).is_some() {
                    records(number, &page, &|_, length| (length < 1 << 20).then(|| vec![0; length]));
                }
            }
        }
    }
}
