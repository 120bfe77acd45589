//! The table that the demo ends with.

use std::fmt;

/// One measured value. The same labels come back in every round and both ways.
pub(crate) struct Figure {
    pub(crate) what: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) better: Better,
    pub(crate) value: f64,
    /// Named in the demo's last line.
    pub(crate) headline: Option<&'static str>,
}

/// Which way a value improves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Better {
    More,
    Less,
}

/// Rows in the order in which they were first added.
#[derive(Default)]
pub(crate) struct Table {
    rows: Vec<Row>,
}

struct Row {
    label: Figure,
    kernel: Vec<f64>,
    lifted: Vec<f64>,
}

impl Table {
    pub(crate) fn add_kernel(&mut self, figures: Vec<Figure>) {
        for figure in figures {
            let value = figure.value;
            self.row(figure).kernel.push(value);
        }
    }

    pub(crate) fn add_lifted(&mut self, figures: Vec<Figure>) {
        for figure in figures {
            let value = figure.value;
            self.row(figure).lifted.push(value);
        }
    }

    /// The most telling ratios in one line.
    pub(crate) fn headline(&self) -> String {
        let parts = self
            .rows
            .iter()
            .filter_map(|row| Some(format!("{} {:.1}x", row.label.headline?, row.ratio())));
        parts.collect::<Vec<_>>().join(", ")
    }

    fn row(&mut self, figure: Figure) -> &mut Row {
        let at =
            self.rows.iter().position(|row| row.label.what == figure.what).unwrap_or_else(|| {
                self.rows.push(Row { label: figure, kernel: Vec::new(), lifted: Vec::new() });
                self.rows.len() - 1
            });
        &mut self.rows[at]
    }
}

impl Row {
    /// How many times better the lifted median is.
    fn ratio(&self) -> f64 {
        let (kernel, lifted) = (median(&self.kernel), median(&self.lifted));
        match self.label.better {
            Better::More => lifted / kernel,
            Better::Less => kernel / lifted,
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<44} {:>12} {:>12}   {:<14} {:>7}", "", "kernel TCP", "VMMC", "", "better")?;
        for row in &self.rows {
            let (kernel, lifted) = (number(median(&row.kernel)), number(median(&row.lifted)));
            let Figure { what, unit, .. } = row.label;
            writeln!(f, "{what:<44} {kernel:>12} {lifted:>12}   {unit:<14} {:>6.1}x", row.ratio())?;
        }
        Ok(())
    }
}

/// Three significant digits or so, thousands apart.
fn number(value: f64) -> String {
    if value < 10.0 {
        return format!("{value:.2}");
    }
    if value < 1000.0 {
        return format!("{value:.1}");
    }
    let digits = format!("{value:.0}");
    let groups: Vec<_> =
        digits.as_bytes().rchunks(3).rev().map(|group| String::from_utf8_lossy(group)).collect();
    groups.join(" ")
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::{Better, Figure, Table, median, number};

    fn figure(value: f64, better: Better) -> Vec<Figure> {
        vec![Figure { what: "w", unit: "us", better, value, headline: Some("w") }]
    }

    #[test]
    fn compares_medians_in_the_direction_that_is_better() {
        let mut table = Table::default();
        for (kernel, lifted) in [(80.0, 2.0), (90.0, 4.0), (1000.0, 1000.0)] {
            table.add_kernel(figure(kernel, Better::Less));
            table.add_lifted(figure(lifted, Better::Less));
        }
        assert_eq!(table.headline(), "w 22.5x");
        let mut table = Table::default();
        table.add_kernel(figure(10.0, Better::More));
        table.add_lifted(figure(25.0, Better::More));
        assert_eq!(table.headline(), "w 2.5x");
    }

    #[test]
    fn writes_numbers_for_people() {
        assert_eq!(number(0.1234), "0.12");
        assert_eq!(number(1_234_567.8), "1 234 568");
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
    }
}
