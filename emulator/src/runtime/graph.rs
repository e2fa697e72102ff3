//! Graphs: instantiation, launch, update and inspection.

use std::collections::BTreeMap;

use super::{
    Runtime,
    clock::{Clock, Lane},
    config::FaultSite,
    handle::Kind,
    host::read_host,
    status::{Outcome, Status},
    task::{HostSource, Node, TaskId, Work},
};

/// A graph of work; nodes come after the nodes they depend on.
#[derive(Clone, Debug, Default)]
pub(crate) struct Graph {
    pub(crate) nodes: Vec<Node>,
}

/// An instantiated graph.
#[derive(Debug)]
pub(crate) struct Exec {
    nodes: Vec<Node>,
    /// The timeline of each captured stream in this graph's launches, and how much was queued.
    lanes: BTreeMap<Lane, (Lane, u64)>,
    /// The last launch: launches of one executable graph run one after the other.
    pub(crate) last: Vec<TaskId>,
    pub(crate) last_clock: Clock,
}

/// Why an executable graph could not be updated: `CUgraphExecUpdateResult`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpdateResult {
    /// The update was made.
    Success = 0,
    /// The number of nodes or their dependencies differ.
    TopologyChanged = 2,
    /// A node is of another kind.
    NodeTypeChanged = 3,
    /// A parameter that cannot change did.
    ParametersChanged = 5,
}

impl Runtime {
    /// `cuGraphCreate`: an empty graph.
    ///
    /// # Errors
    /// `NOT_INITIALIZED`.
    pub fn graph_create(&mut self) -> Outcome<u64> {
        self.require_init()?;
        let handle = self.handles.make(Kind::Graph);
        self.graphs.insert(handle, Graph::default());
        Ok(handle)
    }

    fn graph(&mut self, graph: u64, operation: &str) -> Outcome<&Graph> {
        self.require_init()?;
        if !self.graphs.contains_key(&graph) {
            return Err(self.bad_handle(Kind::Graph, graph, operation));
        }
        Ok(&self.graphs[&graph])
    }

    /// `cuGraphDestroy`.
    ///
    /// # Errors
    /// `INVALID_HANDLE`.
    pub fn graph_destroy(&mut self, graph: u64) -> Outcome<()> {
        self.graph(graph, "cuGraphDestroy")?;
        self.graphs.remove(&graph);
        Ok(())
    }

    /// `cuGraphInstantiate`.
    ///
    /// # Errors
    /// `INVALID_HANDLE`, `INVALID_VALUE` for flags beyond 15.
    pub fn graph_instantiate(&mut self, graph: u64, flags: u64) -> Outcome<u64> {
        let nodes = self.graph(graph, "cuGraphInstantiate")?.nodes.clone();
        if flags & 4 != 0 {
            return Err(self.unsupported("cuGraphInstantiate for launch from the device"));
        }
        if flags > 15 {
            return Err(Status::INVALID_VALUE);
        }
        let handle = self.handles.make(Kind::Exec);
        self.execs.insert(
            handle,
            Exec { nodes, lanes: BTreeMap::new(), last: Vec::new(), last_clock: Clock::default() },
        );
        Ok(handle)
    }

    fn require_exec(&mut self, exec: u64, operation: &str) -> Outcome<()> {
        self.require_init()?;
        if self.execs.contains_key(&exec) {
            Ok(())
        } else {
            Err(self.bad_handle(Kind::Exec, exec, operation))
        }
    }

    /// `cuGraphExecDestroy`: a launch in flight still runs.
    ///
    /// # Errors
    /// `INVALID_HANDLE`.
    pub fn exec_destroy(&mut self, exec: u64) -> Outcome<()> {
        self.require_exec(exec, "cuGraphExecDestroy")?;
        self.execs.remove(&exec);
        Ok(())
    }

    /// The timeline of a captured stream in an executable graph, one operation further.
    pub(crate) fn exec_lane(&mut self, exec: u64, lane: Lane) -> (Lane, u64) {
        let fresh = self.next_lane;
        let Some(found) = self.execs.get_mut(&exec) else { return (fresh, 1) };
        let (mapped, count) = found.lanes.entry(lane).or_insert((fresh, 0));
        if *mapped == fresh && *count == 0 {
            self.next_lane += 1;
        }
        *count += 1;
        (*mapped, *count)
    }

    /// `cuGraphUpload`: nothing to do ahead of the launch.
    ///
    /// # Errors
    /// `INVALID_HANDLE`.
    pub fn graph_upload(&mut self, exec: u64, stream: u64) -> Outcome<()> {
        self.require_exec(exec, "cuGraphUpload")?;
        self.resolve_stream(stream, "cuGraphUpload").map(drop)
    }

    /// `cuGraphLaunch`.
    ///
    /// # Errors
    /// `INVALID_HANDLE`, an injected fault; `NOT_SUPPORTED` into a capturing stream, because
    /// child graphs are not modelled.
    pub fn graph_launch(&mut self, exec: u64, stream: u64) -> Outcome<()> {
        self.require_exec(exec, "cuGraphLaunch")?;
        let stream = self.resolve_stream(stream, "cuGraphLaunch")?;
        if let Some(capture) = self.streams[&stream].capture {
            self.invalidate(capture);
            return Err(self.unsupported("cuGraphLaunch into a capturing stream (child graphs)"));
        }
        self.forbid_implicit_dependency(stream, "cuGraphLaunch")?;
        let mut nodes = self.execs[&exec].nodes.clone();
        let mut faults = Vec::with_capacity(nodes.len());
        for node in &mut nodes {
            let site = match node.work {
                Work::Launch(_) => Some(FaultSite::Launch),
                Work::Product(_) => Some(FaultSite::Blas),
                Work::HostToDevice { .. }
                | Work::DeviceToHost { .. }
                | Work::DeviceToDevice { .. }
                | Work::Fill { .. } => Some(FaultSite::Copy),
                _ => None,
            };
            faults.push(match site {
                Some(FaultSite::Blas) => {
                    self.inject(FaultSite::Blas).map_err(|_| Status::UNKNOWN)?
                }
                Some(site) => self.inject(site)?,
                None => None,
            });
            if let Work::HostToDevice { source, rows, .. } = &mut node.work {
                match source {
                    HostSource::AtLaunch { address } => {
                        *source = HostSource::Staged(read_host(*address, *rows).into());
                    }
                    HostSource::Pinned { address, digest } => {
                        let (address, rows) = (*address, *rows);
                        if self.pinned_at(address, rows.bytes()).is_some() {
                            *digest = self.digest_pinned(address, rows);
                        }
                    }
                    HostSource::Staged(_) => {}
                }
            }
        }
        // A graph that writes pinned memory before it reads it changes its own source.
        let writes_host =
            nodes.iter().any(|node| matches!(node.work, Work::DeviceToHost { .. } | Work::Host(_)));
        if writes_host {
            for node in &mut nodes {
                if let Work::HostToDevice { source: HostSource::Pinned { digest, .. }, .. } =
                    &mut node.work
                {
                    *digest = None;
                }
            }
        }
        self.counters.graph_launches += 1;
        self.enqueue_nodes(stream, exec, &nodes, &faults);
        Ok(())
    }

    /// `cuGraphExecUpdate`: takes over the parameters of a graph of the same shape.
    ///
    /// # Errors
    /// `GRAPH_EXEC_UPDATE_FAILURE` when the shapes differ; the reason and the handle of the node
    /// are the second part of the value.
    pub fn exec_update(&mut self, exec: u64, graph: u64) -> Outcome<(UpdateResult, u64)> {
        self.require_exec(exec, "cuGraphExecUpdate")?;
        let new = self.graph(graph, "cuGraphExecUpdate")?.nodes.clone();
        let Some(found) = self.execs.get_mut(&exec) else { return Err(Status::INVALID_HANDLE) };
        if found.nodes.len() != new.len() {
            return Ok((UpdateResult::TopologyChanged, 0));
        }
        for (old, new) in found.nodes.iter().zip(&new) {
            let reason = if std::mem::discriminant(&old.work) != std::mem::discriminant(&new.work) {
                UpdateResult::NodeTypeChanged
            } else if old.after != new.after {
                UpdateResult::TopologyChanged
            } else if old.context != new.context {
                UpdateResult::ParametersChanged
            } else {
                continue;
            };
            return Ok((reason, new.handle));
        }
        // Keep the timelines of this executable graph.
        for (old, new) in found.nodes.iter_mut().zip(new) {
            *old = Node { lane: old.lane, ..new };
        }
        Ok((UpdateResult::Success, 0))
    }

    /// `cuGraphGetNodes`: the handles of the nodes.
    ///
    /// # Errors
    /// `INVALID_HANDLE`.
    pub fn graph_nodes(&mut self, graph: u64) -> Outcome<Vec<u64>> {
        Ok(self.graph(graph, "cuGraphGetNodes")?.nodes.iter().map(|node| node.handle).collect())
    }

    /// `cuGraphGetEdges`: pairs of node handles, from and to.
    ///
    /// # Errors
    /// `INVALID_HANDLE`.
    pub fn graph_edges(&mut self, graph: u64) -> Outcome<Vec<(u64, u64)>> {
        let nodes = &self.graph(graph, "cuGraphGetEdges")?.nodes;
        Ok(nodes
            .iter()
            .flat_map(|node| node.after.iter().map(|on| (nodes[*on].handle, node.handle)))
            .collect())
    }

    /// `cuGraphNodeGetType`: the `CUgraphNodeType` of a node of any graph.
    ///
    /// # Errors
    /// `INVALID_HANDLE`.
    pub fn node_type(&mut self, node: u64) -> Outcome<i32> {
        self.require_init()?;
        let work =
            self.graphs.values().flat_map(|graph| &graph.nodes).find(|found| found.handle == node);
        match work.map(|found| &found.work) {
            Some(Work::Launch(_) | Work::Product(_)) => Ok(0),
            Some(
                Work::HostToDevice { .. } | Work::DeviceToHost { .. } | Work::DeviceToDevice { .. },
            ) => Ok(1),
            Some(Work::Fill { .. }) => Ok(2),
            Some(Work::Host(_)) => Ok(3),
            Some(_) => Ok(5),
            None => Err(self.bad_handle(Kind::Node, node, "cuGraphNodeGetType")),
        }
    }

    /// Adds a node to a graph that the program builds itself.
    ///
    /// # Errors
    /// `INVALID_HANDLE`, `INVALID_VALUE` for a dependency outside the graph.
    pub(crate) fn graph_add(
        &mut self,
        graph: u64,
        dependencies: &[u64],
        label: &str,
        work: Work,
    ) -> Outcome<u64> {
        let context = self.current_context()?;
        let nodes = &self.graph(graph, "cuGraphAddNode")?.nodes;
        let after = dependencies
            .iter()
            .map(|on| nodes.iter().position(|node| node.handle == *on).ok_or(Status::INVALID_VALUE))
            .collect::<Outcome<Vec<usize>>>()?;
        let handle = self.handles.make(Kind::Node);
        let lane = self.next_lane;
        self.next_lane += 1;
        let label = Self::label(label);
        if let Some(found) = self.graphs.get_mut(&graph) {
            found.nodes.push(Node { handle, context, lane, label, after, work });
        }
        Ok(handle)
    }

    /// `cuGraphAddEmptyNode`.
    ///
    /// # Errors
    /// As [`Runtime::graph_create`]; `INVALID_VALUE` for a dependency outside the graph.
    pub fn graph_add_empty(&mut self, graph: u64, dependencies: &[u64]) -> Outcome<u64> {
        self.graph_add(graph, dependencies, "empty node", Work::Join)
    }
}
