//! The records of an extended header, and what they and GNU's long names say about the next entry.
//!
//! A record is `"%d %s=%s\n"`: its own length in decimal, a keyword, a value of any bytes
//! (POSIX.1-2008 `pax`, "pax Extended Header"). Of two records with one keyword the later counts;
//! an empty value takes an earlier one back.

use std::collections::BTreeMap;

use super::header::Header;
use super::sparse::SparseMap;
use super::{Entry, EntryKind, TarError, Timestamp};

const XATTR: &[u8] = b"SCHILY.xattr.";

/// What comes before an entry's own header.
#[derive(Debug, Default)]
pub(super) struct Extensions {
    pub(super) long_name: Option<Vec<u8>>,
    pub(super) long_link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) sparse: Option<SparseMap>,
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    uid: Option<u32>,
    gid: Option<u32>,
    mtime: Option<Timestamp>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Extensions {
    /// Takes in the data of one extended header.
    pub(super) fn parse_pax(&mut self, mut data: &[u8]) -> Result<(), TarError> {
        // GNU tar and others end the records with NULs at times.
        while data.first().is_some_and(|&byte| byte != 0) {
            let (record, rest) = split_record(data).ok_or(TarError::Malformed(
                "an extended header's record has a wrong length",
            ))?;
            data = rest;
            let equals =
                record
                    .iter()
                    .position(|&byte| byte == b'=')
                    .ok_or(TarError::Malformed(
                        "an extended header's record has no value",
                    ))?;
            self.record(&record[..equals], &record[equals + 1..])?;
        }
        Ok(())
    }

    fn record(&mut self, key: &[u8], value: &[u8]) -> Result<(), TarError> {
        let text = (!value.is_empty()).then(|| value.to_vec());
        match key {
            b"path" => self.path = text,
            b"linkpath" => self.link = text,
            b"size" => self.size = decimal(value)?,
            b"uid" => self.uid = small(value)?,
            b"gid" => self.gid = small(value)?,
            b"mtime" => self.mtime = time(value)?,
            _ => {
                if let Some(name) = key.strip_prefix(XATTR) {
                    self.xattrs.insert(name.to_vec(), value.to_vec());
                } else if let Some(key) = key.strip_prefix(b"GNU.sparse.".as_slice()) {
                    self.sparse.get_or_insert_default().record(key, value)?;
                }
            }
        }
        Ok(())
    }

    /// The entry that `header` and these extensions describe, but for its size and its segments.
    pub(super) fn entry(&mut self, header: &Header, kind: EntryKind) -> Result<Entry, TarError> {
        let sparse_name = self.sparse.as_mut().and_then(|sparse| sparse.name.take());
        let path = sparse_name
            .or_else(|| self.path.take())
            .or_else(|| self.long_name.take())
            .unwrap_or_else(|| header.path());
        let link = self
            .link
            .take()
            .or_else(|| self.long_link.take())
            .unwrap_or_else(|| header.link());
        if path.contains(&0) || link.contains(&0) {
            return Err(TarError::Malformed("a name contains a NUL byte"));
        }
        let device = match kind {
            EntryKind::CharDevice | EntryKind::BlockDevice => header.device()?,
            _ => (0, 0),
        };
        Ok(Entry {
            kind,
            path,
            link,
            mode: header.mode()?,
            uid: self.uid.map_or_else(|| header.uid(), Ok)?,
            gid: self.gid.map_or_else(|| header.gid(), Ok)?,
            mtime: match self.mtime {
                Some(time) => time,
                None => Timestamp {
                    seconds: header.mtime()?,
                    nanoseconds: 0,
                },
            },
            size: 0,
            segments: None,
            device,
            xattrs: std::mem::take(&mut self.xattrs).into_iter().collect(),
        })
    }
}

/// Cuts off the first record, without its length, the blank after it and the newline.
fn split_record(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let blank = data.iter().position(|&byte| byte == b' ')?;
    let length: usize = std::str::from_utf8(&data[..blank]).ok()?.parse().ok()?;
    let record = data.get(blank + 1..length)?;
    Some((record.strip_suffix(b"\n")?, &data[length..]))
}

/// A decimal number, or `None` for an empty value.
pub(super) fn decimal(value: &[u8]) -> Result<Option<u64>, TarError> {
    if value.is_empty() {
        return Ok(None);
    }
    if !value.iter().all(u8::is_ascii_digit) {
        return Err(TarError::Malformed(
            "an extended header's number is not decimal",
        ));
    }
    std::str::from_utf8(value)
        .ok()
        .and_then(|text| text.parse().ok())
        .ok_or(TarError::Malformed(
            "an extended header's number is out of range",
        ))
        .map(Some)
}

fn small(value: &[u8]) -> Result<Option<u32>, TarError> {
    decimal(value)?
        .map(u32::try_from)
        .transpose()
        .map_err(|_too_large| TarError::Malformed("an owner is out of range"))
}

/// `[-]seconds[.fraction]`; digits beyond the nanosecond are cut off.
fn time(value: &[u8]) -> Result<Option<Timestamp>, TarError> {
    const PROBLEM: TarError = TarError::Malformed("a time is not a decimal number");
    if value.is_empty() {
        return Ok(None);
    }
    let (negative, digits) = match value.strip_prefix(b"-") {
        Some(digits) => (true, digits),
        None => (false, value),
    };
    let mut parts = digits.splitn(2, |&byte| byte == b'.');
    let whole = decimal(parts.next().unwrap_or_default())?.ok_or(PROBLEM)?;
    let fraction = parts.next().unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return Err(PROBLEM);
    }
    let nanoseconds = (0..9).fold(0, |value, at| {
        value * 10 + u32::from(fraction.get(at).map_or(0, |digit| digit - b'0'))
    });
    let seconds = i64::try_from(whole).map_err(|_too_large| PROBLEM)?;
    Ok(Some(match (negative, nanoseconds) {
        (false, nanoseconds) => Timestamp {
            seconds,
            nanoseconds,
        },
        (true, 0) => Timestamp {
            seconds: -seconds,
            nanoseconds: 0,
        },
        (true, nanoseconds) => Timestamp {
            seconds: -seconds - 1,
            nanoseconds: 1_000_000_000 - nanoseconds,
        },
    }))
}
