//! The files of a model: one safetensors file, a folder of shards, or an index that names them. Headers alone are read.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::dtype::TensorDtype;
use super::file::Opened;
use super::layout::{TextMap, listed};
use super::read::read_file;
use crate::error::{Error, Result, ResultExt};

/// One tensor of a model, by its header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelTensor {
    /// Its name, which no other tensor of the model has.
    pub name: String,
    /// Its element type.
    pub dtype: TensorDtype,
    /// Its shape; empty for a scalar.
    pub shape: Vec<usize>,
    /// Position of its file in [`ModelFiles::paths`].
    pub file: usize,
}

/// The tensors of a model as the headers of its files describe them.
///
/// # Cost
/// Headers are read, tensors are not: a model may be larger than memory.
#[derive(Debug, Clone)]
pub struct ModelFiles {
    paths: Vec<PathBuf>,
    index: Option<PathBuf>,
    tensors: Vec<ModelTensor>,
}

/// What an index holds.
#[derive(Deserialize)]
struct Index {
    #[serde(rename = "metadata")]
    _metadata: Option<IgnoredAny>,
    weight_map: TextMap,
}

/// Largest index, as the largest header: both have a line for each tensor.
const LARGEST_INDEX: u64 = 100_000_000;

const INDEX_END: &str = ".safetensors.index.json";

impl ModelFiles {
    /// Reads the headers of a safetensors file, of the shards that an index `*.safetensors.index.json` names, or of a
    /// folder that holds one of these.
    ///
    /// # Errors
    /// `is_io` for what cannot be read. `is_checkpoint` for a damaged header; an index that does not agree with its
    /// shards (a shard or a tensor that is missing, a tensor that the index does not name or that is in two shards); a
    /// folder without safetensors files, or with several that nothing says are one model.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        if path.is_dir() {
            return Self::folder(path);
        }
        if path.extension().is_some_and(|end| end == "json") {
            return Self::indexed(path);
        }
        Self::shards(vec![path.to_owned()])
    }

    /// The safetensors files, in order.
    #[must_use]
    pub fn paths(&self) -> &[PathBuf] {
        &self.paths
    }

    /// The index that named the files, if one did.
    #[must_use]
    pub fn index(&self) -> Option<&Path> {
        self.index.as_deref()
    }

    /// All tensors, sorted by name.
    #[must_use]
    pub fn tensors(&self) -> &[ModelTensor] {
        &self.tensors
    }

    fn folder(folder: &Path) -> Result<Self> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(folder).map_err(|e| Error::io(folder, "list", e))? {
            let entry = entry.map_err(|e| Error::io(folder, "list", e))?;
            // A name that is no text is none of ours.
            names.extend(entry.file_name().into_string());
        }
        names.sort_unstable();
        let indexes: Vec<&str> =
            names.iter().map(String::as_str).filter(|n| n.ends_with(INDEX_END)).collect();
        let files: Vec<&str> =
            names.iter().map(String::as_str).filter(|n| n.ends_with(".safetensors")).collect();
        match (indexes.as_slice(), files.as_slice()) {
            ([index], _) => Self::indexed(&folder.join(index)),
            ([], []) => Err(Error::checkpoint("the folder holds no *.safetensors file")
                .context(folder.display())),
            ([], [file]) if numbered(file).is_none() => Self::shards(vec![folder.join(file)]),
            ([], files) => {
                check_numbered(files).context(|| folder.display())?;
                Self::shards(files.iter().map(|file| folder.join(file)).collect())
            }
            (indexes, _) => Err(Error::checkpoint(format!(
                "the folder holds several indexes: {}; name one of them",
                listed(indexes.iter().copied(), "none")
            ))
            .context(folder.display())),
        }
    }

    fn indexed(path: &Path) -> Result<Self> {
        let text = read_file(path, LARGEST_INDEX)?;
        let index: Index = serde_json::from_slice(&text).map_err(|e| {
            Error::checkpoint(format!("not an index of safetensors files: {e}"))
                .with_source(e)
                .context(path.display())
        })?;
        let map = index.weight_map.0;
        let folder = path.parent().unwrap_or(Path::new(""));
        Self::of_index(folder, &map)
            .map(|files| Self { index: Some(path.to_owned()), ..files })
            .context(|| path.display())
    }

    fn of_index(folder: &Path, map: &BTreeMap<String, String>) -> Result<Self> {
        // Each shard with the first tensor that it is named for.
        let mut shards: BTreeMap<&str, &str> = BTreeMap::new();
        for (tensor, shard) in map {
            shards.entry(shard).or_insert(tensor);
        }
        if shards.is_empty() {
            return Err(Error::checkpoint("the index names no tensor"));
        }
        for (shard, tensor) in &shards {
            let mut parts = Path::new(shard).components();
            if !matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None)) {
                return Err(Error::checkpoint(format!(
                    "the index keeps `{tensor}` in `{shard}`; expected the name of a file beside it"
                )));
            }
            if !folder.join(shard).exists() {
                return Err(Error::checkpoint(format!(
                    "the index keeps `{tensor}` in `{shard}`, which is not there: {} of {} shards are missing; \
                     download them again",
                    shards.keys().filter(|s| !folder.join(s).exists()).count(),
                    shards.len()
                )));
            }
        }
        let names: Vec<&str> = shards.keys().copied().collect();
        let files = Self::shards(names.iter().map(|shard| folder.join(shard)).collect())?;
        for tensor in &files.tensors {
            let found = names.get(tensor.file).copied().unwrap_or_default();
            match map.get(&tensor.name) {
                Some(shard) if shard == found => {}
                Some(shard) => {
                    return Err(Error::checkpoint(format!(
                        "tensor `{}`: the index says `{shard}`, it is in `{found}`",
                        tensor.name
                    )));
                }
                None => {
                    return Err(Error::checkpoint(format!(
                        "tensor `{}` is in `{found}` and not in the index",
                        tensor.name
                    )));
                }
            }
        }
        let missing: Vec<&str> =
            map.keys().map(String::as_str).filter(|name| files.find(name).is_none()).collect();
        if let Some(first) = missing.first() {
            return Err(Error::checkpoint(format!(
                "tensor `{first}` is not in `{}`, where the index keeps it; missing are {}",
                map.get(*first).map_or("", String::as_str),
                listed(missing.iter().copied(), "none")
            )));
        }
        Ok(files)
    }

    fn find(&self, name: &str) -> Option<&ModelTensor> {
        let index = self.tensors.binary_search_by(|t| t.name.as_str().cmp(name)).ok()?;
        self.tensors.get(index)
    }

    /// All tensors of these files; none is in two.
    fn shards(paths: Vec<PathBuf>) -> Result<Self> {
        let mut tensors = Vec::new();
        for (file, path) in paths.iter().enumerate() {
            let entries = Opened::open(path)?.layout.into_entries();
            tensors.extend(entries.into_iter().map(|e| ModelTensor {
                name: e.name,
                dtype: e.dtype,
                shape: e.shape,
                file,
            }));
        }
        tensors.sort_by(|a, b| a.name.cmp(&b.name));
        for pair in tensors.windows(2) {
            if let [a, b] = pair
                && a.name == b.name
            {
                let path = |t: &ModelTensor| paths.get(t.file).map(|p| p.display().to_string());
                return Err(Error::checkpoint(format!(
                    "tensor `{}` is in `{}` and in `{}`",
                    a.name,
                    path(a).unwrap_or_default(),
                    path(b).unwrap_or_default()
                )));
            }
        }
        Ok(Self { paths, index: None, tensors })
    }
}

/// Stem, number and count of `STEM-00001-of-00003.safetensors`.
fn numbered(name: &str) -> Option<(&str, usize, usize)> {
    let (stem, count) = name.strip_suffix(".safetensors")?.rsplit_once("-of-")?;
    let (stem, number) = stem.rsplit_once('-')?;
    Some((stem, number.parse().ok()?, count.parse().ok()?))
}

/// Requires that the names are `STEM-00001-of-00003.safetensors` and on, all of them and no other.
fn check_numbered(names: &[&str]) -> Result<()> {
    let all: Option<Vec<_>> = names.iter().map(|name| numbered(name)).collect();
    let Some(all) = all.filter(|all| all.windows(2).all(|w| w[0].0 == w[1].0 && w[0].2 == w[1].2))
    else {
        return Err(Error::checkpoint(format!(
            "the folder holds {}, and no index says that they are one model; name one of them",
            listed(names.iter().copied(), "none")
        )));
    };
    let count = all.first().map_or(0, |first| first.2);
    let is_there = |n: &usize| all.iter().any(|(_, number, _)| number == n);
    if let Some(missing) = (1..=count.min(all.len() + 1)).find(|n| !is_there(n)) {
        return Err(Error::checkpoint(format!(
            "shard {missing} of {count} is missing; the folder holds {}",
            listed(names.iter().copied(), "none")
        )));
    }
    if all.len() != count {
        return Err(Error::checkpoint(format!(
            "expected {count} shards, found {}: {}",
            all.len(),
            listed(names.iter().copied(), "none")
        )));
    }
    Ok(())
}
