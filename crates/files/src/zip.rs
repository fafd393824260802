//! ZIP archives whose entries are stored as they are: the container of PyTorch's checkpoints.
//!
//! ```text
//! entry: header | name | extra | bytes | sizes again, sometimes
//! all entries | directory: one record an entry | zip64 end, its locator | end of the directory
//! ```
//! The directory says where each entry begins and how long it is; the entry's own header must
//! agree. Extra fields before the bytes align them.
//!
//! What it knows: this layout, and zip64. An entry that is compressed or encrypted is refused, so
//! that an archive never grows when it is opened; entries must not overlap. Checksums are not
//! looked at: they would cost a pass over all weights, and PyTorch can be told to leave them out.

use std::ops::Range;

use crate::bytes::Cursor;
use crate::{Blob, Error};

/// One entry: its name, and where its bytes lie in the file.
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) data: Range<usize>,
}

/// What each kind of record begins with.
const LOCAL: u32 = 0x0403_4b50;
const RECORD: u32 = 0x0201_4b50;
const END: u32 = 0x0605_4b50;
const END_64: u32 = 0x0606_4b50;
const LOCATOR_64: u32 = 0x0706_4b50;

/// Bytes of each kind of record, without names and the like.
const LOCAL_BYTES: usize = 30;
const RECORD_BYTES: usize = 46;
const END_BYTES: usize = 22;
const LOCATOR_BYTES: usize = 20;

/// Stands in 32 bits for a number that is in the zip64 field.
const ELSEWHERE: u32 = u32::MAX;

/// The id of the extra field that holds 64-bit numbers.
const ZIP64: u16 = 1;

/// Flags of an entry.
const ENCRYPTED: u16 = 1;
const SIZES_BEHIND: u16 = 8;

/// The directory of an archive.
struct Directory {
    begin: usize,
    bytes: usize,
    entries: usize,
}

/// The entries of an archive, in the order of the file.
///
/// # Errors
/// The file is not a ZIP archive, or is one that this module refuses.
pub(crate) fn entries(file: &Blob) -> Result<Vec<Entry>, Error> {
    let directory = directory(file)?;
    let end = directory.begin + directory.bytes;
    let mut records = Cursor::new(file, file.path()).limited(end, "the directory of the archive");
    records.seek(directory.begin, "the directory of the archive")?;
    let most = directory.bytes / RECORD_BYTES;
    if directory.entries > most {
        let what = format!(
            "{} entries promised, but a directory of {} bytes holds no more than {most}",
            directory.entries, directory.bytes
        );
        return Err(records.wrong(directory.begin, what));
    }
    let mut found = Vec::with_capacity(directory.entries);
    for _ in 0..directory.entries {
        found.push(entry(file, &mut records, directory.begin)?);
    }
    if records.left() > 0 {
        let what = "the directory of the archive is longer than its entries";
        return Err(records.wrong(records.at(), what));
    }
    found.sort_by_key(|(begin, _)| *begin);
    for pair in found.windows(2) {
        let ((_, before), (begin, after)) = (&pair[0], &pair[1]);
        if before.data.end > *begin {
            let what = format!("entry `{}` overlaps `{}`", after.name, before.name);
            return Err(records.wrong(*begin, what));
        }
    }
    Ok(found.into_iter().map(|(_, entry)| entry).collect())
}

/// Finds the directory from the end of the file, where only a comment may follow.
fn directory(file: &Blob) -> Result<Directory, Error> {
    let cursor = Cursor::new(file, file.path());
    let first = file.len().saturating_sub(END_BYTES + usize::from(u16::MAX));
    let is_end = |at: &usize| {
        file[*at..].starts_with(&END.to_le_bytes())
            && file.get(at + 20..at + END_BYTES).is_some_and(|n| {
                at + END_BYTES + usize::from(n[0]) + (usize::from(n[1]) << 8) == file.len()
            })
    };
    let Some(at) = (first..file.len()).rev().find(is_end) else {
        let what = "no end of a ZIP archive: the file is cut short, or is none";
        return Err(cursor.wrong(file.len(), what));
    };
    let mut end = Cursor::new(file, file.path());
    end.seek(at + 4, "the end of the archive")?;
    let what = "the end of the archive";
    let disks = [end.u16(what)?, end.u16(what)?];
    let counts = [end.u16(what)?, end.u16(what)?];
    let (bytes, begin) = (end.u32(what)?, end.u32(what)?);
    let mut all = [counts[1].into(), bytes.into(), begin.into()];
    let mut limit = at;
    if let Some(locator) = at.checked_sub(LOCATOR_BYTES)
        && file[locator..].starts_with(&LOCATOR_64.to_le_bytes())
    {
        (limit, all) = end_64(file, locator, counts[1], bytes, begin)?;
    }
    if disks != [0, 0] || counts[0] != counts[1] {
        return Err(cursor.wrong(at, "an archive of several parts"));
    }
    let [entries, bytes, begin] = all.map(|n| usize::try_from(n).unwrap_or(usize::MAX));
    if begin.checked_add(bytes).is_none_or(|end| end > limit) {
        let what =
            format!("the directory ({bytes} bytes at {begin}) does not end before its end record");
        return Err(cursor.wrong(at, what));
    }
    Ok(Directory {
        begin,
        bytes,
        entries,
    })
}

/// The numbers of the zip64 end record: where it begins, and entries, bytes and begin of the
/// directory. What the plain record says must not contradict them.
fn end_64(
    file: &Blob,
    locator: usize,
    count: u16,
    bytes: u32,
    begin: u32,
) -> Result<(usize, [u64; 3]), Error> {
    let mut cursor = Cursor::new(file, file.path()).limited(locator, "the archive");
    let what = "the zip64 end of the archive";
    let mut pointer = Cursor::new(file, file.path());
    pointer.seek(locator + 8, what)?;
    let at = usize::try_from(pointer.u64(what)?).unwrap_or(usize::MAX);
    cursor.seek(at, what)?;
    if cursor.u32(what)? != END_64 {
        return Err(cursor.wrong(at, "no zip64 end of the archive where its locator says"));
    }
    cursor.take(8 + 2 + 2, what)?;
    let disks = [cursor.u32(what)?, cursor.u32(what)?];
    let counts = [cursor.u64(what)?, cursor.u64(what)?];
    let rest = [cursor.u64(what)?, cursor.u64(what)?];
    if disks != [0, 0] || counts[0] != counts[1] {
        return Err(cursor.wrong(at, "an archive of several parts"));
    }
    let all = [counts[1], rest[0], rest[1]];
    let agree = (count == u16::MAX || u64::from(count) == all[0])
        && (bytes == ELSEWHERE || u64::from(bytes) == all[1])
        && (begin == ELSEWHERE || u64::from(begin) == all[2]);
    if !agree {
        return Err(cursor.wrong(at, "the two ends of the archive say different things"));
    }
    Ok((at, all))
}

/// Reads a record of the directory, and the header of its entry: where that begins, and the entry.
fn entry(file: &Blob, records: &mut Cursor<'_>, limit: usize) -> Result<(usize, Entry), Error> {
    let at = records.at();
    let what = "a record of the directory";
    if records.u32(what)? != RECORD {
        return Err(records.wrong(at, "not a record of the directory"));
    }
    records.take(4, what)?;
    let (flags, method) = (records.u16(what)?, records.u16(what)?);
    records.take(4 + 4, what)?;
    let (stored, bytes) = (records.u32(what)?, records.u32(what)?);
    let lengths = [records.u16(what)?, records.u16(what)?, records.u16(what)?].map(usize::from);
    let disk = records.u16(what)?;
    records.take(2 + 4, what)?;
    let offset = records.u32(what)?;
    let name = records.take(lengths[0], "the name of an entry")?;
    let Ok(name) = std::str::from_utf8(name) else {
        return Err(records.wrong(at + RECORD_BYTES, "the name of an entry is not valid UTF-8"));
    };
    let extra = records.take(lengths[1], "the extra fields of an entry")?;
    records.take(lengths[2], "the comment of an entry")?;
    let wrong = |what: &str| records.wrong(at, format!("entry `{name}` {what}"));
    if flags & ENCRYPTED != 0 {
        return Err(wrong("is encrypted"));
    }
    if method != 0 {
        return Err(wrong(
            "is compressed; PyTorch stores its entries as they are",
        ));
    }
    if disk != 0 {
        return Err(wrong("lies in another part of the archive"));
    }
    let sizes = widened(extra, [bytes, stored, offset]);
    let [bytes, stored, offset] = sizes.ok_or_else(|| wrong("lacks its 64-bit sizes"))?;
    if bytes != stored {
        return Err(wrong("has two sizes"));
    }
    let begin = usize::try_from(offset).unwrap_or(usize::MAX);
    let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
    let data = local(file, name, begin, bytes, limit)?;
    let name = name.to_string();
    Ok((begin, Entry { name, data }))
}

/// Takes the numbers that do not fit 32 bits from the zip64 field, where they stand in this order.
fn widened(extra: &[u8], numbers: [u32; 3]) -> Option<[u64; 3]> {
    let mut fields = extra;
    let mut wide: &[u8] = &[];
    while let Some((head, rest)) = fields.split_at_checked(4) {
        let (id, len) = ([head[0], head[1]], [head[2], head[3]]);
        let (field, rest) = rest.split_at_checked(u16::from_le_bytes(len).into())?;
        if u16::from_le_bytes(id) == ZIP64 {
            wide = field;
        }
        fields = rest;
    }
    let mut all = [0; 3];
    for (to, from) in all.iter_mut().zip(numbers) {
        *to = u64::from(from);
        if from == ELSEWHERE {
            let (number, rest) = wide.split_first_chunk()?;
            *to = u64::from_le_bytes(*number);
            wide = rest;
        }
    }
    Some(all)
}

/// Where the bytes of an entry lie whose header begins at `begin`; they end before `limit`.
fn local(
    file: &Blob,
    name: &str,
    begin: usize,
    bytes: usize,
    limit: usize,
) -> Result<Range<usize>, Error> {
    let mut cursor =
        Cursor::new(file, file.path()).limited(limit, "the archive before its directory");
    let what = format!("the header of entry `{name}`");
    cursor.seek(begin, &what)?;
    let wrong = |why: &str| Error::malformed(file.path(), begin, format!("entry `{name}`: {why}"));
    if cursor.u32(&what)? != LOCAL {
        return Err(wrong("the directory points at something else"));
    }
    cursor.take(2, &what)?;
    let (flags, method) = (cursor.u16(&what)?, cursor.u16(&what)?);
    cursor.take(4 + 4, &what)?;
    let sizes = [cursor.u32(&what)?, cursor.u32(&what)?];
    let lengths = [cursor.u16(&what)?, cursor.u16(&what)?].map(usize::from);
    let own = cursor.take(lengths[0], &what)?;
    cursor.take(lengths[1], &what)?;
    debug_assert_eq!(cursor.at(), begin + LOCAL_BYTES + lengths[0] + lengths[1]);
    let promised = u32::try_from(bytes).unwrap_or(ELSEWHERE);
    let agree = |&n: &u32| n == promised || n == ELSEWHERE || n == 0 && flags & SIZES_BEHIND != 0;
    if own != name.as_bytes() || method != 0 || !sizes.iter().all(agree) {
        return Err(wrong("its header and the directory say different things"));
    }
    let start = cursor.at();
    cursor.take(bytes, format_args!("entry `{name}`"))?;
    Ok(start..start + bytes)
}
