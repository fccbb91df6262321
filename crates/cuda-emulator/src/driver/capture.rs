//! Capture, with its rules: what is not allowed fails and makes the capture invalid.

use std::collections::HashMap;
use std::thread::ThreadId;

use super::graph::{Graph, Node};
use super::state::{Event, Handle, LEGACY, MODE, Mark, State};
use super::status::Status;
use super::work::Work;

/// No thread may make unsafe calls.
const GLOBAL: u32 = 0;
/// The thread that captures may not make unsafe calls.
const THREAD_LOCAL: u32 = 1;
/// Anyone may.
const RELAXED: u32 = 2;

/// A capture in progress.
pub(super) struct Capture {
    mode: u32,
    thread: ThreadId,
    origin: Handle,
    graph: Graph,
    /// For each stream that takes part, the nodes that its next one comes after.
    tips: HashMap<Handle, Vec<usize>>,
    invalid: bool,
}

/// What a stream's capture is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    None,
    Active,
    Invalidated,
}

impl State {
    /// Begins a capture.
    pub(super) fn begin_capture(&mut self, handle: Handle, mode: u32) -> Result<(), Status> {
        if handle == LEGACY {
            return Err(Status::CAPTURE_UNSUPPORTED);
        }
        if mode > RELAXED {
            return Err(Status::INVALID_VALUE);
        }
        let id = self.handle();
        let stream = self.streams.get_mut(&handle).ok_or(Status::INVALID_HANDLE)?;
        if stream.capture.is_some() {
            return Err(Status::ILLEGAL_STATE);
        }
        stream.capture = Some(id);
        let capture = Capture {
            mode,
            thread: std::thread::current().id(),
            origin: handle,
            graph: Graph::default(),
            tips: HashMap::from([(handle, Vec::new())]),
            invalid: false,
        };
        self.captures.insert(id, capture);
        Ok(())
    }

    /// Ends a capture and gives its graph a handle.
    pub(super) fn end_capture(&mut self, handle: Handle) -> Result<Handle, Status> {
        let stream = self.streams.get(&handle).ok_or(Status::INVALID_HANDLE)?;
        let id = stream.capture.ok_or(Status::ILLEGAL_STATE)?;
        let capture = self.captures.get_mut(&id).ok_or(Status::ILLEGAL_STATE)?;
        if capture.mode != RELAXED && capture.thread != std::thread::current().id() {
            // The capture ends all the same.
            self.abandon(id);
            return Err(Status::CAPTURE_WRONG_THREAD);
        }
        if capture.origin != handle {
            capture.invalid = true;
            return Err(Status::CAPTURE_UNMATCHED);
        }
        let Some(capture) = self.abandon(id) else { return Err(Status::ILLEGAL_STATE) };
        if capture.invalid {
            return Err(Status::CAPTURE_INVALIDATED);
        }
        // Every node must lead to what the origin's next node would come after.
        let joined = capture.graph.ancestors(&capture.tips[&handle]);
        if joined.iter().any(|joined| !joined) {
            return Err(Status::CAPTURE_UNJOINED);
        }
        let graph = self.handle();
        self.graphs.insert(graph, capture.graph);
        Ok(graph)
    }

    /// Takes a capture from its streams.
    fn abandon(&mut self, id: Handle) -> Option<Capture> {
        for stream in self.streams.values_mut().filter(|stream| stream.capture == Some(id)) {
            stream.capture = None;
        }
        self.captures.remove(&id)
    }

    /// What a stream's capture is doing, and its number.
    pub(super) fn capture_stage(&self, handle: Handle) -> (Stage, Handle) {
        match self.streams.get(&handle).and_then(|stream| stream.capture) {
            None => (Stage::None, 0),
            Some(id) if self.captures.get(&id).is_some_and(|capture| capture.invalid) => (Stage::Invalidated, id),
            Some(id) => (Stage::Active, id),
        }
    }

    fn invalidate(&mut self, mut which: impl FnMut(&Capture) -> bool) -> bool {
        let mut any = false;
        for capture in self.captures.values_mut().filter(|capture| which(capture)) {
            capture.invalid = true;
            any = true;
        }
        any
    }

    /// A call that cannot be captured and might have to wait for work that is: allocating, freeing, waiting.
    pub(super) fn unsafe_call(&mut self) -> Result<(), Status> {
        let (mode, thread) = (MODE.get(), std::thread::current().id());
        let prohibited = |capture: &Capture| {
            let own = capture.thread == thread && capture.mode != RELAXED && mode != RELAXED;
            own || (mode == GLOBAL && capture.mode == GLOBAL)
        };
        if self.invalidate(prohibited) { Err(Status::CAPTURE_UNSUPPORTED) } else { Ok(()) }
    }

    /// A use of the legacy stream, which would wait for every blocking stream.
    pub(super) fn implicit(&mut self, handle: Handle) -> Result<(), Status> {
        if handle != LEGACY {
            return Ok(());
        }
        let captures: Vec<Handle> =
            self.streams.values().filter(|stream| stream.blocking).filter_map(|stream| stream.capture).collect();
        for id in &captures {
            if let Some(capture) = self.captures.get_mut(id) {
                capture.invalid = true;
            }
        }
        if captures.is_empty() { Ok(()) } else { Err(Status::CAPTURE_IMPLICIT) }
    }

    /// The host waits for a stream or asks for its state.
    pub(super) fn observe(&mut self, handle: Handle) -> Result<(), Status> {
        self.implicit(handle)?;
        let id = self.streams.get(&handle).ok_or(Status::INVALID_HANDLE)?.capture;
        let Some(capture) = id.and_then(|id| self.captures.get_mut(&id)) else { return Ok(()) };
        capture.invalid = true;
        Err(Status::CAPTURE_UNSUPPORTED)
    }

    /// The host waits for everything.
    pub(super) fn observe_all(&mut self) -> Result<(), Status> {
        if self.invalidate(|_| true) { Err(Status::CAPTURE_UNSUPPORTED) } else { Ok(()) }
    }

    /// Puts work into a stream: into its queue, or into the graph that it captures.
    pub(super) fn submit(&mut self, handle: Handle, work: Work) -> Result<Option<Mark>, Status> {
        self.implicit(handle)?;
        let id = self.streams.get(&handle).ok_or(Status::INVALID_HANDLE)?.capture;
        let Some(id) = id else { return Ok(Some(self.enqueue(handle, work))) };
        let capture = self.captures.get_mut(&id).ok_or(Status::ILLEGAL_STATE)?;
        if capture.invalid {
            return Err(Status::CAPTURE_INVALIDATED);
        }
        let tips = capture.tips.entry(handle).or_default();
        let node = capture.graph.nodes.len();
        let after = std::mem::replace(tips, vec![node]);
        capture.graph.nodes.push(Node { work, after });
        Ok(None)
    }

    /// Whether a stream captures, with the error if its capture is invalid.
    pub(super) fn is_capturing(&self, handle: Handle) -> Result<bool, Status> {
        match self.capture_stage(handle).0 {
            Stage::None => Ok(false),
            Stage::Active => Ok(true),
            Stage::Invalidated => Err(Status::CAPTURE_INVALIDATED),
        }
    }

    /// Records an event.
    pub(super) fn record(&mut self, event: Handle, handle: Handle) -> Result<(), Status> {
        self.implicit(handle)?;
        let round = {
            let event = self.events.get_mut(&event).ok_or(Status::INVALID_HANDLE)?;
            event.round += 1;
            event.round
        };
        if self.is_capturing(handle)? {
            let id = self.streams.get(&handle).and_then(|stream| stream.capture).unwrap_or_default();
            let tips = self.captures.get(&id).and_then(|capture| capture.tips.get(&handle)).cloned();
            let captured = Some((id, tips.unwrap_or_default()));
            self.events.insert(event, Event { captured, round, ..Event::default() });
            return Ok(());
        }
        let mark = self.enqueue(handle, Work::Record { event, round });
        self.events.insert(event, Event { mark: Some(mark), round, ..Event::default() });
        Ok(())
    }

    /// Makes a stream wait for an event.
    pub(super) fn wait_event(&mut self, handle: Handle, event: Handle) -> Result<(), Status> {
        self.implicit(handle)?;
        let event = self.events.get(&event).ok_or(Status::INVALID_HANDLE)?;
        let (mark, captured) = (event.mark, event.captured.clone());
        let own = self.streams.get(&handle).ok_or(Status::INVALID_HANDLE)?.capture;
        let live = captured.filter(|(id, _)| self.captures.contains_key(id));
        match (own, live) {
            (None, None) => {
                if let (Some(mark), Some(stream)) = (mark, self.streams.get_mut(&handle)) {
                    stream.waits.push(mark);
                }
                Ok(())
            }
            (Some(id), None) => {
                let capture = self.captures.get_mut(&id).ok_or(Status::ILLEGAL_STATE)?;
                if capture.invalid {
                    return Err(Status::CAPTURE_INVALIDATED);
                }
                // An event that was never recorded is no dependency.
                if mark.is_none() {
                    return Ok(());
                }
                capture.invalid = true;
                Err(Status::CAPTURE_ISOLATION)
            }
            (own, Some((id, nodes))) => {
                if own.is_some_and(|own| own != id) {
                    self.invalidate(|_| true);
                    return Err(Status::CAPTURE_MERGE);
                }
                let capture = self.captures.get_mut(&id).ok_or(Status::ILLEGAL_STATE)?;
                if capture.invalid {
                    return Err(Status::CAPTURE_INVALIDATED);
                }
                if handle == LEGACY {
                    capture.invalid = true;
                    return Err(Status::CAPTURE_IMPLICIT);
                }
                let tips = capture.tips.entry(handle).or_default();
                tips.extend(nodes);
                tips.sort_unstable();
                tips.dedup();
                if let Some(stream) = self.streams.get_mut(&handle) {
                    stream.capture = Some(id);
                }
                Ok(())
            }
        }
    }

    /// What the host asks of an event: its mark, if it was not recorded in a capture.
    pub(super) fn event_mark(&self, event: Handle) -> Result<Option<Mark>, Status> {
        let event = self.events.get(&event).ok_or(Status::INVALID_HANDLE)?;
        if event.captured.is_some() { Err(Status::CAPTURED_EVENT) } else { Ok(event.mark) }
    }
}

/// Whether a number is a capture mode.
pub(super) fn is_mode(mode: u32) -> bool {
    [GLOBAL, THREAD_LOCAL, RELAXED].contains(&mode)
}
