//! Memory pools: their attributes and sizes. Memory itself is never reused.

use std::collections::BTreeMap;

use super::{
    Runtime,
    handle::Kind,
    status::{Outcome, Status},
};

/// One memory pool.
#[derive(Debug)]
pub(crate) struct Pool {
    pub(crate) device: usize,
    /// `CUmemPool_attribute` 1–4.
    settings: BTreeMap<i32, u64>,
    used: u64,
    high: u64,
    /// Made by the program, so that it may destroy it.
    own: bool,
}

impl Pool {
    pub(crate) fn new(device: usize) -> Self {
        Pool {
            device,
            settings: BTreeMap::from([(1, 1), (2, 1), (3, 1), (4, 0)]),
            used: 0,
            high: 0,
            own: false,
        }
    }

    pub(crate) fn grew(&mut self, bytes: u64) {
        self.used += bytes;
        self.high = self.high.max(self.used);
    }

    pub(crate) fn shrank(&mut self, bytes: u64) {
        self.used = self.used.saturating_sub(bytes);
    }
}

impl Runtime {
    /// `cuDeviceGetDefaultMemPool`.
    ///
    /// # Errors
    /// `INVALID_DEVICE`.
    pub fn default_pool(&mut self, device: i32) -> Outcome<u64> {
        self.profile(device)?;
        Ok(self.devices[device as usize].default_pool)
    }

    /// `cuDeviceGetMemPool`.
    ///
    /// # Errors
    /// `INVALID_DEVICE`.
    pub fn device_pool(&mut self, device: i32) -> Outcome<u64> {
        self.profile(device)?;
        Ok(self.devices[device as usize].pool)
    }

    /// `cuDeviceSetMemPool`.
    ///
    /// # Errors
    /// `INVALID_DEVICE`, `INVALID_HANDLE`, `INVALID_VALUE` for another device's pool.
    pub fn set_device_pool(&mut self, device: i32, pool: u64) -> Outcome<()> {
        self.profile(device)?;
        let Some(found) = self.pools.get(&pool) else {
            return Err(self.bad_handle(Kind::Pool, pool, "cuDeviceSetMemPool"));
        };
        if found.device != device as usize {
            return Err(Status::INVALID_VALUE);
        }
        self.devices[device as usize].pool = pool;
        Ok(())
    }

    /// `cuMemPoolCreate` on a device.
    ///
    /// # Errors
    /// `INVALID_DEVICE`.
    pub fn pool_create(&mut self, device: i32) -> Outcome<u64> {
        self.profile(device)?;
        let handle = self.handles.make(Kind::Pool);
        self.pools.insert(handle, Pool { own: true, ..Pool::new(device as usize) });
        Ok(handle)
    }

    /// `cuMemPoolDestroy`.
    ///
    /// # Errors
    /// `INVALID_HANDLE`, `INVALID_VALUE` for a device's default pool.
    pub fn pool_destroy(&mut self, pool: u64) -> Outcome<()> {
        self.require_init()?;
        match self.pools.get(&pool) {
            None => Err(self.bad_handle(Kind::Pool, pool, "cuMemPoolDestroy")),
            Some(found) if !found.own => Err(Status::INVALID_VALUE),
            Some(_) => {
                self.pools.remove(&pool);
                for device in &mut self.devices {
                    if device.pool == pool {
                        device.pool = device.default_pool;
                    }
                }
                Ok(())
            }
        }
    }

    /// `cuMemPoolTrimTo`: nothing is held back, so nothing is released.
    ///
    /// # Errors
    /// `INVALID_HANDLE`.
    pub fn pool_trim(&mut self, pool: u64) -> Outcome<()> {
        self.require_init()?;
        if self.pools.contains_key(&pool) {
            Ok(())
        } else {
            Err(self.bad_handle(Kind::Pool, pool, "cuMemPoolTrimTo"))
        }
    }

    /// `cuMemPoolGetAttribute` and `cuMemPoolSetAttribute`. Attributes 1–3 are 32-bit.
    ///
    /// # Errors
    /// `INVALID_HANDLE`, `INVALID_VALUE` for an unknown attribute or a size set to other than 0.
    pub fn pool_attribute(&mut self, pool: u64, attribute: i32, set: Option<u64>) -> Outcome<u64> {
        self.require_init()?;
        if !self.pools.contains_key(&pool) {
            return Err(self.bad_handle(Kind::Pool, pool, "cuMemPoolGetAttribute"));
        }
        let Some(found) = self.pools.get_mut(&pool) else { return Err(Status::INVALID_HANDLE) };
        match (attribute, set) {
            (1..=4, Some(value)) => {
                found.settings.insert(attribute, value);
                Ok(value)
            }
            (1..=4, None) => Ok(found.settings[&attribute]),
            (6 | 8, Some(0)) => {
                found.high = found.used;
                Ok(0)
            }
            (5 | 7, None) => Ok(found.used),
            (6 | 8, None) => Ok(found.high),
            _ => Err(Status::INVALID_VALUE),
        }
    }
}
