//! A report for the eye: an aligned table, each row beside the best baseline of its size, with a bar.

use std::fmt;

use crate::report::{Report, Row, Unit};

/// Shows a [`Report`] as a table.
///
/// The ratio tells how many times better the row is than the best row of the same size that is not
/// VMMC; the bars are logarithmic, longer for a larger figure.
#[derive(Debug)]
pub struct Table<'a>(pub &'a Report);

/// Width of the longest bar.
const BAR: usize = 24;

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { bench, machine, rows, notes } = self.0;
        writeln!(
            f,
            "{} on {} ({} cores, Linux {}), processes on cores {} and {}",
            bench.name(),
            machine.cpu,
            machine.cores,
            machine.kernel,
            machine.pinned[0],
            machine.pinned[1]
        )?;
        let names = rows.iter().map(|row| name(row).len()).max().unwrap_or(4).max(4);
        let counted = rows.iter().any(|row| row.first.is_some());
        let head =
            if counted { format!(" {:>9} {:>10}", "first", "thousandth") } else { String::new() };
        let mut group = None;
        for row in rows {
            if group != Some((row.size, row.unit)) {
                group = Some((row.size, row.unit));
                writeln!(
                    f,
                    "\n{:>9} {:names$} {:>10} {:>10} {:>10} {:>9} {:>8}{head}",
                    if row.unit == Unit::Kibibytes { row.size.to_string() } else { size(row.size) },
                    row.unit.name(),
                    "p50",
                    "p99",
                    "p99.9",
                    "cpu us",
                    "ratio"
                )?;
            }
            let nth = if counted {
                format!(" {:>9} {:>10}", figure(row.first), figure(row.thousandth))
            } else {
                String::new()
            };
            writeln!(
                f,
                "{:>9} {:names$} {:>10} {:>10} {:>10} {:>9} {:>8}{nth} {}",
                "",
                name(row),
                figure(Some(row.p50)),
                figure(row.p99),
                figure(row.p999),
                figure(row.cpu_us),
                ratio(row, rows).map_or_else(String::new, |ratio| format!("{ratio:.2}x")),
                bar(row, rows)
            )?;
        }
        if let Some(line) = rows.iter().find_map(|row| row.line_us) {
            writeln!(f, "\none cache line to the other core and back: {line:.3} us")?;
        }
        notes.iter().try_for_each(|note| writeln!(f, "note: {note}"))
    }
}

fn name(row: &Row) -> String {
    match row.part {
        Some(part) => format!("{} {part}", row.path),
        None => row.path.clone(),
    }
}

fn size(bytes: usize) -> String {
    match bytes {
        b if b >= 1 << 20 && b % (1 << 20) == 0 => format!("{} MB", b >> 20),
        b if b >= 1 << 10 && b % (1 << 10) == 0 => format!("{} KB", b >> 10),
        b => format!("{b} B"),
    }
}

/// Three digits that say something.
fn figure(value: Option<f64>) -> String {
    match value {
        None => String::new(),
        Some(value) if value >= 100.0 => format!("{value:.0}"),
        Some(value) if value >= 10.0 => format!("{value:.1}"),
        Some(value) if value >= 1.0 => format!("{value:.2}"),
        Some(value) => format!("{value:.3}"),
    }
}

/// Whether a row shows VMMC at work, rather than something to compare it with.
fn is_vmmc(row: &Row) -> bool {
    row.path.starts_with("vmmc") || row.path.starts_with("lifted")
}

/// How many times better a VMMC row is than the best comparable row; `None` for rows that are not VMMC's.
fn ratio(row: &Row, rows: &[Row]) -> Option<f64> {
    let comparable = |other: &&Row| {
        !is_vmmc(other)
            && other.path != "line"
            && (other.size, other.unit, other.part) == (row.size, row.unit, row.part)
            && other.path.ends_with("-busy") == row.path.ends_with("-busy")
    };
    if !is_vmmc(row) || row.p50 <= 0.0 {
        return None;
    }
    let figures = rows.iter().filter(comparable).map(|other| other.p50);
    match row.unit {
        // Of what is added to something, the difference counts: the notes tell.
        Unit::Kibibytes => None,
        Unit::Nanoseconds | Unit::Microseconds => Some(figures.min_by(f64::total_cmp)? / row.p50),
        Unit::GigabytesPerSecond | Unit::MillionsPerSecond => {
            Some(row.p50 / figures.max_by(f64::total_cmp)?)
        }
    }
}

/// A logarithmic bar between the least and the largest figure of the same unit in the report.
fn bar(row: &Row, rows: &[Row]) -> String {
    let logs = || rows.iter().filter(|r| r.unit == row.unit && r.p50 > 0.0).map(|r| r.p50.ln());
    let (Some(least), Some(most)) = (logs().min_by(f64::total_cmp), logs().max_by(f64::total_cmp))
    else {
        return String::new();
    };
    let share = if most > least { (row.p50.ln() - least) / (most - least) } else { 1.0 };
    "▇".repeat(1 + (share.clamp(0.0, 1.0) * (BAR - 1) as f64).round() as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> Vec<Row> {
        [("vmmc", 0.1), ("shared-memory", 0.09), ("tcp-blocking", 40.0), ("line", 0.01)]
            .map(|(path, p50)| Row::new(path, 8, Unit::Microseconds, p50))
            .to_vec()
    }

    #[test]
    fn the_ratio_is_to_the_best_baseline() {
        let rows = rows();
        assert!((ratio(&rows[0], &rows).unwrap() - 0.9).abs() < 1e-9);
        assert_eq!(ratio(&rows[1], &rows), None);
        let more = [("vmmc", 6.0), ("memcpy", 8.0), ("shared-memory", 12.0)]
            .map(|(path, p50)| Row::new(path, 8, Unit::GigabytesPerSecond, p50));
        assert!((ratio(&more[0], &more).unwrap() - 0.5).abs() < 1e-9);
    }

    #[test]
    fn parts_are_compared_with_their_like_only() {
        let rows = [("vmmc", "post", 4.0), ("futex", "post", 2.0), ("futex", "wake", 1.0)]
            .map(|(path, part, p50)| Row::new(path, 8, Unit::Microseconds, p50).part(part));
        assert!((ratio(&rows[0], &rows).unwrap() - 0.5).abs() < 1e-9);
    }

    #[test]
    fn bars_grow_with_the_figure() {
        let rows = rows();
        let lengths: Vec<usize> = rows.iter().map(|row| bar(row, &rows).chars().count()).collect();
        assert_eq!((lengths[2], lengths[3]), (BAR, 1));
        assert!(lengths[0] >= lengths[1] && lengths[2] > lengths[0]);
    }

    #[test]
    fn sizes_and_figures_are_short() {
        assert_eq!(
            [size(4), size(1000), size(4096), size(1 << 20)],
            ["4 B", "1000 B", "4 KB", "1 MB"]
        );
        let figures = [0.123_4, 1.234, 12.34, 123.4].map(|value| figure(Some(value)));
        assert_eq!(figures, ["0.123", "1.23", "12.3", "123"]);
    }

    #[test]
    fn first_and_thousandth_are_shown_where_they_were_measured() {
        let machine = crate::Machine::look().unwrap();
        let row = Row { first: Some(7.25), thousandth: Some(6.75), ..rows()[0].clone() };
        let report = Report { bench: crate::Bench::Setup, machine, rows: vec![row], notes: vec![] };
        let text = Table(&report).to_string();
        for expected in ["thousandth", "7.25", "6.75"] {
            assert!(text.contains(expected), "{expected} is missing in\n{text}");
        }
    }

    #[test]
    fn the_table_names_every_row_and_note() {
        let machine = crate::Machine::look().unwrap();
        let notes = vec!["something to know".to_owned()];
        let report = Report { bench: crate::Bench::SendLatency, machine, rows: rows(), notes };
        let text = Table(&report).to_string();
        for expected in ["send-latency", "tcp-blocking", "8 B", "0.90x", "note: something to know"]
        {
            assert!(text.contains(expected), "{expected} is missing in\n{text}");
        }
    }
}
