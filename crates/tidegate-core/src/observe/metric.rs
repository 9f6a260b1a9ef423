//! Metrics, each defined once: name, unit and meaning.
//!
//! Flow: [`metrics!`](crate::metrics) makes counters that threads add to, a reading of them, and a
//! table that describes each field. Reports, JSON and the documentation are made from that table.
//! Memory: 128 bytes for each counter, so that two threads never write the same cache line.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crossbeam_utils::CachePadded;

use crate::memory::size::mib;

/// What a value is counted in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Unit {
    /// A number of things.
    Count,
    /// Bytes.
    Bytes,
    /// Nanoseconds; summed over threads where several threads add to one counter.
    Nanoseconds,
    /// Microseconds.
    Microseconds,
    /// Hundredths.
    Percent,
    /// Yes or no.
    Flag,
    /// A word.
    Text,
}

impl Unit {
    /// The unit in tables and exports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Count => "count",
            Self::Bytes => "bytes",
            Self::Nanoseconds => "ns",
            Self::Microseconds => "us",
            Self::Percent => "percent",
            Self::Flag => "flag",
            Self::Text => "text",
        }
    }

    /// A value of this unit as a person reads it.
    ///
    /// ```
    /// use tidegate_core::observe::{Unit, Value};
    /// assert_eq!(Unit::Bytes.format(Value::Number(3 << 19)), "1.5 MiB");
    /// assert_eq!(Unit::Nanoseconds.format(Value::Number(1_500_000_000)), "1.500 s");
    /// assert_eq!(Unit::Percent.format(Value::Missing), "-");
    /// ```
    #[must_use]
    pub fn format(self, value: Value<'_>) -> String {
        match (self, value) {
            (Self::Bytes, Value::Number(bytes)) => format!("{} MiB", mib(bytes)),
            (Self::Nanoseconds, Value::Number(ns)) => format!("{:.3} s", ns as f64 / 1e9),
            (Self::Microseconds, Value::Number(us)) => format!("{:.3} ms", us as f64 / 1e3),
            (Self::Percent, Value::Number(percent)) => format!("{percent} %"),
            (_, value) => value.to_string(),
        }
    }
}

/// Whether a metric only grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A sum since the beginning.
    Counter,
    /// A state at the time of the reading.
    Gauge,
}

/// The definition of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MetricInfo {
    /// Its name in reports, JSON and exports.
    pub name: &'static str,
    /// What its value is counted in.
    pub unit: Unit,
    /// Whether it only grows.
    pub kind: Kind,
    /// What it tells, in a sentence or two.
    pub meaning: &'static str,
}

/// The definitions as a table in Markdown.
#[must_use]
pub fn markdown(metrics: &[MetricInfo]) -> String {
    let row = |m: &MetricInfo| format!("| `{}` | {} | {} |\n", m.name, m.unit.name(), m.meaning);
    let rows: String = metrics.iter().map(row).collect();
    format!("| metric | unit | meaning |\n|-|-|-|\n{rows}")
}

/// The value of a metric in a reading.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Value<'a> {
    /// A whole number.
    Number(u64),
    /// A fraction.
    Fraction(f64),
    /// Yes or no.
    Flag(bool),
    /// A word.
    Text(&'a str),
    /// There is no value.
    Missing,
}

impl fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Fraction(fraction) => write!(f, "{fraction:.3}"),
            Self::Flag(flag) => f.write_str(if *flag { "yes" } else { "no" }),
            Self::Text(text) => f.write_str(text),
            Self::Missing => f.write_str("-"),
        }
    }
}

/// A type that a field of a reading can have.
pub trait MetricValue {
    /// The value of the field.
    fn value(&self) -> Value<'_>;
}

macro_rules! metric_values {
    ($($type:ty: $self:ident => $value:expr),* $(,)?) => {
        $(impl MetricValue for $type {
            fn value(&self) -> Value<'_> {
                let $self = self;
                $value
            }
        })*
    };
}

metric_values! {
    u64: number => Value::Number(*number),
    u32: number => Value::Number(u64::from(*number)),
    usize: number => Value::Number(*number as u64),
    f64: fraction => Value::Fraction(*fraction),
    bool: flag => Value::Flag(*flag),
    &str: text => Value::Text(text),
    String: text => Value::Text(text),
}

impl<T: MetricValue> MetricValue for Option<T> {
    fn value(&self) -> Value<'_> {
        self.as_ref().map_or(Value::Missing, MetricValue::value)
    }
}

/// A number that threads add to, on a cache line of its own. Its atomic operations are relaxed.
#[derive(Debug, Default)]
pub struct Counter(CachePadded<AtomicU64>);

impl Counter {
    /// A counter at zero.
    #[must_use]
    pub const fn new() -> Self {
        Self(CachePadded::new(AtomicU64::new(0)))
    }

    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// Adds the nanoseconds since `began`.
    pub fn add_elapsed(&self, began: Instant) {
        self.add(began.elapsed().as_nanos() as u64);
    }

    /// Sets it to `n`: for counts that one thread keeps itself.
    pub fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }

    /// Raises it to `n`, if it is lower.
    pub fn raise(&self, n: u64) {
        self.0.fetch_max(n, Ordering::Relaxed);
    }

    /// The number now.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Defines metrics once: a struct of [`Counter`]s that threads add to, and a struct that is a
/// reading of all metrics.
///
/// The first struct names the counters, the second one lists all metrics in the order of reports.
/// A field is one of
/// - `counter name: Unit`: threads add to it, and readings have it as a `u64`;
/// - `internal name: Unit`: threads add to it, and readings do not have it: other metrics are
///   computed from it;
/// - `gauge name: Type = Unit`: readings alone have it. The type has a default and is a
///   [`MetricValue`].
///
/// The comment of a field is its meaning. The first struct gets `snapshot()`, which fills in the
/// counters and leaves gauges at their defaults; the second one gets the constant `METRICS` and
/// the iterator `values()`.
///
/// ```
/// use tidegate_core::observe::{MetricInfo, Unit, Value};
/// tidegate_core::metrics! {
///     /// Counters of the readers.
///     #[derive(Debug, Default)]
///     pub struct Counters;
///     /// A reading of the counters.
///     #[derive(Debug, Clone, Copy, Default, PartialEq)]
///     pub struct Reading {
///         /// Bytes that were read.
///         counter read_bytes: Bytes,
///         /// Bytes of samples among those read.
///         internal wanted_bytes: Bytes,
///         /// Bytes read for each hundred bytes of samples.
///         gauge amplification_percent: u64 = Percent,
///         /// How files are read, if there are files.
///         gauge mode: Option<&'static str> = Text,
///     }
/// }
/// let counters = Counters::default();
/// counters.read_bytes.add(300);
/// counters.wanted_bytes.add(200);
/// let amplification_percent = 100 * counters.read_bytes.get() / counters.wanted_bytes.get();
/// let reading = Reading { amplification_percent, ..counters.snapshot() };
/// assert_eq!((reading.read_bytes, reading.mode), (300, None));
/// let info: &MetricInfo = &Reading::METRICS[1];
/// assert_eq!((info.name, info.unit), ("amplification_percent", Unit::Percent));
/// assert_eq!(info.meaning, "Bytes read for each hundred bytes of samples.");
/// let values: Vec<_> = reading.values().map(|(_, value)| value).collect();
/// assert_eq!(values, [Value::Number(300), Value::Number(150), Value::Missing]);
/// ```
#[macro_export]
macro_rules! metrics {
    (
        $(#[$counters_attr:meta])* $counters_vis:vis struct $counters:ident;
        $(#[$reading_attr:meta])* $reading_vis:vis struct $reading:ident { $($fields:tt)* }
    ) => {
        $crate::metrics! { @sort
            ($(#[$counters_attr])* $counters_vis struct $counters)
            ($(#[$reading_attr])* $reading_vis struct $reading)
            counters [] fields [] rest [$($fields)*]
        }
    };
    (@sort $c:tt $r:tt counters [$($counters:tt)*] fields [$($fields:tt)*]
        rest [$(#[doc = $doc:literal])+ counter $name:ident: $unit:ident $(, $($rest:tt)*)?]) => {
        $crate::metrics! { @sort $c $r
            counters [$($counters)* ([$($doc)+] $name)]
            fields [$($fields)* ([$($doc)+] $name (u64) Counter $unit)]
            rest [$($($rest)*)?]
        }
    };
    (@sort $c:tt $r:tt counters [$($counters:tt)*] fields $fields:tt
        rest [$(#[doc = $doc:literal])+ internal $name:ident: $unit:ident $(, $($rest:tt)*)?]) => {
        $crate::metrics! { @sort $c $r
            counters [$($counters)* ([$($doc)+] $name)] fields $fields rest [$($($rest)*)?]
        }
    };
    (@sort $c:tt $r:tt counters $counters:tt fields [$($fields:tt)*]
        rest [$(#[doc = $doc:literal])+ gauge $name:ident: $type:ty = $unit:ident $(, $($rest:tt)*)?]) => {
        $crate::metrics! { @sort $c $r
            counters $counters
            fields [$($fields)* ([$($doc)+] $name ($type) Gauge $unit)]
            rest [$($($rest)*)?]
        }
    };
    (@sort
        ($(#[$counters_attr:meta])* $counters_vis:vis struct $counters:ident)
        ($(#[$reading_attr:meta])* $reading_vis:vis struct $reading:ident)
        counters [$(([$($counter_doc:literal)+] $counter:ident))*]
        fields [$(([$($doc:literal)+] $name:ident ($type:ty) $kind:ident $unit:ident))*]
        rest []) => {
        $(#[$counters_attr])*
        $counters_vis struct $counters {
            $($(#[doc = $counter_doc])+ $counters_vis $counter: $crate::observe::Counter,)*
        }

        $(#[$reading_attr])*
        $reading_vis struct $reading {
            $($(#[doc = $doc])+ $reading_vis $name: $type,)*
        }

        impl $counters {
            /// A reading of the counters; gauges have their defaults.
            #[must_use]
            $counters_vis fn snapshot(&self) -> $reading {
                let counters = self;
                $reading { $($name: $crate::metrics!(@read $kind counters $name),)* }
            }
        }

        impl $reading {
            /// The definition of every field, in their order.
            $reading_vis const METRICS: &'static [$crate::observe::MetricInfo] = &[
                $($crate::observe::MetricInfo {
                    name: stringify!($name),
                    unit: $crate::observe::Unit::$unit,
                    kind: $crate::observe::Kind::$kind,
                    meaning: concat!($($doc),+).trim_ascii(),
                },)*
            ];

            /// Every field with its definition, in their order.
            $reading_vis fn values(
                &self,
            ) -> impl Iterator<Item = (&'static $crate::observe::MetricInfo, $crate::observe::Value<'_>)> {
                Self::METRICS.iter().zip([$($crate::observe::MetricValue::value(&self.$name)),*])
            }
        }
    };
    (@read Counter $counters:ident $name:ident) => { $counters.$name.get() };
    (@read Gauge $counters:ident $name:ident) => { ::std::default::Default::default() };
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    crate::metrics! {
        /// Counters.
        #[derive(Debug, Default)]
        struct Counters;
        /// A reading.
        #[derive(Debug, Clone, Copy, Default, PartialEq, serde::Serialize)]
        struct Reading {
            /// Whether it is remote.
            gauge remote: bool = Flag,
            /// Reads.
            counter reads: Count,
            /// Only for computing.
            internal hidden: Count,
            /// Time in reads,
            /// over all readers.
            counter read_ns: Nanoseconds,
            /// A fraction.
            gauge share: Option<f64> = Percent,
            /// A word.
            gauge codec: Option<&'static str> = Text,
        }
    }

    #[test]
    fn one_list_makes_counters_reading_and_table() {
        let counters = Counters::default();
        counters.reads.add(2);
        counters.reads.add(1);
        counters.hidden.raise(7);
        counters.hidden.raise(5);
        counters.read_ns.add_elapsed(Instant::now());
        counters.read_ns.set(9);
        assert_eq!(counters.hidden.get(), 7);
        let reading = Reading { remote: true, share: Some(0.5), ..counters.snapshot() };
        let json = serde_json::to_string(&reading).unwrap();
        assert_eq!(json, r#"{"remote":true,"reads":3,"read_ns":9,"share":0.5,"codec":null}"#);
        let told: Vec<String> =
            reading.values().map(|(info, value)| format!("{}={value}", info.name)).collect();
        assert_eq!(told, ["remote=yes", "reads=3", "read_ns=9", "share=0.500", "codec=-"]);
        let info = Reading::METRICS[2];
        assert_eq!((info.kind, info.meaning), (Kind::Counter, "Time in reads, over all readers."));
        assert!(markdown(Reading::METRICS).ends_with("| `codec` | text | A word. |\n"));
    }
}
