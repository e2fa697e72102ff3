//! The queue: adding work with its dependencies, and running it in a seeded order.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::{
    Runtime,
    clock::{Clock, Stamp},
    config::FaultSite,
    status::{Outcome, Status},
    task::{Node, Task, TaskId, Work},
};

impl Runtime {
    /// Adds work to a stream, or to the graph the stream is being captured into (`Ok(None)`).
    ///
    /// # Errors
    /// A capture error.
    pub(crate) fn enqueue(
        &mut self,
        stream: u64,
        label: &str,
        work: Work,
        fault: Option<i32>,
    ) -> Outcome<Option<TaskId>> {
        if self.streams[&stream].capture.is_some() {
            return self.capture_node(stream, label, work).map(|()| None);
        }
        self.forbid_implicit_dependency(stream, label)?;
        self.join_legacy(stream);
        let host = self.host.clone();
        let id = self.next_task;
        self.next_task += 1;
        let Some(found) = self.streams.get_mut(&stream) else { return Err(Status::INVALID_HANDLE) };
        found.clock.join(&host);
        found.count += 1;
        found.clock.raise(found.lane, found.count);
        let what = Self::label(format!("{label} on {}", found.name));
        let task = Task {
            context: found.context,
            stamp: Stamp { lane: found.lane, count: found.count, what },
            clock: found.clock.clone(),
            after: std::mem::replace(&mut found.frontier, vec![id]),
            work,
            fault,
        };
        self.pending.insert(id, task);
        self.spread_legacy(stream, id);
        Ok(Some(id))
    }

    /// Work on the legacy stream comes after everything queued on blocking streams.
    fn join_legacy(&mut self, stream: u64) {
        let context = self.streams[&stream].context;
        if self.contexts.get(&context).is_none_or(|found| found.legacy != stream) {
            return;
        }
        let mut frontier = Vec::new();
        let mut clock = Clock::default();
        for other in self.streams.values().filter(|s| s.context == context && s.blocking) {
            frontier.extend(&other.frontier);
            clock.join(&other.clock);
        }
        if let Some(found) = self.contexts.get(&context) {
            frontier.extend(&found.retired.frontier);
            clock.join(&found.retired.blocking);
        }
        frontier.sort_unstable();
        frontier.dedup();
        frontier.retain(|task| self.pending.contains_key(task));
        if let Some(found) = self.streams.get_mut(&stream) {
            found.frontier = frontier;
            found.clock.join(&clock);
        }
    }

    /// … and everything queued on blocking streams later comes after it.
    pub(crate) fn spread_legacy(&mut self, stream: u64, id: TaskId) {
        let context = self.streams[&stream].context;
        if self.contexts.get(&context).is_none_or(|found| found.legacy != stream) {
            return;
        }
        let clock = self.streams[&stream].clock.clone();
        for (handle, other) in &mut self.streams {
            if *handle != stream
                && other.context == context
                && other.blocking
                && other.capture.is_none()
            {
                other.frontier.retain(|task| self.pending.contains_key(task));
                other.frontier.push(id);
                other.clock.join(&clock);
            }
        }
    }

    /// Counts one call of a kind. A status that a call returns at once is the error; one that a
    /// device shows later is handed back to be attached to the task.
    pub(crate) fn inject(&mut self, site: FaultSite) -> Outcome<Option<i32>> {
        match self.faults.next(site) {
            None => Ok(None),
            Some(code) if Status(code).is_sticky() && site != FaultSite::Allocation => {
                Ok(Some(code))
            }
            Some(code) => Err(Status(code)),
        }
    }

    /// Everything unfinished that `targets` depend on, themselves included.
    fn closure(&self, targets: &[TaskId]) -> HashSet<TaskId> {
        let mut needed = HashSet::new();
        let mut stack: Vec<TaskId> = targets.to_vec();
        while let Some(id) = stack.pop() {
            if let Some(task) = self.pending.get(&id)
                && needed.insert(id)
            {
                stack.extend(&task.after);
            }
        }
        needed
    }

    /// Runs until `targets` are done, in a seeded order, with other work let in at random.
    ///
    /// Errors of the work land in its context.
    pub(crate) fn run_until(&mut self, targets: &[TaskId]) {
        let needed = self.closure(targets);
        if needed.is_empty() {
            return;
        }
        let mut waiting: HashMap<TaskId, usize> = HashMap::new();
        let mut dependents: HashMap<TaskId, Vec<TaskId>> = HashMap::new();
        let mut ready: BTreeSet<TaskId> = BTreeSet::new();
        for (id, task) in &self.pending {
            let mut blockers: Vec<TaskId> =
                task.after.iter().copied().filter(|on| self.pending.contains_key(on)).collect();
            blockers.sort_unstable();
            blockers.dedup();
            for on in &blockers {
                dependents.entry(*on).or_default().push(*id);
            }
            if blockers.is_empty() {
                ready.insert(*id);
            }
            waiting.insert(*id, blockers.len());
        }
        let mut left = needed.len();
        // Seed 0 is the laziest order; every other seed also lets unneeded work run early.
        let eager = self.config.seed != 0;
        while left > 0 {
            let stray = eager && self.rng.below(4) == 0;
            let choices: Vec<TaskId> =
                ready.iter().copied().filter(|id| stray || needed.contains(id)).collect();
            let Some(id) = choices.get(self.rng.below(choices.len())).copied() else { break };
            ready.remove(&id);
            if needed.contains(&id) {
                left -= 1;
            }
            self.run_task(id);
            for next in dependents.remove(&id).unwrap_or_default() {
                if let Some(count) = waiting.get_mut(&next) {
                    *count -= 1;
                    if *count == 0 {
                        ready.insert(next);
                    }
                }
            }
        }
    }

    /// Whether `targets` are done; if not, runs one operation they need, every other time.
    pub(crate) fn poll(&mut self, targets: &[TaskId]) -> bool {
        let needed = self.closure(targets);
        if needed.is_empty() {
            return true;
        }
        if self.rng.coin() {
            let ready: Vec<TaskId> = needed
                .iter()
                .copied()
                .filter(|id| self.pending[id].after.iter().all(|on| !self.pending.contains_key(on)))
                .collect();
            let mut ready = ready;
            ready.sort_unstable();
            if let Some(id) = ready.get(self.rng.below(ready.len())).copied() {
                self.run_task(id);
            }
        }
        self.closure(targets).is_empty()
    }

    fn run_task(&mut self, id: TaskId) {
        let Some(task) = self.pending.remove(&id) else { return };
        let broken = self.contexts.get(&task.context).is_none_or(|found| found.error.is_some());
        // In a context with a sticky error nothing runs any more, but waits still end.
        if broken && !matches!(task.work, Work::Record { .. }) {
            return;
        }
        let result = match task.fault {
            Some(code) => Err(Status(code)),
            None => self.execute(&task),
        };
        if let Err(status) = result
            && let Some(found) = self.contexts.get_mut(&task.context)
            && found.error.is_none()
        {
            found.error = Some(status);
        }
    }

    /// Queues the nodes of a graph behind `stream` as one operation of it.
    pub(crate) fn enqueue_nodes(
        &mut self,
        stream: u64,
        exec: u64,
        nodes: &[Node],
        faults: &[Option<i32>],
    ) {
        self.join_legacy(stream);
        let mut clocks: Vec<Clock> = Vec::with_capacity(nodes.len());
        let mut ids: Vec<TaskId> = Vec::with_capacity(nodes.len());
        let host = self.host.clone();
        let Some(found) = self.streams.get_mut(&stream) else { return };
        found.clock.join(&host);
        let mut root_clock = found.clock.clone();
        let mut roots = found.frontier.clone();
        if let Some(last) = self.execs.get(&exec) {
            root_clock.join(&last.last_clock);
            roots.extend(&last.last);
        }
        let mut is_sink = vec![true; nodes.len()];
        for (index, node) in nodes.iter().enumerate() {
            let id = self.next_task;
            self.next_task += 1;
            let mut clock = root_clock.clone();
            let mut after = Vec::new();
            for on in &node.after {
                clock.join(&clocks[*on]);
                after.push(ids[*on]);
                is_sink[*on] = false;
            }
            if node.after.is_empty() {
                after.clone_from(&roots);
            }
            let (lane, count) = self.exec_lane(exec, node.lane);
            clock.raise(lane, count);
            let what = Self::label(format!("{} in a graph", node.label));
            self.pending.insert(
                id,
                Task {
                    context: node.context,
                    stamp: Stamp { lane, count, what },
                    clock: clock.clone(),
                    after,
                    work: node.work.clone(),
                    fault: faults.get(index).copied().flatten(),
                },
            );
            clocks.push(clock);
            ids.push(id);
        }
        let sinks: Vec<usize> = (0..nodes.len()).filter(|index| is_sink[*index]).collect();
        let mut end_clock = root_clock;
        for index in &sinks {
            end_clock.join(&clocks[*index]);
        }
        let last: Vec<TaskId> = sinks.iter().map(|index| ids[*index]).collect();
        if let Some(found) = self.execs.get_mut(&exec) {
            found.last.clone_from(&last);
            found.last_clock = end_clock.clone();
        }
        if let Some(found) = self.streams.get_mut(&stream) {
            if !last.is_empty() {
                found.frontier.clone_from(&last);
            }
            found.clock.join(&end_clock);
        }
        for id in last {
            self.spread_legacy(stream, id);
        }
    }
}
