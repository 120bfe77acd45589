//! Playing a program on the kernel and lifted, and what to do about a difference: be sure of it, then make it small.

use std::fmt;

use vmmc_tests::{Site, Way};

use crate::generate::Program;
use crate::player::Player;
use crate::stage::{Line, Played, Stage, StageError};

/// How often a small program is tried again before it counts as equal: some differences are a matter of time.
const TRIES: usize = 3;
/// How often the kernel has to answer the same before a difference counts: one in 24,000 programs was the kernel's own, every third time.
const CERTAIN: usize = 20;

/// Plays programs in two ways, on stages that it keeps as long as they are good.
#[derive(Debug)]
pub struct Trial<'a> {
    site: &'a Site,
    player: &'a Player,
    way: Way,
    plain: Option<Stage<'a>>,
    other: Option<Stage<'a>>,
}

/// What a program showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The same answers both ways.
    Equal,
    /// The kernel itself does not always give the same answers: the program is no good.
    Unsteady(Report),
    /// The layer answers otherwise than the kernel.
    Differs(Report),
    /// A connection was not made or not lifted: there was nothing to compare.
    NotLifted(String),
}

/// A program that differs, as small as it could be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The numbers of the steps that are left.
    kept: Vec<usize>,
    oracle: Vec<Line>,
    other: Vec<Line>,
    way: Way,
}

impl<'a> Trial<'a> {
    /// Compares the kernel with `way`.
    pub fn new(site: &'a Site, player: &'a Player, way: Way) -> Self {
        Trial { site, player, way, plain: None, other: None }
    }

    /// Plays those steps of the program both ways. What differs is played on the kernel many times more before it counts.
    pub fn judge(&mut self, program: &Program, kept: &[usize]) -> Result<Verdict, StageError> {
        let verdict = self.compare(program, kept)?;
        if let Verdict::Differs(met) = &verdict
            && let Some(report) = self.doubt(program, met)?
        {
            return Ok(Verdict::Unsteady(report));
        }
        Ok(verdict)
    }

    fn compare(&mut self, program: &Program, kept: &[usize]) -> Result<Verdict, StageError> {
        let oracle = self.play(Way::Plain, program, kept)?;
        let other = self.play(self.way, program, kept)?;
        if let Some(why) = other.not_ready {
            return Ok(Verdict::NotLifted(why));
        }
        let unsettled = |line: &Line| line.answer.contains("unsettled");
        if oracle.lines == other.lines && !oracle.lines.iter().any(unsettled) {
            return Ok(Verdict::Equal);
        }
        let report = |oracle: &Played, other: &Played| Report {
            kept: kept.to_vec(),
            oracle: oracle.lines.clone(),
            other: other.lines.clone(),
            way: self.way,
        };
        let (first, other) = (report(&oracle, &other), other);
        for _ in 0..TRIES {
            let again = self.play(Way::Plain, program, kept)?;
            if again.lines != oracle.lines || again.lines.iter().any(unsettled) {
                return Ok(Verdict::Unsteady(Report { other: again.lines, ..first }));
            }
            if again.lines == other.lines {
                break;
            }
        }
        Ok(Verdict::Differs(first))
    }

    /// Whether the kernel itself answers otherwise now and then, which a few plays need not show: how it did.
    fn doubt(&mut self, program: &Program, met: &Report) -> Result<Option<Report>, StageError> {
        for _ in 0..CERTAIN {
            let again = self.play(Way::Plain, program, &met.kept)?;
            if again.lines != met.oracle {
                return Ok(Some(Report { other: again.lines, ..met.clone() }));
            }
        }
        Ok(None)
    }

    /// Leaves out steps for as long as what is left still differs.
    pub fn shrink(&mut self, program: &Program, report: Report) -> Result<Report, StageError> {
        let mut best = report;
        // Nothing after the first difference is needed for it.
        best.kept = best.kept_until_difference();
        let mut chunk = best.kept.len().div_ceil(2).max(1);
        loop {
            let mut start = 0;
            let before = best.kept.len();
            while start < best.kept.len() {
                let mut fewer = best.kept.clone();
                fewer.drain(start..(start + chunk).min(fewer.len()));
                match self.differs_again(program, &fewer)? {
                    Some(smaller) => best = smaller,
                    None => start += chunk,
                }
            }
            if chunk == 1 && best.kept.len() == before {
                return Ok(best);
            }
            chunk = chunk.div_ceil(2).max(1);
        }
    }

    fn differs_again(
        &mut self,
        program: &Program,
        kept: &[usize],
    ) -> Result<Option<Report>, StageError> {
        for _ in 0..TRIES {
            if let Verdict::Differs(mut report) = self.compare(program, kept)? {
                // Steps that make no sense without others fell out by themselves.
                report.kept = report.oracle.iter().map(|line| line.number).collect();
                return Ok(Some(report));
            }
        }
        Ok(None)
    }

    fn play(&mut self, way: Way, program: &Program, kept: &[usize]) -> Result<Played, StageError> {
        let place = if way == Way::Plain { &mut self.plain } else { &mut self.other };
        let mut stage = match place.take() {
            Some(stage) => stage,
            None => Stage::start(self.site, self.player, way)?,
        };
        let played = stage.play(program, &program.keep(kept));
        if played.usable {
            *place = Some(stage);
        }
        Ok(played)
    }
}

impl Report {
    /// The command that plays these steps of the seed's program again.
    pub fn command(&self, seed: u64) -> String {
        let kept: Vec<_> = self.kept.iter().map(ToString::to_string).collect();
        let keep = kept.join(",");
        format!("cargo run --release -p vmmc-differ -- --from {seed} --seeds 1 --keep {keep}")
    }

    fn first_difference(&self) -> Option<usize> {
        let count = self.oracle.len().max(self.other.len());
        (0..count).find(|n| self.oracle.get(*n) != self.other.get(*n))
    }

    fn kept_until_difference(&self) -> Vec<usize> {
        let count = self.first_difference().map_or(self.oracle.len(), |n| n + 1);
        self.oracle.iter().take(count).map(|line| line.number).collect()
    }
}

/// The steps, and where they differ both answers.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for n in 0..self.oracle.len().max(self.other.len()) {
            let (oracle, other) = (self.oracle.get(n), self.other.get(n));
            let Some(line) = oracle.or(other) else { continue };
            writeln!(f, "{:>4}  {}", line.number, line.step)?;
            let answer = |line: Option<&Line>| {
                line.map_or_else(|| "(nothing)".to_owned(), |line| line.answer.clone())
            };
            if oracle == other {
                writeln!(f, "          {}", answer(oracle))?;
            } else {
                writeln!(f, "     >>   kernel: {}", answer(oracle))?;
                writeln!(f, "     >>   {}: {}", self.way, answer(other))?;
            }
        }
        Ok(())
    }
}
