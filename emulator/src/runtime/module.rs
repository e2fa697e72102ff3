//! Modules from PTX, their kernels and global variables.

use std::sync::Arc;

use super::{
    Runtime,
    alloc::Allocation,
    handle::Kind,
    report::{Class, Report},
    status::{Outcome, Status},
    task::Work,
};
use crate::ptx::{self, LoadedModule};

/// Parsed modules kept for the next time they are loaded.
const MOST_PARSED: usize = 256;

/// A loaded module.
#[derive(Debug)]
pub(crate) struct Module {
    pub(crate) context: u64,
    image: Arc<LoadedModule>,
    variables: Vec<u64>,
}

/// A kernel that can be launched.
#[derive(Debug)]
pub(crate) struct Kernel {
    pub(crate) name: String,
    pub(crate) image: Arc<LoadedModule>,
    pub(crate) entry: Arc<ptx::Entry>,
}

/// What `cuModuleGetFunction` hands out.
#[derive(Debug)]
pub(crate) struct Function {
    pub(crate) context: u64,
    pub(crate) module: u64,
    pub(crate) kernel: Arc<Kernel>,
    /// `CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES`, once set.
    pub(crate) max_dynamic_shared: Option<u32>,
    pub(crate) carveout: i32,
}

impl Runtime {
    /// `cuModuleLoadData` and its kin. `image` is what the program passed, up to its end.
    ///
    /// PTX is accepted. A cubin or fat binary holds machine code, which is not emulated: it gets
    /// `NO_BINARY_FOR_GPU`, what a driver says about a cubin of another architecture.
    ///
    /// # Errors
    /// `NO_BINARY_FOR_GPU`, `INVALID_IMAGE`, `INVALID_PTX` with a finding that has text and line.
    pub fn module_load(&mut self, image: &[u8]) -> Outcome<u64> {
        let context = self.current_context()?;
        self.forbid_any_capture("cuModuleLoadData")?;
        if image.starts_with(b"\x7fELF") || image.starts_with(&[0x50, 0xED, 0x55, 0xBA]) {
            return Err(self.refuse(
                Status::NO_BINARY_FOR_GPU,
                Class::Unsupported,
                "cuModuleLoadData",
                "the image is a cubin or fat binary; the emulator runs PTX (compile to PTX, or load the PTX)",
            ));
        }
        let Ok(text) = std::str::from_utf8(image) else { return Err(Status::INVALID_IMAGE) };
        if !text.contains(".version") {
            return Err(Status::INVALID_IMAGE);
        }
        let parsed = self.parse(text)?;
        let device = self.contexts[&context].device;
        let capability = self.devices[device].profile.compute_capability;
        if let Err(message) = runs_on(parsed.target(), capability) {
            return Err(self.refuse(
                Status::INVALID_PTX,
                Class::InvalidArgument,
                "cuModuleLoadData",
                message,
            ));
        }
        let image = parsed.load(self.store.memory()).map_err(|_| Status::OUT_OF_MEMORY)?;
        let mut variables = Vec::new();
        for variable in image.module().variables() {
            let Some((address, bytes)) = image.variable(&variable.name) else { continue };
            self.devices[device].used += bytes;
            self.counters.live_bytes += bytes;
            self.allocations.insert(
                address,
                Allocation {
                    context,
                    device,
                    bytes,
                    made_by: format!("module variable `{}`", variable.name),
                    pool: None,
                    free_queued: false,
                    module: true,
                },
            );
            variables.push(address);
        }
        let handle = self.handles.make(Kind::Module);
        self.modules.insert(handle, Module { context, image: Arc::new(image), variables });
        Ok(handle)
    }

    /// The module of a PTX text, parsed when it is seen first.
    fn parse(&mut self, text: &str) -> Outcome<Arc<ptx::Module>> {
        if let Some(known) = self.parsed.get(text) {
            return Ok(Arc::clone(known));
        }
        let parsed = ptx::Module::parse(text).map_err(|error| {
            let report = Report {
                ptx_line: Some(error.line),
                ..Report::host(Class::Unsupported, "cuModuleLoadData", error.to_string())
            };
            self.report(report);
            Status::INVALID_PTX
        })?;
        // A program that makes up PTX without end must not fill the memory.
        if self.parsed.len() >= MOST_PARSED {
            self.parsed.clear();
        }
        let parsed = Arc::new(parsed);
        self.parsed.insert(text.into(), Arc::clone(&parsed));
        Ok(parsed)
    }

    fn module(&mut self, module: u64, operation: &str) -> Outcome<&Module> {
        self.require_init()?;
        if !self.modules.contains_key(&module) {
            return Err(self.bad_handle(Kind::Module, module, operation));
        }
        Ok(&self.modules[&module])
    }

    /// `cuModuleUnload`.
    ///
    /// # Errors
    /// `INVALID_HANDLE`; the context's error when queued launches still need the module.
    pub fn module_unload(&mut self, module: u64) -> Outcome<()> {
        let context = self.module(module, "cuModuleUnload")?.context;
        self.check_context(context)?;
        let functions: Vec<u64> = self
            .functions
            .iter()
            .filter(|(_, f)| f.module == module)
            .map(|(handle, _)| *handle)
            .collect();
        let queued = self
            .pending
            .values()
            .find(|task| matches!(&task.work, Work::Launch(launch) if functions.contains(&launch.function)))
            .map(|task| task.stamp.what.clone());
        if let Some(what) = queued {
            self.report(Report::host(
                Class::UseAfterFree,
                "cuModuleUnload",
                format!("the module is unloaded while {what} is queued; synchronise first"),
            ));
            if self.fails() {
                self.poison(context, Status::ILLEGAL_ADDRESS);
            }
        }
        for function in functions {
            self.functions.remove(&function);
        }
        if let Some(found) = self.modules.remove(&module) {
            for address in found.variables {
                self.drop_allocation(address);
            }
        }
        self.check_context(context)
    }

    /// `cuModuleGetFunction`.
    ///
    /// # Errors
    /// `NOT_FOUND` with a finding that lists the module's entries.
    pub fn module_function(&mut self, module: u64, name: &str) -> Outcome<u64> {
        let found = self.module(module, "cuModuleGetFunction")?;
        let (context, image) = (found.context, Arc::clone(&found.image));
        self.check_context(context)?;
        let Some(entry) = image.module().entry(name).map(Arc::clone) else {
            return Err(Status::NOT_FOUND);
        };
        let known =
            self.functions.iter().find(|(_, f)| f.module == module && f.kernel.name == name);
        if let Some((handle, _)) = known {
            return Ok(*handle);
        }
        let handle = self.handles.make(Kind::Function);
        let kernel = Arc::new(Kernel { name: name.to_owned(), image, entry });
        self.functions.insert(
            handle,
            Function { context, module, kernel, max_dynamic_shared: None, carveout: -1 },
        );
        Ok(handle)
    }

    /// `cuModuleGetGlobal`: address and size.
    ///
    /// # Errors
    /// `NOT_FOUND`.
    pub fn module_global(&mut self, module: u64, name: &str) -> Outcome<(u64, u64)> {
        self.module(module, "cuModuleGetGlobal")?.image.variable(name).ok_or(Status::NOT_FOUND)
    }

    pub(crate) fn function(&mut self, function: u64, operation: &str) -> Outcome<&Function> {
        self.require_init()?;
        if !self.functions.contains_key(&function) {
            return Err(self.bad_handle(Kind::Function, function, operation));
        }
        Ok(&self.functions[&function])
    }

    /// The module a function belongs to.
    ///
    /// # Errors
    /// `INVALID_HANDLE`.
    pub fn function_module(&mut self, function: u64) -> Outcome<u64> {
        Ok(self.function(function, "cuFuncGetModule")?.module)
    }

    /// The entry name of a function.
    ///
    /// # Errors
    /// `INVALID_HANDLE`.
    pub fn function_name(&mut self, function: u64) -> Outcome<String> {
        Ok(self.function(function, "cuFuncGetName")?.kernel.name.clone())
    }

    /// `cuFuncGetAttribute`.
    ///
    /// # Errors
    /// `INVALID_HANDLE`, `INVALID_VALUE` for an unknown attribute.
    pub fn function_attribute(&mut self, function: u64, attribute: i32) -> Outcome<i32> {
        let found = self.function(function, "cuFuncGetAttribute")?;
        let entry = Arc::clone(&found.kernel.entry);
        let (context, dynamic, carveout) =
            (found.context, found.max_dynamic_shared, found.carveout);
        let device = self.contexts.get(&context).ok_or(Status::CONTEXT_IS_DESTROYED)?.device;
        let profile = &self.devices[device].profile;
        let (major, minor) = profile.compute_capability;
        Ok(match attribute {
            0 => entry.max_threads.unwrap_or(1024).min(1024) as i32,
            1 => entry.shared_bytes as i32,
            2 => 0,
            3 => entry.local_bytes as i32,
            4 => registers(&entry) as i32,
            // PTX and binary versions, as 10·major + minor.
            5 => 90,
            6 => (10 * major + minor) as i32,
            7 => 0,
            8 => dynamic.unwrap_or(profile.shared_per_block.saturating_sub(entry.shared_bytes))
                as i32,
            9 => carveout,
            10..=15 => 0,
            _ => return Err(Status::INVALID_VALUE),
        })
    }

    /// `cuFuncSetAttribute`.
    ///
    /// # Errors
    /// `INVALID_VALUE` for a size over the device's limit, `NOT_SUPPORTED` for cluster attributes.
    pub fn function_set_attribute(
        &mut self,
        function: u64,
        attribute: i32,
        value: i32,
    ) -> Outcome<()> {
        let found = self.function(function, "cuFuncSetAttribute")?;
        let (context, fixed) = (found.context, found.kernel.entry.shared_bytes);
        let name = found.kernel.name.clone();
        self.check_context(context)?;
        let device = self.contexts[&context].device;
        let limit = self.devices[device].profile.shared_per_block_optin;
        match attribute {
            8 => {
                let wanted = u32::try_from(value).map_err(|_| Status::INVALID_VALUE)?;
                if wanted.saturating_add(fixed) > limit {
                    return Err(self.refuse(
                        Status::INVALID_VALUE,
                        Class::LaunchLimit,
                        "cuFuncSetAttribute",
                        format!(
                            "{wanted} bytes of dynamic and {fixed} of static shared memory for `{name}` are over the device's {limit}"
                        ),
                    ));
                }
                if let Some(found) = self.functions.get_mut(&function) {
                    found.max_dynamic_shared = Some(wanted);
                }
                Ok(())
            }
            9 => {
                if !(-1..=100).contains(&value) {
                    return Err(Status::INVALID_VALUE);
                }
                if let Some(found) = self.functions.get_mut(&function) {
                    found.carveout = value;
                }
                Ok(())
            }
            10..=15 => Err(self.unsupported("cuFuncSetAttribute for thread block clusters")),
            _ => Err(Status::INVALID_VALUE),
        }
    }
}

/// What `cuFuncGetAttribute` says about registers: PTX registers are not hardware registers, so
/// this is an upper bound cut to what a thread can have.
pub(crate) fn registers(entry: &ptx::Entry) -> u32 {
    entry.registers.clamp(16, 255)
}

/// Whether PTX for `target` (such as `sm_90a`) runs on a device.
fn runs_on(target: &str, (major, minor): (u32, u32)) -> Result<(), String> {
    let digits: String =
        target.trim_start_matches("sm_").chars().take_while(char::is_ascii_digit).collect();
    let suffix = target.trim_start_matches("sm_").trim_start_matches(&digits);
    let Ok(wanted) = digits.parse::<u32>() else {
        return Err(format!("the target `{target}` is not understood"));
    };
    let have = 10 * major + minor;
    let fits = match suffix {
        "a" => wanted == have,
        "f" => wanted / 10 == major && wanted <= have,
        _ => wanted <= have,
    };
    if fits {
        Ok(())
    } else {
        Err(format!("the PTX targets {target}, the device has compute capability {major}.{minor}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_forward_compatible_unless_they_are_architecture_specific() {
        assert!(runs_on("sm_80", (9, 0)).is_ok());
        assert!(runs_on("sm_90a", (9, 0)).is_ok());
        assert!(runs_on("sm_90a", (10, 0)).is_err());
        assert!(runs_on("sm_90", (8, 0)).is_err());
        assert!(runs_on("sm_100f", (10, 3)).is_ok());
    }
}
