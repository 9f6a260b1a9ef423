//! `tidegate inspect`: shows schema, counts and sizes, and writes a page with samples.
//!
//! Flow: source -> text; evenly spread samples -> one HTML page that contains their images.
//! Memory: one sample at a time, and the page.
#![expect(clippy::print_stdout, reason = "a command line prints")]

use std::path::Path;

use base64::Engine as _;
use tidegate_core::memory::size::{counted, mib};
use tidegate_data::{Error, Result};
use tidegate_decode::{Field, Kind, Value};
use tidegate_source::{Source, SourceExt};

use crate::html::{append, escape};

pub(super) fn inspect(url: &str, html: Option<&Path>, samples: u64) -> Result<()> {
    let source = tidegate_source::open(url, false)?;
    let sizes = source.size_bounds();
    let n = source.len();
    let shards = counted(source.shard_lengths().len() as u64, "shard");
    println!("{url}: {} in {shards}, {} MiB", counted(n, "sample"), mib(sizes.total_bytes));
    println!(
        "mean sample {} KiB, largest {} KiB",
        sizes.total_bytes / n.max(1) / 1024,
        sizes.sample_bytes / 1024
    );
    println!("largest decode {} MiB (sample {})", mib(sizes.scratch_bytes), sizes.scratch_id);
    println!("fingerprint {:016x}", source.fingerprint());
    for field in source.schema() {
        println!("  {:<20} {}", field.name, field.kind.name());
    }
    if !source.classes().is_empty() {
        println!(
            "{}: {}",
            counted(source.classes().len() as u64, "class"),
            source.classes()[..source.classes().len().min(10)].join(", ")
        );
    }
    for doubt in source.uncertain() {
        println!("uncertain: {doubt}");
    }
    for left_out in source.left_out() {
        println!("left out: {left_out}");
    }
    if let Some(path) = html {
        std::fs::write(path, page(&*source, url, samples.min(n))?).map_err(Error::io(path))?;
        println!("samples are in {}", path.display());
    }
    Ok(())
}

/// The page with samples.
fn page(source: &dyn Source, url: &str, samples: u64) -> Result<String> {
    let mut page = format!(
        "<!doctype html><meta charset=utf-8><title>{0}</title><style>body{{font:14px sans-serif}}figure{{display:\
         inline-block;width:180px;margin:6px;vertical-align:top}}img{{max-width:180px;max-height:140px}}figcaption{{\
         font-size:11px;overflow-wrap:anywhere}}</style><h1>{0}</h1><p>{1}</p>",
        escape(url),
        counted(source.len(), "sample")
    );
    for i in 0..samples {
        let id = i * source.len() / samples.max(1);
        let (at, bytes) = source.fetch(id)?;
        let mut caption = format!("{id}");
        page.push_str("<figure>");
        for (field, value) in source.schema().iter().zip(source.parse(&at, &bytes)?) {
            match value {
                Value::Bytes(b) if field.kind == Kind::Image => {
                    let kind = if b.starts_with(b"\x89PNG") {
                        "png"
                    } else if b.starts_with(b"RIFF") {
                        "webp"
                    } else {
                        "jpeg"
                    };
                    let data = base64::engine::general_purpose::STANDARD.encode(b);
                    append(&mut page, format_args!("<img src=\"data:image/{kind};base64,{data}\">"));
                }
                Value::Bytes(b) if matches!(field.kind, Kind::Text | Kind::Json | Kind::Int) => {
                    let text = String::from_utf8_lossy(b);
                    let text = class_name(source, field, text.trim().parse().ok()).map_or(text, Into::into);
                    let text: String = text.chars().take(80).collect();
                    append(&mut caption, format_args!(" · {}: {}", escape(&field.name), escape(&text)));
                }
                Value::Int(x) => {
                    let text = class_name(source, field, Some(x)).map_or(x.to_string(), escape);
                    append(&mut caption, format_args!(" · {}: {text}", escape(&field.name)));
                }
                Value::Float(x) => append(&mut caption, format_args!(" · {}: {x}", escape(&field.name))),
                _ => {}
            }
        }
        append(&mut page, format_args!("<figcaption>{caption}</figcaption></figure>"));
    }
    Ok(page)
}

/// The name of a class, where the field is the label.
fn class_name<'a>(source: &'a dyn Source, field: &Field, label: Option<i64>) -> Option<&'a str> {
    let is_label = field.kind == Kind::Int && matches!(&*field.name, "label" | "cls");
    let class = label.filter(|_| is_label).and_then(|label| usize::try_from(label).ok())?;
    source.classes().get(class).map(String::as_str)
}
