//! Graphs.
#![allow(non_snake_case, reason = "the names are those of the driver")]

use std::sync::Arc;

use super::launch::{NodeParameters, Sizes, call};
use super::{In, Out, Outcome, Pointer, Text, export};
use crate::driver::graph::{Executable, Graph, difference, node_handle, node_of};
use crate::driver::state::{Handle, State, enter};
use crate::driver::status::Status;
use crate::driver::work::{Call, Work};

/// `CUgraphExecUpdateResultInfo`.
#[derive(Clone, Copy)]
#[repr(C)]
struct UpdateResult {
    result: u32,
    node: Handle,
    from: Handle,
}

/// `CUDA_GRAPH_INSTANTIATE_PARAMS`.
#[derive(Clone, Copy)]
#[repr(C)]
struct InstantiateParameters {
    flags: u64,
    stream: Pointer,
    error_node: Handle,
    result: u32,
}

fn instantiate(executable: Out<u64>, graph: Handle) -> Outcome {
    let mut state = enter()?;
    let nodes = Arc::new(state.graphs.get(&graph).ok_or(Status::INVALID_VALUE)?.nodes.clone());
    let handle = state.handle();
    state.executables.insert(handle, Executable { source: graph, nodes });
    executable.set(handle)
}

/// A call with the parameters of a node; what the function was does not matter.
fn changed_call(state: &State, old: &Call, given: &In<NodeParameters>) -> Result<Call, Status> {
    let given = given.get()?;
    if !given.extra.is_null() {
        return Err(Status::NOT_SUPPORTED);
    }
    let function = if given.function == 0 { old.function } else { given.function };
    let NodeParameters { grid, threads, dynamic_shared, .. } = given;
    call(state, function, Sizes { grid, threads, dynamic_shared, cooperative: old.cooperative }, &In(given.parameters))
}

/// Lists handles as the driver does: how many there are, if nobody gives a place for them.
fn list(handles: &[Handle], places: Out<u64>, count: Out<usize>) -> Outcome {
    if places.is_null() {
        return count.set(handles.len());
    }
    let room = In(count.0.cast_const()).get()?;
    for index in 0..room {
        places.set_at(index, handles.get(index).copied().unwrap_or(0))?;
    }
    count.set(room.min(handles.len()))
}

export! {
    fn cuGraphCreate(graph: Out<u64>, _flags: u32) {
        let mut state = enter()?;
        let handle = state.handle();
        state.graphs.insert(handle, Graph::default());
        graph.set(handle)
    }

    fn cuGraphDestroy(graph: Handle) {
        enter()?.graphs.remove(&graph).map(|_| ()).ok_or(Status::INVALID_VALUE)
    }

    fn cuGraphClone(clone: Out<u64>, graph: Handle) {
        let mut state = enter()?;
        let copy = state.graphs.get(&graph).ok_or(Status::INVALID_VALUE)?.clone();
        let handle = state.handle();
        state.graphs.insert(handle, copy);
        clone.set(handle)
    }

    fn cuGraphInstantiateWithFlags(executable: Out<u64>, graph: Handle, _flags: u64) { instantiate(executable, graph) }

    fn cuGraphInstantiateWithParams(executable: Out<u64>, graph: Handle, parameters: Out<InstantiateParameters>) {
        instantiate(executable, graph)?;
        let given = In(parameters.0.cast_const()).get()?;
        parameters.set(InstantiateParameters { error_node: 0, result: 0, ..given })
    }

    fn cuGraphExecDestroy(executable: Handle) {
        enter()?.executables.remove(&executable).map(|_| ()).ok_or(Status::INVALID_VALUE)
    }

    fn cuGraphUpload(executable: Handle, stream: Pointer) {
        let state = enter()?;
        state.stream(stream.address())?;
        if state.executables.contains_key(&executable) { Ok(()) } else { Err(Status::INVALID_VALUE) }
    }

    fn cuGraphLaunch(executable: Handle, stream: Pointer) {
        let mut state = enter()?;
        let stream = state.stream(stream.address())?;
        let nodes = Arc::clone(&state.executables.get(&executable).ok_or(Status::INVALID_VALUE)?.nodes);
        state.submit(stream, Work::Graph(nodes)).map(|_| ())
    }

    fn cuGraphExecUpdate_v2(executable: Handle, graph: Handle, result: Out<UpdateResult>) {
        let mut state = enter()?;
        let new = state.graphs.get(&graph).ok_or(Status::INVALID_VALUE)?.nodes.clone();
        let known = state.executables.get_mut(&executable).ok_or(Status::INVALID_VALUE)?;
        if let Some((reason, index)) = difference(&known.nodes, &new) {
            result.set(UpdateResult { result: reason, node: node_handle(graph, index), from: 0 })?;
            return Err(Status::GRAPH_EXEC_UPDATE_FAILURE);
        }
        known.nodes = Arc::new(new);
        known.source = graph;
        result.set(UpdateResult { result: 0, node: 0, from: 0 })
    }

    fn cuGraphExecKernelNodeSetParams_v2(executable: Handle, node: Handle, parameters: In<NodeParameters>) {
        let mut state = enter()?;
        let (graph, index) = node_of(node);
        let known = state.executables.get(&executable).ok_or(Status::INVALID_VALUE)?;
        let old = known.nodes.get(index).filter(|_| known.source == graph).ok_or(Status::INVALID_VALUE)?;
        let Work::Launch(old) = &old.work else { return Err(Status::INVALID_VALUE) };
        let call = changed_call(&state, old, &parameters)?;
        let known = state.executables.get_mut(&executable).ok_or(Status::INVALID_VALUE)?;
        // Launches that are on their way keep what they have.
        Arc::make_mut(&mut known.nodes)[index].work = Work::Launch(Box::new(call));
        Ok(())
    }

    fn cuGraphKernelNodeSetParams_v2(node: Handle, parameters: In<NodeParameters>) {
        let mut state = enter()?;
        let Work::Launch(old) = state.node(node)?.work.clone() else { return Err(Status::INVALID_VALUE) };
        let call = changed_call(&state, &old, &parameters)?;
        state.node(node)?.work = Work::Launch(Box::new(call));
        Ok(())
    }

    fn cuGraphKernelNodeGetParams_v2(node: Handle, parameters: Out<NodeParameters>) {
        let mut state = enter()?;
        let (graph, index) = node_of(node);
        let graph = state.graphs.get_mut(&graph).ok_or(Status::INVALID_VALUE)?;
        let Some(Work::Launch(call)) = graph.nodes.get(index).map(|node| &node.work) else {
            return Err(Status::INVALID_VALUE);
        };
        // The pointers lead into the node, and stay good while it does not change.
        let start = call.parameters.as_ptr() as usize;
        let pointers: Box<[usize]> = call.kernel.parameters.iter().map(|place| start + place.offset).collect();
        let given = NodeParameters {
            function: call.function,
            grid: call.grid,
            threads: call.threads,
            dynamic_shared: call.dynamic_shared,
            parameters: pointers.as_ptr().cast(),
            extra: std::ptr::null(),
            kernel: 0,
            context: 0,
        };
        graph.pointers.push(pointers);
        parameters.set(given)
    }

    fn cuGraphGetNodes(graph: Handle, nodes: Out<u64>, count: Out<usize>) {
        let state = enter()?;
        let length = state.graphs.get(&graph).ok_or(Status::INVALID_VALUE)?.nodes.len();
        let handles: Vec<Handle> = (0..length).map(|index| node_handle(graph, index)).collect();
        list(&handles, nodes, count)
    }

    fn cuGraphGetEdges_v2(graph: Handle, from: Out<u64>, to: Out<u64>, _data: Pointer, count: Out<usize>) {
        let state = enter()?;
        let known = state.graphs.get(&graph).ok_or(Status::INVALID_VALUE)?;
        let pairs = known.nodes.iter().enumerate().flat_map(|(index, node)| node.after.iter().map(move |before| (*before, index)));
        let (before, after): (Vec<Handle>, Vec<Handle>) =
            pairs.map(|(before, after)| (node_handle(graph, before), node_handle(graph, after))).unzip();
        if from.is_null() != to.is_null() {
            return Err(Status::INVALID_VALUE);
        }
        if !from.is_null() {
            let room = In(count.0.cast_const()).get()?;
            for (index, handle) in after.iter().take(room).enumerate() {
                to.set_at(index, *handle)?;
            }
        }
        list(&before, from, count)
    }

    fn cuGraphNodeGetType(node: Handle, kind: Out<u32>) {
        let number = enter()?.node(node)?.work.node_type();
        kind.set(number)
    }

    fn cuGraphDebugDotPrint(graph: Handle, path: Text, _flags: u32) {
        let text = enter()?.graphs.get(&graph).ok_or(Status::INVALID_VALUE)?.dot();
        std::fs::write(path.get()?, text).map_err(|_| Status::INVALID_VALUE)
    }
}
