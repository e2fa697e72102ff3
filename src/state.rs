//! Checkpoints of an optimizer: every buffer by parameter name, with the modes that give it meaning; [`restore`] puts
//! them back.

mod restore;

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::checkpoint::{Reader, Writer};
use crate::device::{Counters, Device, HostBuffer, StateData};
use crate::error::{Error, Result, ResultExt};
use crate::optimizer::Muon;

pub use restore::{Mismatch, RestoreReport};

/// Prefix of the optimizer's tensors in a checkpoint.
const OPTIMIZER: &str = "optimizer/";
/// Prefix of the caller's.
const USER: &str = "user/";

/// The state of an optimizer on the host, with whatever else a trainer must resume from.
///
/// # Example
/// ```
/// use muon_cuda::{Checkpoint, Cpu, HostBuffer, Muon, MuonConfig, MuonRule, ParamSpec};
///
/// let mut muon = Muon::new(Cpu::new()?, MuonConfig::default())?;
/// let hidden = muon.add_group("hidden", MuonRule::default())?;
/// muon.add_param(hidden, ParamSpec::new("w", &[2, 3]))?;
///
/// let mut checkpoint = muon.checkpoint()?;
/// checkpoint.insert("w", &[2, 3], HostBuffer::F32(vec![0.0; 6]));   // the trainer's own weights
/// checkpoint.note = serde_json::json!({ "epoch": 3 });
/// let path = std::env::temp_dir().join("muon-doc.safetensors");
/// checkpoint.save(&path)?;
///
/// let checkpoint = Checkpoint::load(&path)?;
/// muon.restore(&checkpoint)?;
/// assert_eq!(checkpoint.note["epoch"], 3);
/// assert_eq!(checkpoint.tensor("w", &[2, 3])?, &HostBuffer::F32(vec![0.0; 6]));
/// # std::fs::remove_file(&path).ok();
/// # Ok::<(), muon_cuda::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Checkpoint {
    /// Anything JSON: data order, seeds, counters of the trainer. Numbers that may be NaN belong into tensors.
    pub note: Value,
    params: Vec<SavedParam>,
    states: Vec<StateData>,
    user: BTreeMap<String, (Vec<usize>, HostBuffer)>,
}

/// What identifies a parameter's state.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedParam {
    name: String,
    shape: Vec<usize>,
    dtype: String,
    /// Kind of rule and momentum mode.
    modes: String,
    /// Name and element type of each buffer.
    buffers: Vec<(String, String)>,
    steps: u64,
    skipped: Vec<u64>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    params: Vec<SavedParam>,
    user: Vec<(String, Vec<usize>, String)>,
    note: Value,
}

impl Checkpoint {
    /// Adds a tensor of the caller's, such as a model weight; an earlier one of that name is replaced.
    pub fn insert(&mut self, name: impl Into<String>, shape: &[usize], buffer: HostBuffer) {
        self.user.insert(name.into(), (shape.to_vec(), buffer));
    }

    /// A tensor of the caller's.
    ///
    /// # Errors
    /// A name that is not there, or another shape.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<&HostBuffer> {
        let (found, buffer) = self.user.get(name).ok_or_else(|| {
            Error::unknown_name("tensor", name, self.user.keys().map(String::as_str))
        })?;
        if found != shape {
            return Err(Error::shape_mismatch(
                format!("tensor `{name}`"),
                format!("{shape:?}"),
                format!("{found:?}"),
            ));
        }
        Ok(buffer)
    }

    /// Writes the checkpoint; a crash at any moment leaves the old file or the new one.
    ///
    /// # Errors
    /// A shape that does not fit its buffer, or a failed file-system call; the old file is untouched.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let content = Content {
            params: self.params.clone(),
            user: self
                .user
                .iter()
                .map(|(name, (shape, buffer))| {
                    (name.clone(), shape.clone(), buffer.dtype().to_string())
                })
                .collect(),
            note: self.note.clone(),
        };
        let mut writer = Writer::new(&content)?;
        for (param, state) in self.params.iter().zip(&self.states) {
            for (buffer, data) in &state.buffers {
                add(
                    &mut writer,
                    &format!("{OPTIMIZER}{}.{buffer}", param.name),
                    &param.shape,
                    data,
                )?;
            }
        }
        for (name, (shape, data)) in &self.user {
            add(&mut writer, &format!("{USER}{name}"), shape, data)?;
        }
        writer.save(path).context(|| "save checkpoint")
    }

    /// Reads a checkpoint whole and checks its digest.
    ///
    /// # Errors
    /// A file that cannot be read, is truncated or damaged, is no checkpoint, or lacks what its header lists.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let reader = Reader::load(path)?;
        let content: Content = reader.content()?;
        let mut states = Vec::with_capacity(content.params.len());
        let mut names = Vec::new();
        for param in &content.params {
            let mut buffers = Vec::with_capacity(param.buffers.len());
            for (buffer, dtype) in &param.buffers {
                let known = ["momentum_buffer", "exp_avg", "exp_avg_sq", "master"];
                let kind = known.into_iter().find(|k| k == buffer).ok_or_else(|| {
                    Error::unknown_name("state buffer", buffer, known).context(&param.name)
                })?;
                let name = format!("{OPTIMIZER}{}.{buffer}", param.name);
                buffers.push((kind, read(&reader, &name, &param.shape, dtype)?));
                names.push(name);
            }
            let counters = Counters { steps: param.steps, skipped: param.skipped.clone() };
            states.push(StateData { buffers, counters });
        }
        let mut user = BTreeMap::new();
        for (name, shape, dtype) in content.user {
            let stored = format!("{USER}{name}");
            let buffer = read(&reader, &stored, &shape, &dtype)?;
            names.push(stored);
            user.insert(name, (shape, buffer));
        }
        reader.check_names(names.iter().map(String::as_str))?;
        Ok(Self { note: content.note, params: content.params, states, user })
    }

    /// Gives parameters other names, such as those of a model whose layers were renamed: their state, and the caller's
    /// tensors of the same names.
    ///
    /// The random bits of [`Bf16Params::Stochastic`](crate::Bf16Params::Stochastic) depend on the name: under another one they are others, as right as before.
    ///
    /// # Errors
    /// Two parameters, or two tensors, would have one name. Nothing changes.
    ///
    /// # Example
    /// ```
    /// # use muon_cuda::{Cpu, Muon, MuonConfig, MuonRule, ParamSpec};
    /// # let mut muon = Muon::new(Cpu::new()?, MuonConfig::default())?;
    /// # let hidden = muon.add_group("hidden", MuonRule::default())?;
    /// # muon.add_param(hidden, ParamSpec::new("module.w", &[2, 3]))?;
    /// let mut checkpoint = muon.checkpoint()?;        // of `module.w`
    /// checkpoint.rename(|name| name.trim_start_matches("module.").to_owned())?;
    /// assert_eq!(checkpoint.param_names().collect::<Vec<_>>(), ["w"]);
    /// # Ok::<(), muon_cuda::Error>(())
    /// ```
    pub fn rename(&mut self, mut name: impl FnMut(&str) -> String) -> Result<()> {
        let renamed: BTreeMap<String, String> =
            self.params.iter().map(|p| (p.name.clone(), name(&p.name))).collect();
        let of = |old: &str| renamed.get(old).cloned().unwrap_or_else(|| old.to_owned());
        refuse_one_name(self.params.iter().map(|p| (p.name.clone(), of(&p.name))))?;
        refuse_one_name(self.user.keys().map(|k| (k.clone(), of(k))))?;
        for param in &mut self.params {
            param.name = of(&param.name);
        }
        self.user = std::mem::take(&mut self.user).into_iter().map(|(k, v)| (of(&k), v)).collect();
        Ok(())
    }

    /// Names of the parameters whose state it holds.
    pub fn param_names(&self) -> impl Iterator<Item = &str> {
        self.params.iter().map(|p| p.name.as_str())
    }
}

/// Pairs of an old and a new name, whose new ones must differ.
fn refuse_one_name(pairs: impl Iterator<Item = (String, String)>) -> Result<()> {
    let mut old_of = BTreeMap::new();
    for (old, new) in pairs {
        if let Some(first) = old_of.insert(new.clone(), old.clone()) {
            return Err(Error::checkpoint(format!(
                "renaming gives `{first}` and `{old}` one name, `{new}`; names identify state and must differ"
            )));
        }
    }
    Ok(())
}

fn add<'a>(
    writer: &mut Writer<'a>,
    name: &str,
    shape: &[usize],
    data: &'a HostBuffer,
) -> Result<()> {
    match data {
        HostBuffer::F32(x) => writer.values(name, shape, x)?,
        HostBuffer::Bf16(x) => writer.values(name, shape, x)?,
    };
    Ok(())
}

fn read(reader: &Reader, name: &str, shape: &[usize], dtype: &str) -> Result<HostBuffer> {
    match dtype {
        "f32" => Ok(HostBuffer::F32(reader.values(name, shape)?)),
        "bf16" => Ok(HostBuffer::Bf16(reader.values(name, shape)?)),
        other => Err(Error::dtype_mismatch(format!("tensor `{name}`"), "f32 or bf16", other)),
    }
}

impl<D: Device> Muon<D> {
    /// Copies the whole state to the host; waits for the device.
    ///
    /// # Errors
    /// A failed device; an optimizer that is torn ([`Muon::torn`]).
    pub fn checkpoint(&mut self) -> Result<Checkpoint> {
        self.refuse_torn_checkpoint()?;
        let mut params = Vec::new();
        let mut exported = Vec::new();
        for position in 0..self.params().len() {
            let (device, all, states) = self.parts();
            let state = device.export_state(&states[position])?;
            let spec = &all[position].spec;
            let saved = SavedParam {
                name: spec.name.clone(),
                shape: spec.shape.clone(),
                dtype: spec.dtype.to_string(),
                modes: String::new(),
                buffers: state
                    .buffers
                    .iter()
                    .map(|(name, data)| ((*name).to_owned(), data.dtype().to_string()))
                    .collect(),
                steps: state.counters.steps,
                skipped: state.counters.skipped.clone(),
            };
            let modes = self.modes(&self.params()[position]);
            params.push(SavedParam { modes, ..saved });
            exported.push(state);
        }
        Ok(Checkpoint { note: Value::Null, params, states: exported, user: BTreeMap::new() })
    }
}
