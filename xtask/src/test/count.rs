//! Counting tests in what `cargo test` prints.

use std::ops::Add;

/// Tests, or steps that are not tests.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Count {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
    pub(crate) skipped: usize,
}

impl Count {
    /// Sums the `test result:` lines. A test that says `SKIPPED:` on standard error ended well without having tried
    /// anything: it counts as skipped, not as passed. Ignored tests count as skipped.
    pub(crate) fn of_tests(output: &str) -> Count {
        let mut count = Count::default();
        for line in output.lines().filter(|line| line.starts_with("test result:")) {
            let number = |word: &str| {
                line.split([';', '.'])
                    .map(str::trim)
                    .find_map(|part| part.strip_suffix(word)?.trim().parse::<usize>().ok())
                    .unwrap_or_default()
            };
            count.passed += number("passed");
            count.failed += number("failed");
            count.skipped += number("ignored");
        }
        let skipped = skipped_lines(output).len().min(count.passed);
        count.passed -= skipped;
        count.skipped += skipped;
        count
    }

    /// One thing that passed, failed or was skipped.
    pub(crate) fn one(passed: bool) -> Count {
        Count { passed: usize::from(passed), failed: usize::from(!passed), skipped: 0 }
    }

    pub(crate) fn one_skipped() -> Count {
        Count { skipped: 1, ..Count::default() }
    }
}

impl Add for Count {
    type Output = Count;

    fn add(self, other: Count) -> Count {
        Count {
            passed: self.passed + other.passed,
            failed: self.failed + other.failed,
            skipped: self.skipped + other.skipped,
        }
    }
}

/// The lines by which tests say that they left themselves out, and why.
pub(crate) fn skipped_lines(output: &str) -> Vec<String> {
    // The line may follow the test's name on one line, which the test harness prints first.
    let from_mark = |line: &str| line.find("SKIPPED: ").map(|at| line[at..].to_owned());
    output.lines().filter_map(from_mark).collect()
}

#[cfg(test)]
mod tests {
    use super::{Count, skipped_lines};

    const OUTPUT: &str = "
running 4 tests
test a ... ok
SKIPPED: b: not installed: wrk
test b ... ok
test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s
test result: FAILED. 2 passed; 5 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s
";

    #[test]
    fn sums_results_and_tells_skipped_from_passed() {
        assert_eq!(Count::of_tests(OUTPUT), Count { passed: 4, failed: 5, skipped: 2 });
        assert_eq!(skipped_lines(OUTPUT), ["SKIPPED: b: not installed: wrk"]);
    }
}
