//! PTX text to a module: entries, module variables and, for each entry, resolved instructions.

pub mod capabilities;
mod instructions;
pub(crate) mod ir;
mod lexer;
mod lower;
mod module;
mod syntax;
mod tree;

pub use module::{Entry, LoadError, LoadedModule, Module, ParamInfo, Variable};
