//! The startup ledger: every phase named and timed, and the time that no phase claims as a line of its own.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Times the phases of a start, one after the other.
#[derive(Debug)]
pub struct StartupLedger {
    started: Instant,
    phases: Vec<StartupPhase>,
    observer: Option<PhaseObserver>,
}

/// Who is told the name of each phase as it begins, such as a progress bar. It is called on the thread that loads.
#[derive(Clone)]
pub struct PhaseObserver(Arc<dyn Fn(&str) + Send + Sync>);

impl PhaseObserver {
    /// Tells `observe`.
    pub fn new(observe: impl Fn(&str) + Send + Sync + 'static) -> Self {
        PhaseObserver(Arc::new(observe))
    }
}

impl fmt::Debug for PhaseObserver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PhaseObserver")
    }
}

/// One named phase.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartupPhase {
    /// What was done.
    pub name: String,
    /// How long it took, on the clock on the wall.
    pub time: Duration,
}

/// A finished ledger: the phases and the unclaimed time sum to the total.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartupReport {
    /// The phases, in order.
    pub phases: Vec<StartupPhase>,
    /// From the start to ready.
    pub total: Duration,
}

impl StartupLedger {
    /// A ledger that counts from `started`, such as the first line of `main`.
    pub fn since(started: Instant) -> Self {
        StartupLedger { started, phases: Vec::new(), observer: None }
    }

    /// The same ledger, which tells an observer of its phases.
    #[must_use]
    pub fn observed(self, observer: Option<PhaseObserver>) -> Self {
        StartupLedger { observer, ..self }
    }

    /// The moment from which it counts.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// Runs `work` as a phase. A name that was used before adds to its line.
    pub fn phase<T>(&mut self, name: &str, work: impl FnOnce() -> T) -> T {
        if let Some(PhaseObserver(observe)) = &self.observer {
            observe(name);
        }
        let started = Instant::now();
        let result = work();
        self.claim(name, started.elapsed());
        result
    }

    /// Adds time that was measured elsewhere. It must not overlap with other phases.
    pub fn claim(&mut self, name: &str, time: Duration) {
        match self.phases.iter_mut().find(|phase| phase.name == name) {
            Some(phase) => phase.time += time,
            None => self.phases.push(StartupPhase { name: name.to_string(), time }),
        }
    }

    /// Ends the start: ready.
    pub fn finish(self) -> StartupReport {
        StartupReport { phases: self.phases, total: self.started.elapsed() }
    }
}

impl StartupReport {
    /// The time that no phase claims.
    pub fn unclaimed(&self) -> Duration {
        self.total.saturating_sub(self.phases.iter().map(|phase| phase.time).sum())
    }
}

impl fmt::Display for StartupReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
        let share = |time: Duration| 100.0 * time.as_secs_f64() / self.total.as_secs_f64().max(f64::MIN_POSITIVE);
        for phase in &self.phases {
            writeln!(f, "  {:<28}{:>10.1} ms {:>5.1} %", phase.name, milliseconds(phase.time), share(phase.time))?;
        }
        let unclaimed = self.unclaimed();
        writeln!(f, "  {:<28}{:>10.1} ms {:>5.1} %", "(unclaimed)", milliseconds(unclaimed), share(unclaimed))?;
        write!(f, "  {:<28}{:>10.1} ms", "ready", milliseconds(self.total))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

    use super::*;

    #[test]
    fn an_observer_hears_of_each_phase_before_it_runs() {
        let heard = Arc::new(std::sync::Mutex::new(Vec::new()));
        let listener = Arc::clone(&heard);
        let observer = PhaseObserver::new(move |name| listener.lock().unwrap().push(name.to_owned()));
        let mut ledger = StartupLedger::since(Instant::now()).observed(Some(observer));
        let during = ledger.phase("first", || heard.lock().unwrap().clone());
        ledger.phase("second", || {});
        assert_eq!(during, ["first"]);
        assert_eq!(*heard.lock().unwrap(), ["first", "second"]);
    }

    #[test]
    fn phases_and_unclaimed_time_sum_to_the_total() {
        let mut ledger = StartupLedger::since(Instant::now());
        ledger.phase("sleep", || std::thread::sleep(Duration::from_millis(2)));
        std::thread::sleep(Duration::from_millis(1));
        ledger.phase("sleep", || std::thread::sleep(Duration::from_millis(2)));
        let report = ledger.finish();
        assert_eq!(report.phases.len(), 1);
        assert!(report.phases[0].time >= Duration::from_millis(4));
        assert!(report.unclaimed() >= Duration::from_millis(1));
        assert_eq!(report.phases[0].time + report.unclaimed(), report.total);
        let text = report.to_string();
        assert!(text.contains("sleep") && text.contains("(unclaimed)") && text.contains("ready"), "{text}");
    }
}
