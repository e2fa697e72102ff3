//! The tensors of a file being written, and the header that describes them.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::BTreeMap;

use serde::ser::{Serialize, SerializeMap, Serializer};

use super::dtype::{Element, TensorDtype};
use super::layout::{LENGTH_BYTES, MAX_HEADER_BYTES, METADATA_KEY};
use crate::error::{Error, Result};

/// Tensors by name. The bytes are borrowed where the caller's memory has the file's byte order.
#[derive(Debug, Default)]
pub(super) struct TensorSet<'a>(BTreeMap<String, Pending<'a>>);

#[derive(Debug)]
struct Pending<'a> {
    dtype: TensorDtype,
    shape: Vec<usize>,
    bytes: Cow<'a, [u8]>,
}

impl<'a> TensorSet<'a> {
    pub(super) fn push<T: Element>(
        &mut self,
        name: &str,
        shape: &[usize],
        values: &'a [T],
    ) -> Result<()> {
        self.push_bytes(name, T::DTYPE, shape, T::le_bytes(values))
    }

    pub(super) fn push_bytes(
        &mut self,
        name: &str,
        dtype: TensorDtype,
        shape: &[usize],
        bytes: Cow<'a, [u8]>,
    ) -> Result<()> {
        if name == METADATA_KEY {
            return Err(Error::invalid_config(format!(
                "`{METADATA_KEY}` cannot name a tensor: safetensors keeps its metadata there"
            )));
        }
        if dtype.bytes_of(shape) != Some(bytes.len()) {
            return Err(Error::shape_mismatch(
                format!("tensor `{name}`"),
                format!("the bytes of shape {shape:?} of {dtype}"),
                format!("{} bytes", bytes.len()),
            ));
        }
        if self.0.contains_key(name) {
            return Err(Error::duplicate_tensor(name));
        }
        self.0.insert(name.to_owned(), Pending { dtype, shape: shape.to_vec(), bytes });
        Ok(())
    }

    /// The parts of the file in order: length and header, then each tensor's bytes.
    ///
    /// The order is that of the safetensors crate: widest dtype first, then by name, so that every
    /// tensor starts at a multiple of its element size and equal contents give equal bytes.
    pub(super) fn parts(
        &self,
        metadata: &BTreeMap<String, String>,
    ) -> Result<(Vec<u8>, Vec<&[u8]>)> {
        let mut order: Vec<(&String, &Pending<'a>)> = self.0.iter().collect();
        // Stable: among equal types the map's order by name stays.
        order.sort_by_key(|(_, pending)| Reverse(DtypeOrder(pending.dtype)));
        let header = serde_json::to_vec(&HeaderText { metadata, order: &order })
            .map_err(|e| Error::checkpoint("the header cannot be written").with_source(e))?;
        let length = header.len().next_multiple_of(LENGTH_BYTES);
        if length > MAX_HEADER_BYTES {
            return Err(Error::checkpoint(format!(
                "the header would take {length} bytes, over the format's limit of \
                 {MAX_HEADER_BYTES}: fewer tensors, shorter names or less metadata per file"
            )));
        }
        let mut start = Vec::with_capacity(LENGTH_BYTES + length);
        start.extend_from_slice(&(length as u64).to_le_bytes());
        start.extend_from_slice(&header);
        start.resize(LENGTH_BYTES + length, b' ');
        Ok((start, order.iter().map(|(_, pending)| pending.bytes.as_ref()).collect()))
    }
}

/// The file in one piece.
pub(super) fn joined(header: Vec<u8>, data: &[&[u8]]) -> Vec<u8> {
    let mut bytes = header;
    bytes.reserve_exact(data.iter().map(|part| part.len()).sum());
    data.iter().for_each(|part| bytes.extend_from_slice(part));
    bytes
}

/// Compares element types as the safetensors crate declares them: by increasing alignment.
#[derive(PartialEq, Eq)]
struct DtypeOrder(TensorDtype);

impl Ord for DtypeOrder {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.0.cmp(&other.0.0)
    }
}

impl PartialOrd for DtypeOrder {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

struct HeaderText<'s, 'a> {
    metadata: &'s BTreeMap<String, String>,
    order: &'s [(&'s String, &'s Pending<'a>)],
}

#[derive(serde::Serialize)]
struct InfoText<'s> {
    dtype: safetensors::Dtype,
    shape: &'s [usize],
    data_offsets: (usize, usize),
}

impl Serialize for HeaderText<'_, '_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        if !self.metadata.is_empty() {
            map.serialize_entry(METADATA_KEY, self.metadata)?;
        }
        let mut begin = 0;
        for (name, pending) in self.order {
            let end = begin + pending.bytes.len();
            let info = InfoText {
                dtype: pending.dtype.0,
                shape: &pending.shape,
                data_offsets: (begin, end),
            };
            map.serialize_entry(name, &info)?;
            begin = end;
        }
        map.end()
    }
}
