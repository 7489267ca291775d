//! Reading the text of metrics that this process itself writes for `/metrics`.

/// A line of the text: a name, labels, a value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Line<'t> {
    /// With its suffix, such as `_total` or `_bucket`.
    pub name: &'t str,
    labels: &'t str,
    pub value: f64,
}

impl<'t> Line<'t> {
    /// The value of a label. The labels of this process have no quotes in their values.
    pub fn label(&self, name: &str) -> Option<&'t str> {
        self.labels.split(',').find_map(|label| {
            let (known, value) = label.split_once('=')?;
            (known == name).then(|| value.trim_matches('"'))
        })
    }
}

/// The lines that have a value.
pub fn lines(text: &str) -> impl Iterator<Item = Line<'_>> {
    text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
        let (name, labels, value) = match line.split_once('{') {
            Some((name, rest)) => {
                let (labels, value) = rest.split_once('}')?;
                (name, labels, value)
            }
            None => {
                let (name, value) = line.split_once(' ')?;
                (name, "", value)
            }
        };
        // An exemplar or a time may follow.
        let value = value.split_ascii_whitespace().next()?.parse().ok()?;
        Some(Line { name, labels, value })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_labels_and_values_are_read_and_the_rest_is_passed_over() {
        let text = "# HELP dashi_a Something.\n# TYPE dashi_a counter\ndashi_a_total{outcome=\"ok\",kind=\"x\"} 17\n\
                    dashi_b 0.25\ndashi_c_bucket{le=\"+Inf\"} 3 # {trace=\"1\"} 2\nnonsense\n# EOF\n";
        let read: Vec<_> = lines(text).collect();
        let names: Vec<_> = read.iter().map(|line| (line.name, line.value)).collect();
        assert_eq!(names, [("dashi_a_total", 17.0), ("dashi_b", 0.25), ("dashi_c_bucket", 3.0)]);
        assert_eq!([read[0].label("outcome"), read[0].label("kind")], [Some("ok"), Some("x")]);
        assert_eq!([read[0].label("out"), read[1].label("outcome")], [None, None]);
        assert_eq!(read[2].label("le"), Some("+Inf"));
    }
}
