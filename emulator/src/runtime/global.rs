//! The one runtime of the process and the lock around it.

use std::{
    cell::Cell,
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::{Runtime, config::Config};

static RUNTIME: Mutex<Option<Runtime>> = Mutex::new(None);

thread_local! {
    static CALLING_BACK: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread is inside a `cuLaunchHostFunc` callback, where no driver call is allowed.
#[must_use]
pub fn in_callback() -> bool {
    CALLING_BACK.with(Cell::get)
}

/// Marks the current thread as inside a callback while `call` runs.
pub(crate) fn calling_back(call: impl FnOnce()) {
    CALLING_BACK.with(|flag| flag.set(true));
    call();
    CALLING_BACK.with(|flag| flag.set(false));
}

/// Runs `call` on the process's runtime, which the environment configures on first use.
pub fn with<T>(call: impl FnOnce(&mut Runtime) -> T) -> T {
    let mut guard: MutexGuard<'_, Option<Runtime>> =
        RUNTIME.lock().unwrap_or_else(PoisonError::into_inner);
    let runtime = guard.get_or_insert_with(|| {
        let config = Config::from_env().unwrap_or_else(|error| {
            super::write_stderr(&format!(
                "cuda-emulator: {error}; using the default configuration\n"
            ));
            Config::default()
        });
        Runtime::new(config)
    });
    call(runtime)
}
