//! A thread and a queue for each tracker.
//!
//! The run puts what it has to say into the queue and goes on, whatever becomes of it: a queue that is full loses its oldest
//! rows, a disk that is full is told of once. At the end the run waits for a while, not for ever.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::error::Result;
use crate::memory::Memory;
use crate::run::{Ending, Lengths, Run, Sample};
use crate::settings::Settings;
use crate::{Tracker, mlflow, swanlab, tensorboard, wandb};

/// Most rows that wait for a tracker.
const LONGEST: usize = 4096;

/// All trackers of a run.
#[derive(Debug)]
pub struct Trackers {
    lines: Vec<Arc<Line>>,
}

/// Something to tell the user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// Where a tracker's run is.
    Place(String),
    /// What a tracker doesn't get, and why.
    Trouble(String),
}

/// Between the run and a tracker's thread.
struct Line {
    name: &'static str,
    state: Mutex<State>,
    changed: Condvar,
}

impl std::fmt::Debug for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Line").field("name", &self.name).finish_non_exhaustive()
    }
}

#[derive(Default)]
struct State {
    queue: VecDeque<(f64, Told)>,
    /// Rows that found no room.
    lost: u64,
    said: Vec<Said>,
    has_trouble: bool,
    is_done: bool,
}

#[derive(Clone)]
enum Told {
    Row(u64, Vec<(String, f64)>),
    Samples(u64, Vec<Sample>),
    Lengths(Lengths),
    End(Ending),
}

/// What begins a tracker's run, or goes on with it.
type Open = Box<dyn FnMut() -> Result<Box<dyn Tracker>> + Send>;

impl Trackers {
    /// Begins to tell those that the settings name.
    #[must_use]
    pub fn start(settings: &Settings, run: Run) -> Self {
        let memory = Arc::new(Memory::open(&run.output, run.done));
        let run = Arc::new(run);
        let mut all = Self { lines: Vec::new() };
        if let Some(of) = settings.tensorboard.clone() {
            let (run, memory) = (run.clone(), memory.clone());
            all.add("TensorBoard", Box::new(move || tensorboard::open(&of, &run, &memory)));
        }
        if let Some(of) = settings.mlflow.clone() {
            let (run, memory) = (run.clone(), memory.clone());
            all.add("MLflow", Box::new(move || mlflow::open(&of, &run, &memory)));
        }
        if let Some(of) = settings.wandb.clone() {
            let (run, memory) = (run.clone(), memory.clone());
            all.add("Weights & Biases", Box::new(move || wandb::open(&of, &run, &memory)));
        }
        if let Some(of) = settings.swanlab.clone() {
            all.add("SwanLab", Box::new(move || swanlab::open(&of, &run, &memory)));
        }
        all
    }

    fn add(&mut self, name: &'static str, open: Open) {
        let line = Arc::new(Line { name, state: Mutex::default(), changed: Condvar::new() });
        let own = line.clone();
        let spawned = std::thread::Builder::new().name(name.to_lowercase()).spawn(move || own.serve(open));
        if let Err(error) = spawned {
            line.trouble(&format!("no thread for it: {error}"));
            line.lock().is_done = true;
        }
        self.lines.push(line);
    }

    /// Tells of a row of the log.
    pub fn row<'n>(&self, step: u64, values: impl Iterator<Item = (&'n str, f64)>) {
        self.tell(&Told::Row(step, values.map(|(name, value)| (name.to_owned(), value)).collect()));
    }

    /// Tells what the model answered at a step.
    pub fn samples(&self, step: u64, samples: Vec<Sample>) {
        if !samples.is_empty() {
            self.tell(&Told::Samples(step, samples));
        }
    }

    /// Tells how long the rows of the training set are.
    pub fn lengths(&self, lengths: Lengths) {
        self.tell(&Told::Lengths(lengths));
    }

    fn tell(&self, what: &Told) {
        let time = now();
        for line in &self.lines {
            line.put(time, what.clone());
        }
    }

    /// What the user hasn't been told yet.
    #[must_use]
    pub fn said(&self) -> Vec<Said> {
        self.lines.iter().flat_map(|line| std::mem::take(&mut line.lock().said)).collect()
    }

    /// Tells how the run ended, and waits until all is written, at most for `patience`. What remains to be said comes back.
    #[must_use]
    pub fn end(self, ending: &Ending, patience: Duration) -> Vec<Said> {
        let deadline = Instant::now() + patience;
        self.tell(&Told::End(ending.clone()));
        for line in &self.lines {
            let mut state = line.lock();
            while !state.is_done {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    let rows = state.queue.len();
                    drop(state);
                    line.trouble(&format!("{rows} rows were not taken within {} s of the end", patience.as_secs()));
                    break;
                }
                state = line.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
            }
        }
        self.said()
    }
}

impl Line {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Never waits.
    fn put(&self, time: f64, what: Told) {
        let mut state = self.lock();
        if state.is_done {
            return;
        }
        if state.queue.len() >= LONGEST {
            state.queue.pop_front();
            state.lost += 1;
        }
        state.queue.push_back((time, what));
        self.changed.notify_all();
    }

    /// Says what is wrong, the first time.
    fn trouble(&self, problem: &str) {
        let mut state = self.lock();
        if !std::mem::replace(&mut state.has_trouble, true) {
            let text = format!("{}: {problem}; the run goes on without it", self.name);
            state.said.push(Said::Trouble(text));
        }
    }

    /// The thread.
    fn serve(&self, mut open: Open) {
        let mut tracker = None;
        if let Err(error) = self.open(&mut tracker, &mut open) {
            self.trouble(&error.to_string());
        }
        while let Some((time, what)) = self.next() {
            let is_last = matches!(what, Told::End(_));
            if let Err(error) = self.bring(&mut tracker, &mut open, time, &what) {
                self.trouble(&error.to_string());
            }
            if is_last {
                break;
            }
        }
        let lost = self.lock().lost;
        if lost > 0 {
            self.trouble(&format!("it was too slow: {lost} rows were left out"));
        }
        self.lock().is_done = true;
        self.changed.notify_all();
    }

    fn next(&self) -> Option<(f64, Told)> {
        let mut state = self.lock();
        loop {
            if let Some(next) = state.queue.pop_front() {
                return Some(next);
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn bring(&self, tracker: &mut Option<Box<dyn Tracker>>, open: &mut Open, time: f64, what: &Told) -> Result<()> {
        let tracker = self.open(tracker, open)?;
        match what {
            Told::Row(step, values) => tracker.row(time, *step, values),
            Told::Samples(step, samples) => tracker.samples(time, *step, samples),
            Told::Lengths(lengths) => tracker.lengths(time, lengths),
            Told::End(ending) => tracker.end(time, ending),
        }
    }

    fn open<'t>(&self, tracker: &'t mut Option<Box<dyn Tracker>>, open: &mut Open) -> Result<&'t mut Box<dyn Tracker>> {
        if tracker.is_none() {
            let opened = open()?;
            self.lock().said.push(Said::Place(format!("{}: {}", self.name, opened.place())));
            *tracker = Some(opened);
        }
        Ok(tracker.as_mut().expect("it was just opened"))
    }
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;
    use std::sync::mpsc::{Receiver, Sender, channel};

    /// A tracker that does what it is told to.
    struct Fake {
        heard: Sender<String>,
        before: Box<dyn FnMut(u64) -> Result<()> + Send>,
    }

    impl Tracker for Fake {
        fn place(&self) -> String {
            "here".into()
        }

        fn row(&mut self, _: f64, step: u64, values: &[(String, f64)]) -> Result<()> {
            (self.before)(step)?;
            let _ = self.heard.send(format!("{step} {}", values.len()));
            Ok(())
        }

        fn samples(&mut self, _: f64, step: u64, samples: &[Sample]) -> Result<()> {
            let _ = self.heard.send(format!("{step} {:?}", samples[0].answer));
            Ok(())
        }

        fn lengths(&mut self, _: f64, lengths: &Lengths) -> Result<()> {
            let _ = self.heard.send(format!("lengths {}", lengths.rows()));
            Ok(())
        }

        fn end(&mut self, _: f64, ending: &Ending) -> Result<()> {
            let _ = self.heard.send(format!("{ending:?}"));
            Ok(())
        }
    }

    fn start(
        mut open: impl FnMut() -> Result<()> + Send + 'static,
        before: impl FnMut(u64) -> Result<()> + Send + 'static,
    ) -> (Trackers, Receiver<String>) {
        let (heard, receiver) = channel();
        let mut before: Option<Box<dyn FnMut(u64) -> Result<()> + Send>> = Some(Box::new(before));
        let mut trackers = Trackers { lines: Vec::new() };
        let open = move || {
            open()?;
            let fake = Fake { heard: heard.clone(), before: before.take().expect("opened once") };
            Ok(Box::new(fake) as Box<dyn Tracker>)
        };
        trackers.add("Fake", Box::new(open));
        (trackers, receiver)
    }

    fn row(trackers: &Trackers, step: u64) {
        trackers.row(step, [("loss", 1.0)].into_iter());
    }

    const PATIENCE: Duration = Duration::from_secs(30);

    #[test]
    fn all_is_told_in_order() {
        let (trackers, heard) = start(|| Ok(()), |_| Ok(()));
        trackers.lengths(Lengths::of([1, 2].into_iter()).unwrap());
        (1..=3).for_each(|step| row(&trackers, step));
        trackers.samples(3, vec![Sample { prompt: "p".into(), answer: "a".into() }]);
        trackers.samples(3, Vec::new());
        let said = trackers.end(&Ending::Finished, PATIENCE);
        assert_eq!(said, [Said::Place("Fake: here".into())]);
        let heard: Vec<String> = heard.try_iter().collect();
        assert_eq!(heard, ["lengths 2", "1 1", "2 1", "3 1", "3 \"a\"", "Finished"]);
    }

    #[test]
    fn what_can_t_be_opened_is_said_once_and_ends_nothing() {
        let (trackers, heard) =
            start(|| Err(Error::Variable { variable: "X", value: "y".into(), problem: "no" }), |_| Ok(()));
        (1..=5).for_each(|step| row(&trackers, step));
        let said = trackers.end(&Ending::Finished, PATIENCE);
        assert_eq!(said, [Said::Trouble("Fake: X=y: no; the run goes on without it".into())]);
        assert_eq!(heard.try_iter().count(), 0);
    }

    #[test]
    fn a_row_that_fails_is_told_of_once_and_the_next_ones_go_on() {
        let before = |step| match step {
            2 | 3 => Err(Error::Variable { variable: "X", value: "y".into(), problem: "no" }),
            _ => Ok(()),
        };
        let (trackers, heard) = start(|| Ok(()), before);
        (1..=4).for_each(|step| row(&trackers, step));
        let said = trackers.end(&Ending::Finished, PATIENCE);
        assert_eq!(said.len(), 2, "{said:?}");
        assert_eq!(heard.try_iter().collect::<Vec<_>>(), ["1 1", "4 1", "Finished"]);
    }

    #[test]
    fn the_run_waits_for_nobody_longer_than_it_says() {
        let ((release, gate), (entered, hangs)) = (channel::<()>(), channel());
        let before = move |_| {
            let _ = entered.send(());
            let _ = gate.recv();
            Ok(())
        };
        let (trackers, _heard) = start(|| Ok(()), before);
        row(&trackers, 1);
        hangs.recv().expect("it takes the row");
        let begin = Instant::now();
        (2..=3).for_each(|step| row(&trackers, step));
        assert!(begin.elapsed() < Duration::from_secs(1));
        let said = trackers.end(&Ending::Failed("x".into()), Duration::from_millis(300));
        assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
        let trouble = "Fake: 3 rows were not taken within 0 s of the end; the run goes on without it";
        assert_eq!(said, [Said::Place("Fake: here".into()), Said::Trouble(trouble.into())]);
        drop(release);
    }

    #[test]
    fn a_tracker_that_hangs_costs_only_what_it_would_have_shown() {
        let ((release, gate), (entered, hangs)) = (channel::<()>(), channel());
        let before = move |step| {
            if step == 0 {
                let _ = entered.send(());
                let _ = gate.recv();
            }
            Ok(())
        };
        let (trackers, heard) = start(|| Ok(()), before);
        row(&trackers, 0);
        hangs.recv().expect("it takes the first row");
        let begin = Instant::now();
        (1..=LONGEST as u64 + 10).for_each(|step| row(&trackers, step));
        assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
        let waiting = trackers.lines[0].lock().queue.len();
        assert_eq!(waiting, LONGEST);
        drop(release);
        let said = trackers.end(&Ending::Finished, PATIENCE);
        assert!(matches!(&said[1], Said::Trouble(text) if text.contains("it was too slow: ")), "{said:?}");
        let heard: Vec<String> = heard.try_iter().collect();
        assert_eq!(heard.last().map(String::as_str), Some("Finished"));
        assert!(heard.len() <= LONGEST + 2);
    }
}
