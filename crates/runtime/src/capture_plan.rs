//! What is recorded: which parts of a step, at which sizes, in which order.

use std::fmt::{self, Write as _};
use std::ops::Range;

use allotrope_config::{GraphMode, RuntimeMode};
use allotrope_graph::partition::{Piece, SplittingOps, partition};
use allotrope_graph::{Dim, Graph, Sizes};

use crate::background::Job;

/// A part of a step that is recorded as one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The whole step of a uniform decode batch: as many rows of logits as tokens.
    Step,
    /// All launches over tokens, splitting operations included.
    Body,
    /// One piece.
    Piece(usize),
}

impl Part {
    /// The part in the name of a file.
    pub(crate) fn file_name(self) -> String {
        match self {
            Part::Step => "step".to_owned(),
            Part::Body => "body".to_owned(),
            Part::Piece(index) => format!("piece-{index}"),
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Part::Step => f.write_str("the whole step"),
            Part::Body => f.write_str("all launches over tokens"),
            Part::Piece(index) => write!(f, "piece {index}"),
        }
    }
}

/// What a step needs recordings for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Needed {
    /// Whether it is a uniform batch of decodes.
    pub(crate) uniform: bool,
    /// The place of the capture size that holds its tokens.
    pub(crate) token_size: usize,
    /// The place of that which holds its rows of logits; `None` if there are no rows.
    pub(crate) logit_size: Option<usize>,
}

/// The parts of one graph's step and the sizes that they are recorded at.
#[derive(Debug, Clone)]
pub struct CapturePlan {
    pieces: Vec<Piece>,
    launches: usize,
    mode: GraphMode,
    capture_sizes: Vec<usize>,
    limits: Sizes,
}

/// A launch over tokens that comes after one over rows of logits. A step without wanted logits stops before those, so what
/// comes after them would not run: whoever builds such a graph must choose the rows last.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the launch {launch} ({label}) runs over tokens, but comes after launches over rows of logits; choose rows of logits last"
)]
pub struct LaunchOrderError {
    launch: usize,
    label: String,
}

impl CapturePlan {
    /// Cuts the step at `splitting_ops`. `capture_sizes` are ascending; `limits` bound every batch.
    ///
    /// # Errors
    /// If a launch over tokens comes after one over rows of logits.
    pub fn new(
        graph: &Graph,
        splitting_ops: &SplittingOps,
        mode: GraphMode,
        capture_sizes: &[usize],
        limits: Sizes,
    ) -> Result<Self, LaunchOrderError> {
        let pieces = partition(graph, splitting_ops);
        let tail = pieces.iter().skip_while(|piece| piece.rows != Dim::LogitRows);
        if let Some(piece) = tail.clone().find(|piece| piece.rows != Dim::LogitRows) {
            let launch = piece.groups.start;
            return Err(LaunchOrderError { launch, label: graph.group_label(launch) });
        }
        let (launches, capture_sizes) = (graph.groups().len(), capture_sizes.to_vec());
        Ok(CapturePlan { pieces, launches, mode, capture_sizes, limits })
    }

    /// Whether there is anything to record under `PIECEWISE`.
    pub(crate) fn has_recorded_pieces(&self) -> bool {
        self.pieces.iter().any(|piece| !piece.splitting)
    }

    /// The pieces of the step, in order.
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// The pieces that run over tokens come first: how many these are.
    pub fn body_pieces(&self) -> usize {
        self.pieces.iter().position(|piece| piece.rows == Dim::LogitRows).unwrap_or(self.pieces.len())
    }

    /// The launches of a part: places in [`Graph::groups`].
    pub fn launches_of(&self, part: Part) -> Range<usize> {
        match part {
            Part::Step => 0..self.launches,
            Part::Body => 0..self.pieces[..self.body_pieces()].last().map_or(0, |piece| piece.groups.end),
            Part::Piece(index) => self.pieces[index].groups.clone(),
        }
    }

    /// The sizes that are recorded, ascending.
    pub(crate) fn capture_sizes(&self) -> &[usize] {
        &self.capture_sizes
    }

    /// All parts, recorded or not, in the order of their places.
    pub(crate) fn all_parts(&self) -> impl Iterator<Item = Part> {
        [Part::Step, Part::Body].into_iter().chain((0..self.pieces.len()).map(Part::Piece))
    }

    /// The recordings of the plan as work to do, in order.
    pub(crate) fn jobs(&self) -> Vec<Job> {
        let job =
            |(part, size)| Some(Job { part, size, launches: self.launches_of(part), sizes: self.sizes(part, size)? });
        self.recordings().into_iter().filter_map(job).collect()
    }

    /// What a step runs from in this mode, each with the place of the capture size.
    pub(crate) fn needed(&self, mode: RuntimeMode, needed: &Needed) -> impl Iterator<Item = (Part, usize)> {
        let Needed { uniform, token_size, logit_size } = *needed;
        let whole = match mode {
            RuntimeMode::Full if uniform => Some(Part::Step),
            RuntimeMode::Full => Some(Part::Body).filter(|body| !self.launches_of(*body).is_empty()),
            RuntimeMode::Piecewise | RuntimeMode::None => None,
        };
        let body = self.body_pieces();
        let end = if logit_size.is_none() { body } else { self.pieces.len() };
        let pieces = match mode {
            RuntimeMode::Full if uniform => 0..0,
            RuntimeMode::None => 0..0,
            RuntimeMode::Full => body..end,
            RuntimeMode::Piecewise => 0..end,
        };
        let size = move |index: usize| if index < body { token_size } else { logit_size.unwrap_or(token_size) };
        let pieces =
            pieces.filter(|index| !self.pieces[*index].splitting).map(move |index| (Part::Piece(index), size(index)));
        whole.map(|part| (part, token_size)).into_iter().chain(pieces)
    }

    /// How many parts there are.
    pub(crate) fn parts(&self) -> usize {
        2 + self.pieces.len()
    }

    /// The place of a part among all of them.
    pub(crate) fn index_of(&self, part: Part) -> usize {
        match part {
            Part::Step => 0,
            Part::Body => 1,
            Part::Piece(index) => 2 + index,
        }
    }

    /// All that the mode replays, each with the place of its size among the capture sizes: from the largest size to the
    /// smallest, so that smaller recordings find the memory of larger ones.
    pub fn recordings(&self) -> Vec<(Part, usize)> {
        let (decode, mixed) = (self.mode.decode(), self.mode.mixed());
        let first_piece = if mixed == RuntimeMode::Piecewise { 0 } else { self.body_pieces() };
        let mut recordings = Vec::new();
        for size in (0..self.capture_sizes.len()).rev() {
            if decode == RuntimeMode::Full {
                recordings.push((Part::Step, size));
            }
            if mixed == RuntimeMode::Full {
                recordings.push((Part::Body, size));
            }
            let recorded = (first_piece..self.pieces.len()).filter(|index| !self.pieces[*index].splitting);
            recordings.extend(recorded.filter(|_| mixed != RuntimeMode::None).map(|index| (Part::Piece(index), size)));
        }
        recordings.retain(|(part, size)| self.sizes(*part, *size).is_some() && !self.launches_of(*part).is_empty());
        recordings
    }

    /// The batch that a part is recorded for at the capture size of that place. `None` for a size beyond what the part can ever
    /// run at: a whole decode step and the pieces over wanted logits have at most as many rows as there are sequences.
    pub fn sizes(&self, part: Part, size_index: usize) -> Option<Sizes> {
        let rows = *self.capture_sizes.get(size_index)?;
        let (by_tokens, by_logits) = match part {
            Part::Step => (true, true),
            Part::Body => (true, false),
            Part::Piece(index) => {
                let by_logits = self.pieces[index].rows == Dim::LogitRows;
                (!by_logits, by_logits)
            }
        };
        let smaller = size_index.checked_sub(1).map_or(0, |size| self.capture_sizes[size]);
        if by_logits && smaller >= self.limits.logit_rows {
            return None;
        }
        // What a part does not run over bounds nothing: the pieces over wanted logits read from any number of tokens.
        let limits = &self.limits;
        Some(Sizes {
            tokens: if by_tokens { rows.min(limits.tokens) } else { limits.tokens },
            logit_rows: if by_logits { rows.min(limits.logit_rows) } else { limits.logit_rows },
            ..*limits
        })
    }

    /// The plan as text: the pieces, and for each part that is recorded its launches and sizes.
    pub fn to_text(&self) -> String {
        let mut text =
            format!("cudagraph_mode {}: {} launches in {} pieces\n\n", self.mode, self.launches, self.pieces.len());
        for (index, piece) in self.pieces.iter().enumerate() {
            let how = if piece.splitting { ", launched by themselves under PIECEWISE" } else { "" };
            let _ = writeln!(text, "piece {index}: {} over {}{how}", shown(&piece.groups), piece.rows);
        }
        let recordings = self.recordings();
        let _ = writeln!(text, "\n{} recordings, from the largest size to the smallest", recordings.len());
        let mut known: Vec<Part> = Vec::new();
        for (part, _) in &recordings {
            if !known.contains(part) {
                known.push(*part);
            }
        }
        for part in known {
            let sizes = recordings.iter().filter(|(recorded, _)| *recorded == part);
            let sizes: Vec<String> = sizes.map(|(_, size)| self.capture_sizes[*size].to_string()).collect();
            let _ = writeln!(text, "{part} ({}) at {}", shown(&self.launches_of(part)), sizes.join(", "));
        }
        text
    }
}

/// `launch 3`, or `launches 3 to 5`.
fn shown(launches: &Range<usize>) -> String {
    match launches.len() {
        1 => format!("launch {}", launches.start),
        _ => format!("launches {} to {}", launches.start, launches.end.saturating_sub(1)),
    }
}
