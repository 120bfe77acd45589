//! Percentiles over samples, and medians over rounds.

use hdrhistogram::Histogram;

/// Positive samples (ticks, scaled), kept with three significant digits in constant memory.
#[derive(Debug, Clone)]
pub(crate) struct Samples {
    histogram: Histogram<u64>,
}

/// Samples are multiplied by this, so that a tick divided by a batch keeps its digits.
const SCALE: f64 = 1000.0;

impl Samples {
    pub(crate) fn new() -> Samples {
        let histogram =
            Histogram::new_with_bounds(1, 1 << 52, 3).expect("constant bounds are valid");
        Samples { histogram }
    }

    #[inline]
    pub(crate) fn record(&mut self, value: f64) {
        self.histogram.saturating_record((value * SCALE) as u64);
    }

    pub(crate) fn merge(&mut self, other: &Samples) {
        self.histogram.add(&other.histogram).expect("both have the same bounds");
    }

    pub(crate) fn len(&self) -> u64 {
        self.histogram.len()
    }

    /// The value that a share `quantile` (0 to 1) of the samples does not exceed; zero without samples.
    pub(crate) fn quantile(&self, quantile: f64) -> f64 {
        self.histogram.value_at_quantile(quantile) as f64 / SCALE
    }
}

/// The middle value; the mean of the two middle ones of an even number; zero for none.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        n if n % 2 == 1 => sorted[n / 2],
        n => (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(&[]), 0.0);
        assert_eq!(median(&[3.0]), 3.0);
        assert_eq!(median(&[9.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 9.0]), 3.0);
    }

    #[test]
    fn quantiles_keep_three_digits() {
        let mut samples = Samples::new();
        for value in 1..=1000 {
            samples.record(f64::from(value));
        }
        for (quantile, expected) in [(0.5, 500.0), (0.99, 990.0), (0.999, 999.0)] {
            let found = samples.quantile(quantile);
            assert!((found - expected).abs() <= expected * 0.002, "{quantile}: {found}");
        }
        assert_eq!(samples.len(), 1000);
    }

    #[test]
    fn fractions_of_a_tick_are_kept() {
        let mut samples = Samples::new();
        samples.record(0.25);
        assert!((samples.quantile(0.5) - 0.25).abs() < 0.001);
    }

    #[test]
    fn merged_samples_count_together() {
        let (mut low, mut high) = (Samples::new(), Samples::new());
        (0..99).for_each(|_| low.record(1.0));
        high.record(100.0);
        low.merge(&high);
        assert_eq!(low.len(), 100);
        assert!(low.quantile(0.98) < 2.0 && low.quantile(0.999) > 99.0);
    }
}
