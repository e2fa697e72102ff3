//! Fault injection: counts calls of each kind and fails the chosen ones.

use std::collections::BTreeMap;

use super::config::{Fault, FaultSite};

/// How many calls of each kind there were, and which are to fail.
#[derive(Debug, Default)]
pub(crate) struct FaultState {
    plan: Vec<Fault>,
    calls: BTreeMap<FaultSite, u64>,
}

impl FaultState {
    pub(crate) fn new(plan: Vec<Fault>) -> Self {
        FaultState { plan, calls: BTreeMap::new() }
    }

    /// Counts one call and returns the status it is to fail with, if it is.
    pub(crate) fn next(&mut self, site: FaultSite) -> Option<i32> {
        let calls = self.calls.entry(site).or_insert(0);
        *calls += 1;
        let nth = *calls;
        self.plan
            .iter()
            .find(|fault| fault.site == site && fault.nth == nth)
            .map(|fault| fault.status)
    }
}
