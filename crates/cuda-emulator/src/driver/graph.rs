//! Graphs: nodes with what they come after.

use std::fmt::Write;
use std::sync::Arc;

use super::state::{Driver, Handle, State};
use super::status::Status;
use super::work::Work;
use crate::machine::Random;

/// The most nodes of a graph, so that a node's handle tells its graph.
const NODES: u64 = 1 << 24;

/// A node.
#[derive(Clone)]
pub(super) struct Node {
    pub(super) work: Work,
    /// The nodes before it, all of which have smaller numbers.
    pub(super) after: Vec<usize>,
}

/// A graph.
#[derive(Clone, Default)]
pub(super) struct Graph {
    pub(super) nodes: Vec<Node>,
    /// The pointers that `cuGraphKernelNodeGetParams` has given out.
    pub(super) pointers: Vec<Box<[usize]>>,
}

/// A graph that can be launched.
pub(super) struct Executable {
    pub(super) source: Handle,
    pub(super) nodes: Arc<Vec<Node>>,
}

/// The handle of a node.
pub(super) fn node_handle(graph: Handle, index: usize) -> Handle {
    graph * NODES + (index as u64) * 16
}

/// The graph and number of a node.
pub(super) fn node_of(handle: Handle) -> (Handle, usize) {
    (handle / NODES, (handle % NODES / 16) as usize)
}

impl Graph {
    /// For each node, whether one of these is it or comes after it.
    pub(super) fn ancestors(&self, of: &[usize]) -> Vec<bool> {
        let mut found = vec![false; self.nodes.len()];
        let mut open = of.to_vec();
        while let Some(index) = open.pop() {
            if !std::mem::replace(&mut found[index], true) {
                open.extend(&self.nodes[index].after);
            }
        }
        found
    }

    /// The graph in the language of Graphviz.
    pub(super) fn dot(&self) -> String {
        let mut text = String::from("digraph dot {\n");
        for (index, node) in self.nodes.iter().enumerate() {
            let _ = writeln!(text, "  node{index} [label=\"{}\" shape=\"box\"];", node.work.label());
            for before in &node.after {
                let _ = writeln!(text, "  node{before} -> node{index};");
            }
        }
        text.push_str("}\n");
        text
    }
}

/// Does the work of all nodes, in a random order that keeps what comes after what.
pub(super) fn perform(nodes: &[Node], driver: &Driver, random: &mut Random) -> Result<(), Status> {
    let mut missing: Vec<usize> = nodes.iter().map(|node| node.after.len()).collect();
    let mut followers = vec![Vec::new(); nodes.len()];
    for (index, node) in nodes.iter().enumerate() {
        for before in &node.after {
            followers[*before].push(index);
        }
    }
    let mut ready: Vec<usize> = (0..nodes.len()).filter(|index| missing[*index] == 0).collect();
    while !ready.is_empty() {
        let chosen = ready.swap_remove(random.below(ready.len()));
        nodes[chosen].work.perform(driver, random)?;
        for follower in &followers[chosen] {
            missing[*follower] -= 1;
            if missing[*follower] == 0 {
                ready.push(*follower);
            }
        }
    }
    Ok(())
}

/// Why an executable cannot take the parameters of a graph, as the number that the driver has for it.
pub(super) fn difference(old: &[Node], new: &[Node]) -> Option<(u32, usize)> {
    const TOPOLOGY: u32 = 2;
    const TYPE: u32 = 3;
    const FUNCTION: u32 = 4;
    if old.len() != new.len() {
        return Some((TOPOLOGY, 0));
    }
    for (index, (old, new)) in old.iter().zip(new).enumerate() {
        if old.after != new.after {
            return Some((TOPOLOGY, index));
        }
        if old.work.node_type() != new.work.node_type() {
            return Some((TYPE, index));
        }
        // The driver has changed functions in an update since 12.0 where the new one is in the same context;
        // cooperative ones stay.
        if let (Work::Launch(old), Work::Launch(new)) = (&old.work, &new.work)
            && old.cooperative != new.cooperative
        {
            return Some((FUNCTION, index));
        }
    }
    None
}

impl State {
    /// A node's work.
    pub(super) fn node(&mut self, handle: Handle) -> Result<&mut Node, Status> {
        let (graph, index) = node_of(handle);
        let graph = self.graphs.get_mut(&graph).ok_or(Status::INVALID_VALUE)?;
        graph.nodes.get_mut(index).ok_or(Status::INVALID_VALUE)
    }
}
