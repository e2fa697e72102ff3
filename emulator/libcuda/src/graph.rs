//! Graphs.

use std::ffi::{c_char, c_int, c_uint, c_ulonglong, c_void};

use cuda_emulator::runtime::{Arguments, LaunchShape, UpdateResult, status::Status};

use crate::abi::{In, Out, aliases, entries, rt};

/// `CUgraphExecUpdateResultInfo`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct UpdateInfo {
    result: c_int,
    error_node: u64,
    error_from_node: u64,
}

/// `CUDA_KERNEL_NODE_PARAMS_v2`; the older struct is its first part.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct KernelNodeParams {
    function: u64,
    grid: [c_uint; 3],
    block: [c_uint; 3],
    shared: c_uint,
    params: *mut *mut c_void,
    extra: *mut *mut c_void,
}

entries! {
    cuGraphCreate(graph: Out<u64>, flags: c_uint) {
        if flags != 0 {
            return Err(Status::INVALID_VALUE);
        }
        graph.set(rt(|rt| rt.graph_create())?)
    }
    cuGraphDestroy(graph: u64) { rt(|rt| rt.graph_destroy(graph)) }
    cuGraphInstantiateWithFlags(exec: Out<u64>, graph: u64, flags: c_ulonglong) {
        exec.set(rt(|rt| rt.graph_instantiate(graph, flags))?)
    }
    cuGraphInstantiate_v2(exec: Out<u64>, graph: u64, _node: Out<u64>, _log: Out<c_char>, _size: usize) {
        exec.set(rt(|rt| rt.graph_instantiate(graph, 0))?)
    }
    cuGraphExecDestroy(exec: u64) { rt(|rt| rt.exec_destroy(exec)) }
    cuGraphLaunch(exec: u64, stream: u64) { rt(|rt| rt.graph_launch(exec, stream)) }
    cuGraphUpload(exec: u64, stream: u64) { rt(|rt| rt.graph_upload(exec, stream)) }
    cuGraphExecUpdate_v2(exec: u64, graph: u64, info: Out<UpdateInfo>) {
        let (result, node) = rt(|rt| rt.exec_update(exec, graph))?;
        info.set_if_wanted(UpdateInfo { result: result as c_int, error_node: node, error_from_node: 0 });
        update_outcome(result)
    }
    cuGraphExecUpdate(exec: u64, graph: u64, node: Out<u64>, result: Out<c_int>) {
        let (found, at) = rt(|rt| rt.exec_update(exec, graph))?;
        node.set_if_wanted(at);
        result.set_if_wanted(found as c_int);
        update_outcome(found)
    }
    cuGraphGetNodes(graph: u64, nodes: Out<u64>, count: Out<usize>) {
        let found = rt(|rt| rt.graph_nodes(graph))?;
        list(&found, nodes, count)
    }
    cuGraphGetEdges(graph: u64, from: Out<u64>, to: Out<u64>, count: Out<usize>) {
        let found = rt(|rt| rt.graph_edges(graph))?;
        let (sources, targets): (Vec<u64>, Vec<u64>) = found.into_iter().unzip();
        let again = Out::clone_of(&count);
        list(&sources, from, count)?;
        list(&targets, to, again)
    }
    cuGraphNodeGetType(node: u64, kind: Out<c_int>) { kind.set(rt(|rt| rt.node_type(node))?) }
    cuGraphAddEmptyNode(node: Out<u64>, graph: u64, on: In<u64>, count: usize) {
        let on = on.list(count)?;
        node.set(rt(|rt| rt.graph_add_empty(graph, &on))?)
    }
    cuGraphAddKernelNode_v2(node: Out<u64>, graph: u64, on: In<u64>, count: usize, params: In<KernelNodeParams>) {
        let (on, params) = (on.list(count)?, params.get()?);
        let shape = LaunchShape {
            grid: params.grid,
            block: params.block,
            shared: params.shared,
            cooperative: false,
        };
        let arguments = Arguments::Pointers(params.params as u64);
        node.set(rt(|rt| rt.graph_add_kernel(graph, &on, params.function, shape, arguments))?)
    }
}

aliases! {
    cuGraphAddKernelNode = cuGraphAddKernelNode_v2(node: Out<u64>, graph: u64, on: In<u64>, count: usize, params: In<KernelNodeParams>);
}

fn update_outcome(result: UpdateResult) -> Result<(), Status> {
    if result == UpdateResult::Success { Ok(()) } else { Err(Status::GRAPH_EXEC_UPDATE_FAILURE) }
}

/// The driver's convention for lists: the count alone, or as many as fit.
fn list(found: &[u64], into: Out<u64>, count: Out<usize>) -> Result<(), Status> {
    if into.raw().is_null() {
        return count.set(found.len());
    }
    let room = In::over(&count).get()?;
    for (index, value) in found.iter().take(room).enumerate() {
        // SAFETY: not null, and writable for `*count` values by the contract of the entry.
        unsafe { into.raw().add(index).write_unaligned(*value) };
    }
    count.set(found.len().min(room))
}
