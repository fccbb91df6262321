//! What passes did to a graph, kept on it as its history.

use std::fmt;
use std::time::Duration;

/// What a pass did to one graph.
#[derive(Debug, Clone, PartialEq)]
pub struct PassReport {
    /// The pass.
    pub name: &'static str,
    /// What it does, in one line.
    pub description: &'static str,
    /// Whether the settings turned it on.
    pub enabled: bool,
    /// How many rewrites it made.
    pub matches: usize,
    /// Places that looked right but were left alone.
    pub near_misses: Vec<NearMiss>,
    /// Operations in the graph afterwards.
    pub ops: usize,
    /// Launches in the graph afterwards.
    pub launches: usize,
    /// Whether a rewrite was refused for lack of fuel in this pass or before it.
    pub out_of_fuel: bool,
    /// Time taken.
    pub time: Duration,
}

/// Places that looked like a match and were left alone for one reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NearMiss {
    /// Why.
    pub reason: String,
    /// The first value where that was so.
    pub first: String,
    /// At how many places it was so.
    pub count: usize,
}

impl fmt::Display for NearMiss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (%{}", self.reason, self.first)?;
        if self.count > 1 {
            write!(f, " and {} more", self.count - 1)?;
        }
        f.write_str(")")
    }
}
