//! The strict reading of a safetensors header: what lies where, or why the file is refused.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};

use super::dtype::TensorDtype;
use crate::error::{Error, Result};

/// Bytes of the header length at the start of the file.
pub(super) const LENGTH_BYTES: usize = 8;

/// The format's own limit on the header.
/// Source: <https://github.com/huggingface/safetensors>, `MAX_HEADER_SIZE` in tensor.rs, 0.8.0.
pub(super) const MAX_HEADER_BYTES: usize = 100_000_000;

/// The key that holds free-form text instead of a tensor.
pub(super) const METADATA_KEY: &str = "__metadata__";

/// One tensor of the file. `range` counts from the first byte after the header.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) dtype: TensorDtype,
    pub(super) shape: Vec<usize>,
    pub(super) range: Range<usize>,
}

/// Everything a header says, checked against the number of bytes that follow it.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    pub(super) metadata: BTreeMap<String, String>,
    /// Sorted by name, each name once.
    entries: Vec<Entry>,
}

/// Bytes of the header that a file of `file_len` bytes starting with `start` announces.
pub(super) fn header_len(start: &[u8], file_len: usize) -> Result<usize> {
    let Some(length) = start.first_chunk::<LENGTH_BYTES>() else {
        return Err(Error::checkpoint(format!(
            "not a safetensors file: it has {file_len} bytes, fewer than the {LENGTH_BYTES} of the \
             header length"
        )));
    };
    let announced = u64::from_le_bytes(*length);
    let len = usize::try_from(announced).ok().filter(|&len| len <= MAX_HEADER_BYTES);
    let Some(len) = len else {
        return Err(Error::checkpoint(format!(
            "not a safetensors file, or damaged: it announces a header of {announced} bytes, over \
             the format's limit of {MAX_HEADER_BYTES}"
        )));
    };
    let left = file_len.saturating_sub(LENGTH_BYTES);
    if len > left {
        return Err(Error::checkpoint(format!(
            "truncated, or not a safetensors file: it announces a header of {len} bytes, but only \
             {left} follow"
        )));
    }
    Ok(len)
}

impl Layout {
    /// Reads a header that is followed by `data_len` bytes.
    ///
    /// Memory is bounded by a small multiple of the header's own size: no size in it is believed
    /// before it has been compared with `data_len`.
    pub(super) fn parse(header: &[u8], data_len: usize) -> Result<Self> {
        let text = std::str::from_utf8(header)
            .map_err(|e| Error::checkpoint("the header is not UTF-8").with_source(e))?;
        if !text.starts_with('{') {
            return Err(Error::checkpoint(
                "not a safetensors file: the header does not start with `{`",
            ));
        }
        let header: Header = serde_json::from_str(text).map_err(|e| {
            Error::checkpoint(format!("the header is not what safetensors prescribes: {e}"))
                .with_source(e)
        })?;
        let mut entries =
            header.tensors.into_iter().map(Entry::checked).collect::<Result<Vec<_>>>()?;
        check_coverage(&mut entries, data_len)?;
        entries.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        for pair in entries.windows(2) {
            if let [a, b] = pair
                && a.name == b.name
            {
                return Err(Error::checkpoint(format!(
                    "the header names tensor `{}` twice",
                    a.name
                )));
            }
        }
        Ok(Self { metadata: header.metadata.unwrap_or_default(), entries })
    }

    /// Sorted by name.
    pub(super) fn into_entries(self) -> Vec<Entry> {
        self.entries
    }

    pub(super) fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.entries.iter().map(|e| e.name.as_str())
    }

    pub(super) fn find(&self, name: &str) -> Option<&Entry> {
        let index = self.entries.binary_search_by(|e| e.name.as_str().cmp(name)).ok()?;
        self.entries.get(index)
    }

    /// The entry, or an error that lists what is there.
    pub(super) fn get(&self, name: &str) -> Result<&Entry> {
        self.find(name).ok_or_else(|| {
            Error::checkpoint(format!(
                "tensor `{name}` is missing; the file has {}",
                listed(self.names(), "no tensors")
            ))
        })
    }
}

/// Names for a message: the first eight, and how many more.
pub(super) fn listed<'a>(names: impl ExactSizeIterator<Item = &'a str>, none: &str) -> String {
    const SHOWN: usize = 8;
    let count = names.len();
    if count == 0 {
        return none.to_owned();
    }
    let mut text = names.take(SHOWN).map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", ");
    if count > SHOWN {
        text.push_str(&format!(" and {} more", count - SHOWN));
    }
    text
}

impl Entry {
    fn checked((name, info): (String, Info)) -> Result<Self> {
        let dtype = TensorDtype(info.dtype);
        let (begin, end) = info.data_offsets;
        let size = end.checked_sub(begin).ok_or_else(|| {
            Error::checkpoint(format!("tensor `{name}` ends at {end}, before its start {begin}"))
        })?;
        let Some(expected) = dtype.bytes_of(&info.shape) else {
            return Err(Error::checkpoint(format!(
                "tensor `{name}`: shape {:?} of {dtype} is no number of bytes this machine can \
                 address",
                info.shape
            )));
        };
        if size != expected {
            return Err(Error::checkpoint(format!(
                "tensor `{name}`: shape {:?} of {dtype} takes {expected} bytes, its offsets \
                 [{begin}, {end}] give {size}",
                info.shape
            )));
        }
        Ok(Self { name, dtype, shape: info.shape, range: begin..end })
    }
}

/// Requires that the tensors follow each other without a hole or an overlap, to the file's end.
fn check_coverage(entries: &mut [Entry], data_len: usize) -> Result<()> {
    entries.sort_unstable_by_key(|e| (e.range.start, e.range.end));
    let mut covered = 0;
    for Entry { name, range, .. } in entries.iter() {
        if range.start > covered {
            return Err(Error::checkpoint(format!(
                "the data has a hole: bytes {covered} to {} before tensor `{name}` belong to none",
                range.start
            )));
        }
        if range.start < covered {
            return Err(Error::checkpoint(format!(
                "tensor `{name}` starts at byte {} inside another, which ends at {covered}",
                range.start
            )));
        }
        covered = range.end;
    }
    if covered > data_len {
        return Err(Error::checkpoint(format!(
            "truncated: the header describes {covered} bytes of data, {data_len} are there"
        )));
    }
    if covered < data_len {
        return Err(Error::checkpoint(format!(
            "{} bytes follow the last tensor: the header describes {covered} bytes of data, \
             {data_len} are there",
            data_len - covered
        )));
    }
    Ok(())
}

/// The header as JSON. Read by hand because the safetensors crate (0.8.0) lets the last of several
/// equal keys win in silence.
struct Header {
    metadata: Option<BTreeMap<String, String>>,
    tensors: Vec<(String, Info)>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Info {
    dtype: safetensors::Dtype,
    shape: Vec<usize>,
    data_offsets: (usize, usize),
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct HeaderVisitor;

        impl<'de> Visitor<'de> for HeaderVisitor {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut header = Header { metadata: None, tensors: Vec::new() };
                while let Some(key) = map.next_key::<String>()? {
                    if key != METADATA_KEY {
                        header.tensors.push((key, map.next_value()?));
                    } else if header.metadata.replace(map.next_value::<TextMap>()?.0).is_some() {
                        return Err(A::Error::custom(format!("`{METADATA_KEY}` is there twice")));
                    }
                }
                Ok(header)
            }
        }

        deserializer.deserialize_map(HeaderVisitor)
    }
}

/// A map of texts that refuses a repeated key.
pub(super) struct TextMap(pub(super) BTreeMap<String, String>);

impl<'de> Deserialize<'de> for TextMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextMapVisitor;

        impl<'de> Visitor<'de> for TextMapVisitor {
            type Value = TextMap;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of strings")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<TextMap, A::Error> {
                let mut texts = BTreeMap::new();
                while let Some((key, text)) = map.next_entry::<String, String>()? {
                    let twice = format!("metadata key `{key}` is there twice");
                    if texts.insert(key, text).is_some() {
                        return Err(A::Error::custom(twice));
                    }
                }
                Ok(TextMap(texts))
            }
        }

        deserializer.deserialize_map(TextMapVisitor)
    }
}
