//! What a testbed is like.

use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Most nodes of a testbed.
pub const MAX_NODES: u8 = 64;
/// Most rails of a testbed.
pub const MAX_RAILS: u8 = 8;

/// What a testbed is like. Loss, rate and delay hold for every cable.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Options {
    /// Hosts, 1 to [`MAX_NODES`].
    pub nodes: u8,
    /// Networks that each of them is on, 1 to [`MAX_RAILS`].
    pub rails: u8,
    /// Packets lost on their way from a node to another. Where there is loss, packets leave the nodes one by one (no segmentation
    /// offload), so that each is lost by itself.
    pub loss: Option<Loss>,
    /// Of each cable, in either direction.
    pub rate: Option<Rate>,
    /// From a node to another, one way, and what a process takes to pass packets on.
    pub delay: Option<Duration>,
    /// Bytes of an IP packet at most: 1280 to 65,535.
    pub mtu: u16,
    /// The nodes' links are not encrypted: to measure what that costs.
    #[serde(default)]
    pub plaintext: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            nodes: 2,
            rails: 1,
            loss: None,
            rate: None,
            delay: None,
            mtu: 1500,
            plaintext: false,
        }
    }
}

/// A share of packets, 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Loss(pub f64);

/// Bits a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rate(pub u64);

/// Why an option cannot be understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error, displaydoc::Display)]
pub enum ParseError {
    /// not a share of packets: write it like 1% or 0.5%
    Loss,
    /// not a rate: write it like 10gbit, 100mbit or 64kbit
    Rate,
    /// not a time: write it like 50us, 2ms or 1s
    Duration,
}

impl FromStr for Loss {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let percent = text.strip_suffix('%').unwrap_or(text).parse::<f64>();
        let share = percent.map_err(|_| ParseError::Loss)? / 100.0;
        if (0.0..=1.0).contains(&share) { Ok(Self(share)) } else { Err(ParseError::Loss) }
    }
}

impl FromStr for Rate {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let units = [("gbit", 1e9), ("mbit", 1e6), ("kbit", 1e3), ("bit", 1.0)];
        let bits = scaled(text, &units).filter(|bits| (8e3..=1e12).contains(bits));
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "in range")]
        bits.map(|bits| Self(bits as u64)).ok_or(ParseError::Rate)
    }
}

/// Reads a time with its unit, `50us` to `10s`.
///
/// # Errors
/// [`ParseError::Duration`].
pub fn parse_duration(text: &str) -> Result<Duration, ParseError> {
    let units = [("us", 1e-6), ("ms", 1e-3), ("s", 1.0)];
    let seconds = scaled(text, &units).filter(|seconds| (0.0..=10.0).contains(seconds));
    seconds.map(Duration::from_secs_f64).ok_or(ParseError::Duration)
}

fn scaled(text: &str, units: &[(&str, f64)]) -> Option<f64> {
    let text = text.to_ascii_lowercase();
    let (number, factor) = units
        .iter()
        .find_map(|(unit, factor)| text.strip_suffix(unit).map(|number| (number, factor)))?;
    number.trim().parse::<f64>().ok().map(|number| number * factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_with_their_units_and_nonsense_is_refused() {
        assert_eq!("1%".parse(), Ok(Loss(0.01)));
        assert_eq!("100".parse(), Ok(Loss(1.0)));
        assert_eq!("10gbit".parse(), Ok(Rate(10_000_000_000)));
        assert_eq!("1.5Mbit".parse(), Ok(Rate(1_500_000)));
        assert_eq!(parse_duration("50us"), Ok(Duration::from_micros(50)));
        assert_eq!(parse_duration("2ms"), Ok(Duration::from_millis(2)));
        for text in ["", "%", "101%", "-1%", "nan%"] {
            assert_eq!(text.parse::<Loss>(), Err(ParseError::Loss), "{text}");
        }
        for text in ["", "10", "gbit", "-1gbit", "infgbit", "0bit"] {
            assert_eq!(text.parse::<Rate>(), Err(ParseError::Rate), "{text}");
        }
        for text in ["", "5", "us", "-1ms", "11s", "nans"] {
            assert_eq!(parse_duration(text), Err(ParseError::Duration), "{text}");
        }
    }
}
