//! PTX text to a module: entries, module variables and, for each entry, resolved instructions.

mod module;

pub use module::{Entry, LoadError, LoadedModule, Module, ParamInfo, Variable};
