//! A parsed module and its entries, and a module loaded into a device's memory.

use std::collections::HashMap;
use std::sync::Arc;

use super::ir::Code;
use super::lower::lower;
use super::syntax;
use super::tree::{Declaration, Function, Initial, Literal};
use crate::finding::SourceLine;
use crate::memory::{DeviceMemory, OutOfMemory};

/// The PTX text could not be accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("ptx line {line}: {message}\n  {text}")]
pub struct LoadError {
    /// 1-based line in the PTX text.
    pub line: u32,
    /// The statement's text.
    pub text: String,
    /// What is wrong with it.
    pub message: String,
}

/// One kernel parameter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParamInfo {
    /// Name in the PTX.
    pub name: String,
    /// Byte offset in the parameter buffer.
    pub offset: u32,
    /// Size in bytes.
    pub bytes: u32,
    /// Alignment in bytes.
    pub align: u32,
}

/// A kernel.
#[derive(Debug)]
pub struct Entry {
    /// Entry name.
    pub name: String,
    /// Parameters in order.
    pub params: Vec<ParamInfo>,
    /// Size of the parameter buffer in bytes.
    pub param_bytes: u32,
    /// Statically declared shared memory in bytes.
    pub shared_bytes: u32,
    /// Local memory per thread in bytes.
    pub local_bytes: u32,
    /// Upper bound of 32-bit registers per thread, as PTX declares them (not what ptxas allocates).
    pub registers: u32,
    /// `.maxntid`, as a number of threads.
    pub max_threads: Option<u32>,
    /// `.reqntid`.
    pub required_block: Option<[u32; 3]>,
    pub(crate) code: Code,
}

/// A `.global` or `.const` variable of a module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Variable {
    /// Name in the PTX.
    pub name: String,
    /// Size in bytes.
    pub bytes: u64,
    /// Alignment in bytes.
    pub align: u32,
    /// Whether it is in constant memory.
    pub is_const: bool,
    /// Initial contents; CUDA zero-fills what has no initialiser.
    pub initial: Vec<u8>,
    /// Places in `initial` that hold the address of another variable: byte, variable, offset.
    relocations: Vec<(u64, u32, i64)>,
}

/// A parsed PTX module.
#[derive(Debug)]
pub struct Module {
    entries: Vec<Arc<Entry>>,
    variables: Vec<Variable>,
    target: String,
    files: HashMap<u32, String>,
    lines: Vec<String>,
}

impl Module {
    /// Parses PTX text.
    ///
    /// # Errors
    /// [`LoadError`] with line and text for anything that is not understood or not modelled.
    pub fn parse(ptx: &str) -> Result<Self, LoadError> {
        let text: Vec<&str> = ptx.lines().collect();
        let source = syntax::parse(ptx)?;
        let in_memory = |variable: &&Declaration<'_>| variable.space != ".shared";
        let declared: Vec<_> = source.variables.iter().filter(in_memory).collect();
        let names: HashMap<&str, u32> =
            declared.iter().enumerate().map(|(i, variable)| (variable.name, i as u32)).collect();
        let variables =
            declared.iter().map(|d| variable(d, &names, &text)).collect::<Result<_, _>>()?;
        let mut entries = Vec::new();
        for function in source.functions.iter().filter(|f| f.is_entry && f.body.is_some()) {
            let Some(params) = params(function) else {
                return Err(LoadError {
                    line: function.line,
                    text: text.get(function.line as usize - 1).unwrap_or(&"").trim().to_owned(),
                    message: format!("more than {MAX_PARAM_BYTES} bytes of parameters"),
                });
            };
            let offsets: Vec<u32> = params.iter().map(|param| param.offset).collect();
            let code = lower(&source, &text, &names, function, &offsets)?;
            let static_shared = code.shared.iter().filter(|array| !array.dynamic);
            entries.push(Arc::new(Entry {
                name: function.name.to_owned(),
                param_bytes: params.last().map_or(0, |param| param.offset + param.bytes),
                params,
                shared_bytes: static_shared.map(|array| array.bytes).sum(),
                local_bytes: code.local_bytes,
                registers: code.registers,
                max_threads: function
                    .max_threads
                    .map(|[x, y, z]| x.saturating_mul(y).saturating_mul(z)),
                required_block: function.required_block,
                code,
            }));
        }
        let files = source.files.iter().map(|(i, name)| (*i, (*name).to_owned())).collect();
        let lines = text.iter().map(|line| line.trim().to_owned()).collect();
        Ok(Self { entries, variables, target: source.target.to_owned(), files, lines })
    }

    /// The text of a PTX line.
    pub(crate) fn line(&self, line: u32) -> Option<&str> {
        self.lines.get((line as usize).checked_sub(1)?).map(String::as_str)
    }

    /// The CUDA source line of a `.loc`.
    pub(crate) fn source_line(&self, location: (u32, u32)) -> Option<SourceLine> {
        let file = self.files.get(&location.0)?.clone();
        Some(SourceLine { file, line: location.1 })
    }

    /// The entry of that name.
    #[must_use]
    pub fn entry(&self, name: &str) -> Option<&Arc<Entry>> {
        self.entries.iter().find(|entry| entry.name == name)
    }

    /// All entries, in order of appearance.
    #[must_use]
    pub fn entries(&self) -> &[Arc<Entry>] {
        &self.entries
    }

    /// The module's `.global` and `.const` variables.
    #[must_use]
    pub fn variables(&self) -> &[Variable] {
        &self.variables
    }

    /// The `.target`, for example `sm_90a`.
    #[must_use]
    pub fn target(&self) -> &str {
        &self.target
    }

    /// Places the module's variables into a device's memory.
    ///
    /// # Errors
    /// [`OutOfMemory`] when they do not fit.
    pub fn load(self: &Arc<Self>, memory: &DeviceMemory) -> Result<LoadedModule, OutOfMemory> {
        let mut addresses = Vec::with_capacity(self.variables.len());
        for variable in &self.variables {
            let label = format!("module variable {}", variable.name);
            addresses.push(if variable.is_const {
                memory.alloc_read_only(variable.bytes, &label)?
            } else {
                memory.alloc(variable.bytes, &label)?
            });
        }
        for (variable, address) in self.variables.iter().zip(&addresses) {
            let mut initial = variable.initial.clone();
            for (at, target, offset) in &variable.relocations {
                let value = addresses[*target as usize].wrapping_add_signed(*offset);
                let at = *at as usize;
                if let Some(slot) = initial.get_mut(at..at + 8) {
                    slot.copy_from_slice(&value.to_le_bytes());
                }
            }
            // The range was allocated above with exactly this size.
            let _ = memory.copy_in(*address, &initial);
        }
        Ok(LoadedModule { module: Arc::clone(self), addresses })
    }
}

/// Most parameter bytes of a kernel (CUDA 12.1 and later).
const MAX_PARAM_BYTES: u64 = 32_764;

/// The parameter buffer's layout; `None` if it is too large.
fn params(function: &Function<'_>) -> Option<Vec<ParamInfo>> {
    let mut offset = 0u64;
    let mut out = Vec::new();
    for param in &function.params {
        let bytes = param.count.unwrap_or(1).saturating_mul(u64::from(param.element));
        offset = offset.next_multiple_of(u64::from(param.align.max(1)));
        if bytes > MAX_PARAM_BYTES || offset + bytes > MAX_PARAM_BYTES {
            return None;
        }
        let (name, align) = (param.name.to_owned(), param.align);
        out.push(ParamInfo { name, offset: offset as u32, bytes: bytes as u32, align });
        offset += bytes;
    }
    Some(out)
}

fn variable(
    declaration: &Declaration<'_>,
    names: &HashMap<&str, u32>,
    text: &[&str],
) -> Result<Variable, LoadError> {
    let error = |message: String| LoadError {
        line: declaration.line,
        text: text.get(declaration.line as usize - 1).unwrap_or(&"").trim().to_owned(),
        message,
    };
    let element = declaration.element as usize;
    let count = declaration.count.unwrap_or(declaration.initial.len() as u64);
    let bytes = count.saturating_mul(element as u64);
    if bytes > 1 << 32 {
        return Err(error("the variable is too large".to_owned()));
    }
    let mut initial = vec![0u8; bytes as usize];
    let mut relocations = Vec::new();
    for (i, value) in declaration.initial.iter().enumerate() {
        let at = i * element;
        let Some(slot) = initial.get_mut(at..at + element) else {
            return Err(error("more initial values than elements".to_owned()));
        };
        let bits = match value {
            Initial::Literal(Literal::Integer(value)) => *value as u64,
            Initial::Literal(Literal::Single(bits)) => u64::from(*bits),
            Initial::Literal(Literal::Double(bits)) => *bits,
            Initial::Address(name, offset) => match names.get(name) {
                Some(index) if element == 8 => {
                    relocations.push((at as u64, *index, *offset));
                    0
                }
                _ => return Err(error(format!("initial value `{name}` is not modelled"))),
            },
        };
        for (byte, source) in slot.iter_mut().zip(bits.to_le_bytes()) {
            *byte = source;
        }
    }
    Ok(Variable {
        name: declaration.name.to_owned(),
        bytes,
        align: declaration.align,
        is_const: declaration.space == ".const",
        initial,
        relocations,
    })
}

/// A module whose variables have addresses on one device.
#[derive(Debug)]
pub struct LoadedModule {
    module: Arc<Module>,
    addresses: Vec<u64>,
}

impl LoadedModule {
    /// The module.
    #[must_use]
    pub fn module(&self) -> &Arc<Module> {
        &self.module
    }

    /// Address and size of a variable.
    #[must_use]
    pub fn variable(&self, name: &str) -> Option<(u64, u64)> {
        let index = self.module.variables.iter().position(|variable| variable.name == name)?;
        Some((*self.addresses.get(index)?, self.module.variables[index].bytes))
    }

    /// Address of a variable by number.
    pub(crate) fn address(&self, index: u32) -> u64 {
        self.addresses.get(index as usize).copied().unwrap_or(0)
    }

    /// Frees the variables' memory.
    ///
    /// # Errors
    /// A finding when one was freed already.
    pub fn unload(self, memory: &DeviceMemory) -> crate::Checked<()> {
        for address in &self.addresses {
            memory.free(*address)?;
        }
        Ok(())
    }
}
