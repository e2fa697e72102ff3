//! The Rust API's way into the loaded library: JSON requests through one exported function.

use serde::{Deserialize, Serialize};

use super::{Class, Runtime, config::Config, counters::Counters, report::Report};

/// What a test asks of the emulator.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Request {
    /// Starts over with this configuration.
    Reset(Box<Config>),
    /// Ends every context that is left, so that leaks are reported.
    Finish,
    /// The findings so far.
    Findings,
    /// The findings so far, which are then forgotten.
    TakeFindings,
    /// The counters.
    Counters,
    /// Sets the counters to zero; bytes that are allocated stay allocated.
    ResetCounters,
    /// What ran that is not bit for bit what a device computes, and what was refused.
    Fidelity,
}

/// What the emulator answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Response {
    /// Done.
    Done,
    /// Findings.
    Findings(Vec<Report>),
    /// Counters.
    Counters(Box<Counters>),
    /// Names of inexact instructions that ran, and of entries that were refused.
    Fidelity {
        /// Instructions whose result may differ from a device's in the last bits.
        approximate: Vec<String>,
        /// Entry points and instructions that were refused.
        unsupported: Vec<String>,
    },
}

impl Runtime {
    /// Answers a request.
    pub fn control(&mut self, request: Request) -> Response {
        match request {
            Request::Reset(config) => {
                self.reset(*config);
                Response::Done
            }
            Request::Finish => {
                let contexts: Vec<u64> = self.contexts.keys().copied().collect();
                let mut healthy = true;
                for context in contexts {
                    healthy &= self.end_context(context);
                }
                // cublasLt's objects belong to no context.
                if healthy {
                    self.report_lt_leaks();
                }
                for device in &mut self.devices {
                    device.primary = 0;
                    device.primary_users = 0;
                }
                Response::Done
            }
            Request::Findings => Response::Findings(self.reports.clone()),
            Request::TakeFindings => Response::Findings(std::mem::take(&mut self.reports)),
            Request::Counters => Response::Counters(Box::new(self.counters.clone())),
            Request::ResetCounters => {
                let live = self.counters.live_bytes;
                self.counters =
                    Counters { live_bytes: live, peak_bytes: live, ..Counters::default() };
                Response::Done
            }
            Request::Fidelity => {
                let (approximate, unsupported) = self.fidelity();
                Response::Fidelity { approximate, unsupported }
            }
        }
    }

    /// Names of instructions that ran and are not bit for bit a device's, and of what was refused.
    pub(crate) fn fidelity(&self) -> (Vec<String>, Vec<String>) {
        let refused = self.reports.iter().filter(|report| report.class == Class::Unsupported);
        let mut unsupported: Vec<String> = refused.map(|report| report.operation.clone()).collect();
        unsupported.sort();
        unsupported.dedup();
        (self.approximate.iter().cloned().collect(), unsupported)
    }

    /// Answers a request given and returned as JSON; `None` when the request is not understood.
    #[must_use]
    pub fn control_json(&mut self, request: &[u8]) -> Option<Vec<u8>> {
        let request: Request = serde_json::from_slice(request).ok()?;
        serde_json::to_vec(&self.control(request)).ok()
    }
}
