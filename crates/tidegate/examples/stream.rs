//! Streams one epoch of images and prints the shapes of the first batch and the report.
//!
//! Without an argument it makes 200 synthetic photos in a temporary folder:
//!
//! ```text
//! cargo run --release -p tidegate --example stream [FOLDER OR PATTERN]
//! ```
#![expect(clippy::print_stdout, reason = "an example prints")]

use tidegate::dataset::synth::{self, Recipe};
use tidegate::{Error, FieldSpec, ImageSpec, Loader, Shuffle};

fn main() -> tidegate::Result<()> {
    let temporary = tempfile::tempdir().map_err(Error::io("a temporary folder"))?;
    let data = match std::env::args().nth(1) {
        Some(data) => data,
        None => {
            let recipe = Recipe { samples: 200, width: 200, ..Recipe::default() };
            synth::dataset(temporary.path(), &recipe, &|_| ())?;
            temporary.path().to_string_lossy().into_owned()
        }
    };
    // The field of a folder of images is called "image". Other fields are inferred.
    let image = FieldSpec::Image(ImageSpec { size: Some((128, 128)), ..ImageSpec::default() });
    let builder = Loader::builder(&data).batch_size(32).memory("64MiB").shuffle(Shuffle::Full).seed(7);
    let mut loader = builder.field("image", image).build()?;

    let mut rows = 0;
    for batch in loader.epoch()? {
        let batch = batch?;
        if batch.number == 0 {
            for column in &batch.columns {
                let bytes = batch.bytes(column).len();
                println!("{}: {} {:?} a row, {bytes} bytes", column.name, column.dtype.name(), column.shape);
            }
        }
        rows += batch.rows;
    }
    println!("{rows} rows in {} batches", loader.len());
    println!("{}", loader.report());
    Ok(())
}
