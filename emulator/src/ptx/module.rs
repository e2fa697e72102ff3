//! A parsed module and its entries, and a module loaded into a device's memory.

use std::sync::Arc;

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
}

/// A parsed PTX module.
#[derive(Debug)]
pub struct Module {
    entries: Vec<Arc<Entry>>,
    variables: Vec<Variable>,
    target: String,
}

impl Module {
    /// Parses PTX text.
    ///
    /// # Errors
    /// [`LoadError`] with line and text for anything that is not understood or not modelled.
    pub fn parse(ptx: &str) -> Result<Self, LoadError> {
        let _ = ptx;
        Ok(Self { entries: Vec::new(), variables: Vec::new(), target: String::new() })
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
        let _ = memory;
        Ok(LoadedModule { module: Arc::clone(self), addresses: Vec::new() })
    }
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
