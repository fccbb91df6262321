//! Graphs that were captured, and what replays them.

use std::any::Any;
use std::collections::HashMap;
use std::fmt::{self, Write};
use std::hash::Hash;
use std::sync::Arc;

use cudarc::driver::sys::{self, CUgraphExecUpdateResult, CUresult};

use super::context::{Context, refuse_in_capture};
use super::error::DriverError;
use super::memory::Buffer;
use super::module::Function;
use super::stream::Stream;

/// Labels that the name of a recording lists.
const NAMED: usize = 6;

/// Pairs of numbers of nodes: the second comes after the first.
type Edges = Vec<(usize, usize)>;

/// A node of a graph.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    /// A kernel.
    Kernel {
        /// What the launch is.
        label: Arc<str>,
        /// The kernel's name in its module.
        kernel: String,
        /// Blocks along x, y and z.
        grid: [u32; 3],
        /// Threads of a block.
        block: u32,
        /// Dynamic shared memory of a block, in bytes.
        shared_memory: u32,
        /// Whether it may begin before the node before it has ended.
        dependent: bool,
    },
    /// A copy from device memory to device memory.
    Copy {
        /// Its size.
        bytes: usize,
    },
}

impl Node {
    fn name(&self) -> String {
        match self {
            Self::Kernel { label, .. } => label.to_string(),
            Self::Copy { bytes } => format!("copy of {bytes} bytes"),
        }
    }
}

/// What a graph needs as long as it can run.
pub(super) struct Kept {
    context: Context,
    pub(super) functions: Vec<Function>,
    pub(super) buffers: Vec<Buffer>,
    _rest: Vec<Arc<dyn Any + Send + Sync>>,
}

impl Kept {
    pub(super) fn new(context: Context, rest: Vec<Arc<dyn Any + Send + Sync>>) -> Self {
        Self { context, functions: Vec::new(), buffers: Vec::new(), _rest: rest }
    }
}

/// A captured graph: nodes and what each comes after.
pub struct Graph {
    raw: sys::CUgraph,
    nodes: Arc<[Node]>,
    /// The driver's nodes, in the order of `nodes`.
    handles: Vec<sys::CUgraphNode>,
    edges: Edges,
    kept: Arc<Kept>,
}

// SAFETY: a graph may be used from any thread, by one at a time.
unsafe impl Send for Graph {}

impl fmt::Debug for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Graph").field("nodes", &self.nodes).field("edges", &self.edges).finish_non_exhaustive()
    }
}

impl Graph {
    /// Takes over a graph of the driver that has these nodes, captured one after the other.
    pub(super) fn new(raw: sys::CUgraph, nodes: Vec<Node>, kept: Kept) -> Result<Self, DriverError> {
        let kept = Arc::new(kept);
        let mut graph = Self { raw, nodes: nodes.into(), handles: Vec::new(), edges: Vec::new(), kept };
        let handles = graph.list_nodes()?;
        let edges = graph.list_edges()?;
        let mismatch = || DriverError::program("cuGraphGetEdges", "the captured graph is not what was recorded");
        // The driver lists nodes in any order, but what one stream was given has only one.
        let ordered = only_order(&handles, &edges).filter(|(order, _)| order.len() == graph.nodes.len());
        (graph.handles, graph.edges) = ordered.ok_or_else(mismatch)?;
        Ok(graph)
    }

    fn list_nodes(&self) -> Result<Vec<sys::CUgraphNode>, DriverError> {
        let context = &self.kept.context;
        let mut count = 0;
        // SAFETY: the graph lives; without a place the driver gives the number.
        let code = unsafe { sys::cuGraphGetNodes(self.raw, std::ptr::null_mut(), &mut count) };
        context.finish("cuGraphGetNodes", code, String::new)?;
        let mut nodes = vec![std::ptr::null_mut(); count];
        if count > 0 {
            // SAFETY: there is room for as many as is said.
            let code = unsafe { sys::cuGraphGetNodes(self.raw, nodes.as_mut_ptr(), &mut count) };
            context.finish("cuGraphGetNodes", code, String::new)?;
        }
        Ok(nodes)
    }

    fn list_edges(&self) -> Result<Vec<(sys::CUgraphNode, sys::CUgraphNode)>, DriverError> {
        const CALL: &str = "cuGraphGetEdges";
        let (context, null) = (&self.kept.context, std::ptr::null_mut::<sys::CUgraphNode>());
        let mut count = 0;
        // SAFETY: the graph lives; without places the driver gives the number.
        let code = unsafe { sys::cuGraphGetEdges_v2(self.raw, null, null, std::ptr::null_mut(), &mut count) };
        context.finish(CALL, code, String::new)?;
        let mut from: Vec<sys::CUgraphNode> = vec![std::ptr::null_mut(); count];
        let mut to = from.clone();
        // SAFETY: zeros are a value of the type. Without a place for them the driver refuses edges of dependent launches.
        let mut data: Vec<sys::CUgraphEdgeData> = vec![unsafe { std::mem::zeroed() }; count];
        if count > 0 {
            // SAFETY: there is room for as many as is said.
            let code = unsafe {
                sys::cuGraphGetEdges_v2(self.raw, from.as_mut_ptr(), to.as_mut_ptr(), data.as_mut_ptr(), &mut count)
            };
            context.finish(CALL, code, String::new)?;
        }
        Ok(from.into_iter().zip(to).collect())
    }

    /// The nodes, in the order in which they were captured.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Which node comes after which.
    pub fn edges(&self) -> &[(usize, usize)] {
        &self.edges
    }

    /// The graph in the language of Graphviz: kernels with labels, grids and blocks; the edges to kernels that may begin
    /// early are dashed. The same launches always give the same text.
    pub fn to_dot(&self) -> String {
        let mut text = String::from("digraph recording {\n  node [shape=box];\n");
        for (index, node) in self.nodes.iter().enumerate() {
            let label = match node {
                Node::Kernel { label, kernel, grid: [x, y, z], block, shared_memory, .. } => {
                    let (label, kernel) = (escaped(label), escaped(kernel));
                    format!("{label}\\n{kernel}\\ngrid {x}×{y}×{z}, block {block}, {shared_memory} bytes shared")
                }
                Node::Copy { bytes } => format!("copy\\n{bytes} bytes"),
            };
            let _ = writeln!(text, "  n{index} [label=\"{label}\"];");
        }
        for (from, to) in &self.edges {
            let early = matches!(self.nodes[*to], Node::Kernel { dependent: true, .. });
            let _ = writeln!(text, "  n{from} -> n{to}{};", if early { " [style=dashed]" } else { "" });
        }
        text.push_str("}\n");
        text
    }

    /// Makes it ready to be launched.
    ///
    /// # Errors
    /// If memory does not suffice.
    pub fn instantiate(&self) -> Result<GraphExec, DriverError> {
        const CALL: &str = "cuGraphInstantiate";
        refuse_in_capture(CALL)?;
        let context = &self.kept.context;
        context.enter(CALL)?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: the graph lives, and the place is one for a handle.
        let code = unsafe { sys::cuGraphInstantiateWithFlags(&mut raw, self.raw, 0) };
        context.finish(CALL, code, || self.name())?;
        Ok(GraphExec { raw, name: self.name().into(), kept: Arc::clone(&self.kept), context: context.clone() })
    }

    /// What it is, for errors.
    fn name(&self) -> String {
        let names: Vec<String> = self.nodes.iter().map(Node::name).collect();
        let listed = match names.as_slice() {
            names if names.len() <= NAMED => names.join(", "),
            names => format!("{}, …, {}", names[..NAMED - 1].join(", "), names[names.len() - 1]),
        };
        format!("a recording of {} launches: {listed}", names.len())
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        let raw = self.raw;
        // SAFETY: the handle is the graph's own.
        self.kept.context.release(|| unsafe { sys::cuGraphDestroy(raw) });
    }
}

/// A text inside of a quoted one.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// Nodes in the only order that the edges leave, and the edges as numbers of nodes, sorted; nothing if there are several
/// orders or none.
fn only_order<T: Copy + Eq + Hash>(nodes: &[T], edges: &[(T, T)]) -> Option<(Vec<T>, Edges)> {
    let mut missing: HashMap<T, usize> = nodes.iter().map(|node| (*node, 0)).collect();
    let mut followers: HashMap<T, Vec<T>> = HashMap::new();
    for (from, to) in edges {
        *missing.get_mut(to)? += 1;
        followers.entry(*from).or_default().push(*to);
    }
    let mut ready: Vec<T> = nodes.iter().copied().filter(|node| missing[node] == 0).collect();
    let (mut order, mut numbers) = (Vec::with_capacity(nodes.len()), HashMap::new());
    while let Some(node) = ready.pop() {
        if !ready.is_empty() {
            return None;
        }
        numbers.insert(node, order.len());
        order.push(node);
        for next in followers.get(&node).into_iter().flatten() {
            let count = missing.get_mut(next)?;
            *count -= 1;
            if *count == 0 {
                ready.push(*next);
            }
        }
    }
    let number = |node| numbers.get(node).copied();
    let edges: Option<Vec<_>> = edges.iter().map(|(from, to)| number(from).zip(number(to))).collect();
    let mut edges = edges?;
    edges.sort_unstable();
    (order.len() == nodes.len()).then_some((order, edges))
}

/// A graph that can be launched. It keeps alive its kernels and all that was to be kept.
pub struct GraphExec {
    raw: sys::CUgraphExec,
    name: Arc<str>,
    kept: Arc<Kept>,
    context: Context,
}

// SAFETY: it may be used from any thread, by one at a time.
unsafe impl Send for GraphExec {}

impl fmt::Debug for GraphExec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GraphExec({})", self.name)
    }
}

impl GraphExec {
    /// Brings it to the device, so that its first launch costs no more than others.
    ///
    /// # Errors
    /// If memory does not suffice.
    pub fn upload(&self, stream: &Stream) -> Result<(), DriverError> {
        const CALL: &str = "cuGraphUpload";
        refuse_in_capture(CALL)?;
        self.context.enter(CALL)?;
        // SAFETY: both live.
        let code = unsafe { sys::cuGraphUpload(self.raw, stream.raw()) };
        self.context.finish(CALL, code, || self.name.to_string())
    }

    /// Launches all of it.
    ///
    /// # Errors
    /// An error of earlier work.
    pub fn launch(&self, stream: &Stream) -> Result<(), DriverError> {
        const CALL: &str = "cuGraphLaunch";
        refuse_in_capture(CALL)?;
        self.context.enter(CALL)?;
        // SAFETY: both live, and so does what the kernels use.
        let code = unsafe { sys::cuGraphLaunch(self.raw, stream.raw()) };
        self.context.finish(CALL, code, || self.name.to_string())?;
        self.context.launched(stream.number(), &self.name);
        Ok(())
    }

    /// Takes over kernels, sizes and parameters of a graph with the same nodes and edges. Launches that are on their way keep
    /// what they have: what only those use is freed after them.
    ///
    /// # Errors
    /// If the graph differs in more, with the node and the reason; then this one is as it was.
    pub fn update(&mut self, graph: &Graph) -> Result<(), DriverError> {
        const CALL: &str = "cuGraphExecUpdate";
        refuse_in_capture(CALL)?;
        self.context.enter(CALL)?;
        let mut info = sys::CUgraphExecUpdateResultInfo {
            result: CUgraphExecUpdateResult::CU_GRAPH_EXEC_UPDATE_SUCCESS,
            errorNode: std::ptr::null_mut(),
            errorFromNode: std::ptr::null_mut(),
        };
        // SAFETY: both live, and the place is one for the reason.
        let code = unsafe { sys::cuGraphExecUpdate_v2(self.raw, graph.raw, &mut info) };
        self.context.finish(CALL, code, || {
            if code != CUresult::CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE {
                return graph.name();
            }
            let index = graph.handles.iter().position(|node| *node == info.errorNode);
            let node = index.map_or_else(String::new, |index| format!(" at `{}`", graph.nodes[index].name()));
            format!("{:?}{node}; {}", info.result, graph.name())
        })?;
        self.name = graph.name().into();
        self.kept = Arc::clone(&graph.kept);
        Ok(())
    }
}

impl Drop for GraphExec {
    fn drop(&mut self) {
        let raw = self.raw;
        // SAFETY: the handle is the recording's own; a launch that is on its way is done all the same.
        self.context.release(|| unsafe { sys::cuGraphExecDestroy(raw) });
    }
}

#[cfg(test)]
mod tests {
    use super::only_order;

    #[test]
    fn nodes_are_put_into_their_only_order() {
        assert_eq!(only_order::<u8>(&[], &[]), Some((vec![], vec![])));
        assert_eq!(only_order(&[7], &[]), Some((vec![7], vec![])));
        // More edges than a chain's change nothing.
        let edges = [(2, 9), (5, 2), (5, 9)];
        assert_eq!(only_order(&[9, 2, 5], &edges), Some((vec![5, 2, 9], vec![(0, 1), (0, 2), (1, 2)])));
        let none: [&[(u8, u8)]; 4] = [&[], &[(1, 2), (1, 3)], &[(1, 2), (2, 3), (3, 1)], &[(1, 2), (2, 3), (3, 4)]];
        assert!(none.into_iter().all(|edges| only_order(&[1, 2, 3], edges).is_none()));
    }
}
