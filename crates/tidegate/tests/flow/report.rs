//! The page of the report's keys is made from the definitions of the metrics.

use std::path::Path;

use tidegate_core::observe::metric::markdown;
use tidegate_data::pipeline::StageStats;

const BEGIN: &str = "<!-- metrics:begin -->\n";
const END: &str = "<!-- metrics:end -->";

/// `TIDY_WRITE=1` writes the table.
#[test]
fn the_page_lists_every_metric() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/report.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = page.split_once(BEGIN).unwrap();
    let (_, after) = rest.split_once(END).unwrap();
    let expected = format!("{before}{BEGIN}{}{END}{after}", markdown(StageStats::METRICS));
    if std::env::var_os("TIDY_WRITE").is_some() {
        std::fs::write(&path, &expected).unwrap();
    }
    let page = std::fs::read_to_string(&path).unwrap();
    assert!(page == expected, "docs/report.md differs: run this test with TIDY_WRITE=1 and commit the page");
}

#[test]
fn json_has_every_metric_under_its_name() {
    let json = serde_json::to_value(StageStats::default()).unwrap();
    let keys: Vec<&str> = json.as_object().unwrap().keys().map(String::as_str).collect();
    let names: Vec<&str> = StageStats::METRICS.iter().map(|metric| metric.name).collect();
    assert_eq!(keys, names);
}
