//! Metrics in Prometheus' text format.

use serde::Serialize;

/// Most samples of one replica. The services have some hundred, without histograms.
const MAX_SAMPLES: usize = 1000;

/// One value of a metric.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Sample {
    pub(crate) name: String,
    #[serde(serialize_with = "as_object")]
    pub(crate) labels: Vec<(String, String)>,
    pub(crate) value: f64,
}

fn as_object<S: serde::Serializer>(pairs: &[(String, String)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(pairs.iter().map(|(name, value)| (name, value)))
}

impl Sample {
    pub(crate) fn label(&self, name: &str) -> Option<&str> {
        self.labels.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// The samples of a page in Prometheus' text format, the parts of histograms left out.
pub(crate) fn samples(page: &str) -> Vec<Sample> {
    let lines = page.lines().filter(|line| !line.starts_with('#'));
    let samples = lines.filter_map(sample).filter(|sample| sample.label("le").is_none());
    let is_histogram = |name: &str| name.ends_with("_seconds_sum") || name.ends_with("_seconds_count");
    samples.filter(|sample| !is_histogram(&sample.name)).take(MAX_SAMPLES).collect()
}

fn sample(line: &str) -> Option<Sample> {
    let (key, value) = line.trim_end().rsplit_once(' ')?;
    let value = value.parse().ok()?;
    let Some((name, labels)) = key.split_once('{') else {
        return Some(Sample { name: key.to_owned(), labels: Vec::new(), value });
    };
    let mut rest = labels.strip_suffix('}')?;
    let mut labels = Vec::new();
    while !rest.is_empty() {
        let (label, after) = rest.split_once("=\"")?;
        let mut text = String::new();
        let mut chars = after.char_indices();
        let end = loop {
            match chars.next()? {
                (at, '"') => break at,
                (_, '\\') => match chars.next()?.1 {
                    'n' => text.push('\n'),
                    other => text.push(other),
                },
                (_, other) => text.push(other),
            }
        };
        labels.push((label.to_owned(), text));
        rest = after[end + 1..].trim_start_matches(',');
    }
    Some(Sample { name: name.to_owned(), labels, value })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_prometheus_text() {
        let page = "# TYPE a counter\na{x=\"1\",y=\"say \\\"}, {\\\" \\\\\"} 2\nb 3.5\nc_seconds_bucket{le=\"0.1\"} 1\n\
            c_seconds_sum 1\nbroken{x=\"1 4\n";
        let found = samples(page);
        assert_eq!(found.len(), 2, "{found:?}");
        assert_eq!(
            (found[0].label("x"), found[0].label("y"), found[0].value),
            (Some("1"), Some("say \"}, {\" \\"), 2.0)
        );
        assert_eq!((found[1].name.as_str(), found[1].value), ("b", 3.5));
    }
}
