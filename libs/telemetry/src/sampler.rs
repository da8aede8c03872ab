//! Which traces are recorded, by the samplers of the OpenTelemetry specification.

use std::sync::OnceLock;

use config::Value;

static SAMPLER: OnceLock<Sampler> = OnceLock::new();

/// Sets the sampler of the process. Only the first call takes effect; before it, `parentbased_always_on` is in force.
pub fn set(sampler: Sampler) {
    // In a test with two services in one process, both use the first sampler.
    let _ = SAMPLER.set(sampler);
}

/// Whether a trace is sampled, by the sampler in force.
pub(crate) fn decide(trace_id: u128, parent: Option<bool>) -> bool {
    SAMPLER.get().copied().unwrap_or_default().decide(trace_id, parent)
}

/// A value of `OTEL_TRACES_SAMPLER`, with that of `OTEL_TRACES_SAMPLER_ARG`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampler {
    /// Whether the decision of a parent is kept.
    parent_based: bool,
    /// The share of the other traces that is sampled.
    ratio: f64,
}

impl Default for Sampler {
    /// `parentbased_always_on`, as the specification has it.
    fn default() -> Self {
        Self { parent_based: true, ratio: 1.0 }
    }
}

impl Sampler {
    /// The sampler `kind`; `ratio` applies to the samplers that have one.
    pub fn new(kind: SamplerKind, ratio: Ratio) -> Self {
        let (parent_based, share) = match kind {
            SamplerKind::AlwaysOn => (false, 1.0),
            SamplerKind::AlwaysOff => (false, 0.0),
            SamplerKind::TraceIdRatio => (false, ratio.0),
            SamplerKind::ParentBasedAlwaysOn => (true, 1.0),
            SamplerKind::ParentBasedAlwaysOff => (true, 0.0),
            SamplerKind::ParentBasedTraceIdRatio => (true, ratio.0),
        };
        Self { parent_based, ratio: share }
    }

    /// Whether a trace is sampled; `parent` is the decision of the caller, if there is one.
    fn decide(self, trace_id: u128, parent: Option<bool>) -> bool {
        match parent.filter(|_| self.parent_based) {
            Some(decided) => decided,
            // As OpenTelemetry's SDKs for Go and Rust do it, so that every service of a trace decides the same.
            None => (trace_id as u64 >> 1) < (self.ratio * (1_u64 << 63) as f64) as u64,
        }
    }
}

/// The name of a sampler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SamplerKind {
    /// Every trace.
    AlwaysOn,
    /// None.
    AlwaysOff,
    /// A share of the traces.
    TraceIdRatio,
    /// The caller's decision; every trace that starts here.
    ParentBasedAlwaysOn,
    /// The caller's decision; no trace that starts here.
    ParentBasedAlwaysOff,
    /// The caller's decision; a share of the traces that start here.
    ParentBasedTraceIdRatio,
}

impl Value for SamplerKind {
    const EXPECTED: &'static str = "always_on, always_off or traceidratio, or one of them after parentbased_";

    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "always_on" => Ok(Self::AlwaysOn),
            "always_off" => Ok(Self::AlwaysOff),
            "traceidratio" => Ok(Self::TraceIdRatio),
            "parentbased_always_on" => Ok(Self::ParentBasedAlwaysOn),
            "parentbased_always_off" => Ok(Self::ParentBasedAlwaysOff),
            "parentbased_traceidratio" => Ok(Self::ParentBasedTraceIdRatio),
            _ => Err("it is not a supported sampler".to_owned()),
        }
    }
}

/// A share from 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ratio(f64);

impl Value for Ratio {
    const EXPECTED: &'static str = "a number from 0 to 1";

    fn parse(text: &str) -> Result<Self, String> {
        let number: f64 = text.parse().map_err(|_| "it is not a number".to_owned())?;
        if (0.0..=1.0).contains(&number) { Ok(Self(number)) } else { Err("it is out of range".to_owned()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampler(kind: &str, ratio: &str) -> Sampler {
        Sampler::new(SamplerKind::parse(kind).unwrap(), Ratio::parse(ratio).unwrap())
    }

    #[test]
    fn each_sampler_decides_as_the_specification_says() {
        // Without a parent, below one that is not sampled, below one that is.
        for (kind, expected) in [
            ("always_on", [true, true, true]),
            ("always_off", [false, false, false]),
            ("parentbased_always_on", [true, false, true]),
            ("parentbased_always_off", [false, false, true]),
        ] {
            let decided = [None, Some(false), Some(true)].map(|parent| sampler(kind, "1").decide(u128::MAX, parent));
            assert_eq!(decided, expected, "{kind}");
        }
        assert_eq!(Sampler::default(), sampler("parentbased_always_on", "0.5"));
    }

    #[test]
    fn every_service_samples_the_same_share_of_traces() {
        let quarter = sampler("traceidratio", "0.25");
        let taken = (0..10_000).filter(|_| quarter.decide(fastrand::u128(1..), Some(false))).count();
        assert!((2_000..3_000).contains(&taken), "{taken}");
        // By the low half of the id, as in the SDKs.
        assert!(quarter.decide(u128::from(u64::MAX / 4 - 1) | (1 << 127), None));
        assert!(!quarter.decide(u128::from(u64::MAX / 4 + 2), None));
        for id in [1, u128::MAX, u128::from(u64::MAX)] {
            assert!(sampler("traceidratio", "1").decide(id, None) && !sampler("traceidratio", "0").decide(id, None));
        }
        let below = sampler("parentbased_traceidratio", "0");
        assert!(below.decide(1, Some(true)) && !below.decide(1, None));
    }

    #[test]
    fn a_ratio_out_of_range_is_rejected() {
        for wrong in ["-0.1", "1.1", "NaN", "half", "inf"] {
            assert!(Ratio::parse(wrong).is_err(), "{wrong}");
        }
    }
}
