//! A checkpoint of one run: what run it is, and named lists of numbers, in the library's container.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Result, ensure};
use muon_cuda::checkpoint::{Reader, Writer};

use super::config::Config;

/// A list of numbers with its type.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Numbers {
    F32(Vec<f32>),
    F64(Vec<f64>),
    U64(Vec<u64>),
}

/// Lists to be written, by name.
#[derive(Debug, Default)]
pub(crate) struct Tensors(BTreeMap<String, Numbers>);

impl Tensors {
    /// Adds or replaces a list.
    pub(crate) fn insert(&mut self, name: &str, numbers: Numbers) {
        self.0.insert(name.to_owned(), numbers);
    }

    /// Writes the file; a crash leaves the old one or the new one.
    ///
    /// # Errors
    /// The file system's.
    pub(crate) fn save(&self, path: &Path, run: &Config) -> Result<()> {
        let mut writer = Writer::new(run)?;
        for (name, numbers) in &self.0 {
            match numbers {
                Numbers::F32(v) => writer.values::<f32>(name, &[v.len()], v)?,
                Numbers::F64(v) => writer.values::<f64>(name, &[v.len()], v)?,
                Numbers::U64(v) => writer.values::<u64>(name, &[v.len()], v)?,
            };
        }
        Ok(writer.save(path)?)
    }
}

/// Lists read from a file.
#[derive(Debug)]
pub(crate) struct Stored(Reader);

impl Stored {
    /// Reads a checkpoint of that run.
    ///
    /// # Errors
    /// The file system's; a damaged file; a checkpoint of another run.
    pub(crate) fn load(path: &Path, run: &Config) -> Result<Self> {
        let reader = Reader::load(path)?;
        let found: Config = reader.content()?;
        ensure!(found == *run, "it belongs to another run (other seed, optimizer or budget)");
        Ok(Self(reader))
    }

    /// A list of that length.
    ///
    /// # Errors
    /// Missing, or of another type or length.
    pub(crate) fn f32(&self, name: &str, len: usize) -> Result<Vec<f32>> {
        Ok(self.0.values(name, &[len])?)
    }

    /// A list of that length.
    ///
    /// # Errors
    /// Missing, or of another type or length.
    pub(crate) fn f64(&self, name: &str, len: usize) -> Result<Vec<f64>> {
        Ok(self.0.values(name, &[len])?)
    }

    /// A list of any length.
    ///
    /// # Errors
    /// Missing, or of another type.
    pub(crate) fn any_f64(&self, name: &str) -> Result<Vec<f64>> {
        Ok(self.0.values(name, self.0.shape(name)?)?)
    }

    /// A list of that length.
    ///
    /// # Errors
    /// Missing, or of another type or length.
    pub(crate) fn u64(&self, name: &str, len: usize) -> Result<Vec<u64>> {
        Ok(self.0.values(name, &[len])?)
    }

    /// A list of one.
    ///
    /// # Errors
    /// Missing, or of another type or length.
    pub(crate) fn scalar(&self, name: &str) -> Result<u64> {
        self.u64(name, 1).map(|v| v[0])
    }
}
