//! Files that survive a crash and refuse damage: the checkpoint container, and plain tensor files.
//!
//! | item | job |
//! |---|---|
//! | [`Writer`], [`Reader`] | a checkpoint: tensors, the caller's JSON, and a digest over both |
//! | [`TensorFileWriter`], [`TensorFile`] | plain safetensors of any origin, read as strictly |
//! | [`ModelFiles`] | the headers of a model: a file, a folder of shards, or an index |
//! | [`replace_file`] | any other file, replaced as safely |
//! | [`read_file`], [`read_text_file`] | any other file, read up to a limit |
//!
//! # Format
//!
//! A checkpoint is a [safetensors](https://github.com/huggingface/safetensors) file; any reader of
//! that format sees its tensors. From the first byte:
//!
//! 1. `n`: the header's length in bytes, unsigned 64-bit little-endian, a multiple of 8, at most
//!    100 000 000;
//! 2. `n` bytes of header: one JSON object in UTF-8 without white space, padded with spaces;
//! 3. the tensors' bytes: row-major, little-endian, in the order of the header, without gaps.
//!
//! The header's first key is `__metadata__`, its value an object with the one key `muon_cuda`,
//! whose value is a string holding JSON (quotes and backslashes in it escaped with a backslash):
//!
//! ```json
//! {"format":"muon-cuda-checkpoint","version":1,"digest":"<64 hex digits>","content":<any JSON>}
//! ```
//!
//! in this order, without white space, keys of the content sorted. Hence the digest stands at bytes
//! 102 to 165 of every file of version 1 ([`DIGEST_OFFSET`]). Then comes one key per tensor,
//! `"name":{"dtype":"F32","shape":[2,3],"data_offsets":[begin,end]}`, with offsets counted from the
//! end of the header. Tensors are ordered by element type (U64, I64, F64, F32, BF16, F16) and then
//! by the UTF-8 bytes of the name. Equal contents give equal bytes.
//!
//! The digest is the SHA-256, in lower-case hexadecimal, of the whole file with the digest's own 64
//! digits replaced by the character `0`. It guards against damage, not against an author of forged
//! files.
//!
//! `docs/checkpoint-format.md` in the repository has the same with a reader in Python.
//!
//! # Crash safety
//!
//! A save writes a temporary file beside the target, syncs it, renames it over the target and syncs
//! the directory. After a crash at any moment the target is the old file or the new one, complete;
//! after `save` returned it is the new one. See [`replace_file`] for links, modes and leftovers.
//!
//! # Cost
//!
//! Writing borrows the tensors and makes two passes over them, one for the digest. Reading holds
//! the file in memory once, plus each tensor handed out. What a header announces is compared with the
//! file's size before anything is allocated for it.

mod atomic;
mod container;
mod digest;
mod disk;
mod dtype;
mod encode;
mod file;
mod layout;
mod model_files;
mod read;
mod tensor_file;

#[cfg(test)]
mod crash_tests;
#[cfg(test)]
mod damage_tests;

pub use atomic::replace_file;
pub use container::{DIGEST_OFFSET, Reader, VERSION, Writer};
pub use dtype::{Element, TensorDtype};
pub use model_files::{ModelFiles, ModelTensor};
pub use read::{read_file, read_text_file};
pub use tensor_file::{TensorFile, TensorFileWriter};
