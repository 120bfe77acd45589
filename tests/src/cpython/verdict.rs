//! What the interpreter's test runner says of each test.

use std::collections::BTreeMap;

/// How a test came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// As its author expects.
    Passed,
    /// Left out by itself: something that it needs is not there.
    Skipped,
    /// An assertion or an error.
    Failed,
}

impl Verdict {
    /// For people.
    pub fn word(self) -> &'static str {
        match self {
            Verdict::Passed => "passed",
            Verdict::Skipped => "skipped",
            Verdict::Failed => "failed",
        }
    }
}

/// Reads the report that `python3 -m test --junit-xml` writes. A test that appears several times came out as the worst of
/// them.
pub(super) fn of_report(xml: &str) -> BTreeMap<String, Verdict> {
    let mut verdicts = BTreeMap::new();
    // Whatever a test printed is escaped, so these marks are the runner's own.
    for case in xml.split("<testcase ").skip(1) {
        let Some(name) = case.split("name=\"").nth(1).and_then(|rest| rest.split('"').next())
        else {
            continue;
        };
        let verdict = if case.contains("<failure") || case.contains("<error") {
            Verdict::Failed
        } else if case.contains("<skipped") {
            Verdict::Skipped
        } else {
            Verdict::Passed
        };
        let worst = verdicts.entry(name.to_owned()).or_insert(verdict);
        *worst = verdict.max(*worst);
    }
    verdicts
}

#[cfg(test)]
mod tests {
    use super::{Verdict, of_report};

    const REPORT: &str = r#"<testsuites tests="5" errors="0" failures="1"><testsuite tests="5">
<testcase name="a.B.passes" status="run" result="completed" time="0.1" />
<testcase name="a.B.fails" status="run" result="completed" time="0.1"><failure type="AssertionError">&lt;error&gt;</failure></testcase>
<testcase name="a.B.skips" status="run" result="skipped" time="0.1"><skipped>not here</skipped></testcase>
<testcase name="a.B.twice" status="run" result="completed" time="0.1"><error>x</error></testcase>
<testcase name="a.B.twice" status="run" result="completed" time="0.1"><system-out>&lt;testcase name="no"</system-out></testcase>
</testsuite></testsuites>"#;

    #[test]
    fn every_test_of_a_report_has_one_verdict() {
        let verdicts: Vec<_> = of_report(REPORT).into_iter().collect();
        let expected = [
            ("a.B.fails", Verdict::Failed),
            ("a.B.passes", Verdict::Passed),
            ("a.B.skips", Verdict::Skipped),
            ("a.B.twice", Verdict::Failed),
        ];
        assert_eq!(verdicts, expected.map(|(name, verdict)| (name.to_owned(), verdict)));
    }

    #[test]
    fn a_report_that_was_not_written_has_none() {
        assert!(of_report("").is_empty());
    }
}
