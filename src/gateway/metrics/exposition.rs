//! Figures with their names, and the two forms in which they are shown: Prometheus text (0.0.4) and JSON.
//! Where figures come from is others' business.

use crate::base::{BOUNDS_US, Spread, Times, Total};
use serde_json::{Map, Number, Value};
use std::fmt::Write;

/// One name, and all that there is under it.
pub struct Family {
    pub name: &'static str,
    /// Where the JSON has it, `.` between the members; `*` stands for the value of the label.
    pub path: &'static str,
    pub help: &'static str,
    pub kind: Kind,
    pub figures: Figures,
}

#[derive(Clone, Copy)]
pub enum Kind {
    /// Only grows.
    Counter,
    Gauge,
}

pub enum Figures {
    /// `None` where it is not known: null in JSON, no sample in text.
    One(Option<Number>),
    /// One for each value of a label.
    Each(&'static str, Vec<(&'static str, Number)>),
    /// The family's name ends in `_seconds`.
    Times(Spread),
}

impl From<Option<u64>> for Figures {
    fn from(n: Option<u64>) -> Figures {
        Figures::One(n.map(Number::from))
    }
}

impl From<Option<f64>> for Figures {
    fn from(n: Option<f64>) -> Figures {
        Figures::One(n.and_then(Number::from_f64))
    }
}

impl From<u64> for Figures {
    fn from(n: u64) -> Figures {
        Some(n).into()
    }
}

impl From<usize> for Figures {
    fn from(n: usize) -> Figures {
        (n as u64).into()
    }
}

impl From<&Total> for Figures {
    fn from(total: &Total) -> Figures {
        total.get().into()
    }
}

impl From<&Times> for Figures {
    fn from(times: &Times) -> Figures {
        Figures::Times(times.read())
    }
}

/// One figure for each value of `label`.
pub fn each<N: Into<Number>>(
    label: &'static str,
    figures: impl IntoIterator<Item = (&'static str, N)>,
) -> Figures {
    Figures::Each(label, figures.into_iter().map(|(of, n)| (of, n.into())).collect())
}

pub fn counter(
    name: &'static str,
    path: &'static str,
    figures: impl Into<Figures>,
    help: &'static str,
) -> Family {
    Family { name, path, help, kind: Kind::Counter, figures: figures.into() }
}

pub fn gauge(
    name: &'static str,
    path: &'static str,
    figures: impl Into<Figures>,
    help: &'static str,
) -> Family {
    Family { name, path, help, kind: Kind::Gauge, figures: figures.into() }
}

/// `Content-Type` of [`text`].
pub const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The figures as Prometheus reads them.
pub fn text(families: &[Family]) -> String {
    let mut out = String::with_capacity(families.len() * 160);
    families.iter().for_each(|family| family.write(&mut out));
    out
}

impl Family {
    fn write(&self, out: &mut String) {
        let Family { name, help, .. } = self;
        let kind = match (&self.figures, self.kind) {
            (Figures::One(None), _) => return,
            (Figures::Times(_), _) => "histogram",
            (_, Kind::Counter) => "counter",
            (_, Kind::Gauge) => "gauge",
        };
        // Writing to a string cannot fail.
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
        match &self.figures {
            Figures::One(number) => number.iter().for_each(|n| line(out, name, None, n)),
            Figures::Each(label, figures) => {
                figures.iter().for_each(|(of, n)| line(out, name, Some((label, of)), n));
            }
            Figures::Times(spread) => {
                let bucket = format!("{name}_bucket");
                for (bound_us, n) in BOUNDS_US.iter().zip(spread.within) {
                    line(out, &bucket, Some(("le", &seconds(*bound_us).to_string())), n);
                }
                line(out, &bucket, Some(("le", "+Inf")), spread.count);
                line(out, &format!("{name}_sum"), None, seconds(spread.sum_us));
                line(out, &format!("{name}_count"), None, spread.count);
            }
        }
    }
}

fn line(out: &mut String, name: &str, label: Option<(&str, &str)>, n: impl std::fmt::Display) {
    let _ = match label {
        Some((label, value)) => writeln!(out, "{name}{{{label}=\"{}\"}} {n}", escaped(value)),
        None => writeln!(out, "{name} {n}"),
    };
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}

/// The figures as members of one object (spec: control 11.3).
pub fn json(families: &[Family]) -> Map<String, Value> {
    let mut all = Map::new();
    for Family { path, figures, .. } in families {
        let mut put = |path: &str, of: &str, value: Value| *place(&mut all, path, of) = value;
        match figures {
            Figures::One(n) => put(path, "", n.clone().map_or(Value::Null, Value::Number)),
            Figures::Each(_, each) => {
                // There with no members, too.
                let (above, _) = path.split_once(".*").unwrap_or((path, ""));
                if each.is_empty() {
                    put(above, "", Map::new().into());
                }
                each.iter().for_each(|(of, n)| put(path, of, n.clone().into()));
            }
            Figures::Times(spread) => put(path, "", times_json(spread)),
        }
    }
    all
}

/// The member at `path`, made with all above it where it is missing.
fn place<'m>(all: &'m mut Map<String, Value>, path: &str, of: &str) -> &'m mut Value {
    let (first, rest) = path.split_once('.').unwrap_or((path, ""));
    let member = all.entry(if first == "*" { of } else { first });
    if rest.is_empty() {
        return member.or_insert(Value::Null);
    }
    let inner = member.or_insert_with(|| Map::new().into());
    match inner {
        Value::Object(inner) => place(inner, rest, of),
        // The table wants a figure and an object in one place: the last one stays.
        other => other,
    }
}

fn times_json(spread: &Spread) -> Value {
    let within = BOUNDS_US.iter().zip(spread.within);
    let within: Map<_, _> = within.map(|(us, n)| (seconds(*us).to_string(), n.into())).collect();
    serde_json::json!({
        "count": spread.count,
        "sum_seconds": seconds(spread.sum_us),
        "within_seconds": within,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::time::Duration;

    #[test]
    fn one_table_makes_both_forms() {
        let times = Times::default();
        times.note(Duration::from_millis(3));
        let families = [
            gauge("a", "x.a", 1_usize, "An a."),
            gauge("none", "x.none", None::<u64>, "Not known."),
            counter("c", "x.*.c", each("of", [("q\"\\\n", 2_u64), ("r", 3)]), "By name."),
            counter("no", "y.no.*", each("code", Vec::<(_, u64)>::new()), "None yet."),
            counter("t_seconds", "t", &times, "Times."),
        ];
        let text = text(&families);
        assert!(text.starts_with("# HELP a An a.\n# TYPE a gauge\na 1\n# HELP c "), "{text}");
        assert!(text.contains("c{of=\"q\\\"\\\\\\n\"} 2\nc{of=\"r\"} 3\n"), "{text}");
        assert!(text.contains("t_seconds_bucket{le=\"0.0025\"} 0\n"), "{text}");
        assert!(text.contains("t_seconds_bucket{le=\"0.005\"} 1\n"), "{text}");
        assert!(
            text.ends_with("{le=\"+Inf\"} 1\nt_seconds_sum 0.003\nt_seconds_count 1\n"),
            "{text}"
        );
        let shown = Value::from(json(&families));
        assert_eq!(shown["x"], json!({"a": 1, "none": null, "q\"\\\n": {"c": 2}, "r": {"c": 3}}));
        assert_eq!(shown["y"], json!({"no": {}}));
        assert_eq!(shown["t"]["within_seconds"]["0.005"], 1);
    }
}
