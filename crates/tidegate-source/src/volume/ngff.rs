//! OME-NGFF: images at several resolutions, and the places of their voxels in space.
//!
//! Flow: attributes of a Zarr group -> [`Image`]: its axes, and the scale and translation of each
//! level.
//! Memory: a few words a level.
//!
//! Specification: OME-NGFF 0.1 to 0.5, `multiscales`. A translation is the centre of the first
//! voxel. A level made by averaging should have one, and many do not: see `align`.

use serde_json::Value;

/// One axis.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Axis {
    pub(crate) name: String,
    /// A unit of length or time, if there is one.
    pub(crate) unit: Option<String>,
}

/// An image at one resolution.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Level {
    /// Its array, in the image's group.
    pub(crate) path: String,
    /// The length of a voxel along each axis.
    pub(crate) scale: Vec<f64>,
    /// The centre of its first voxel.
    pub(crate) translation: Vec<f64>,
    /// Whether its metadata have both; before version 0.4 none had.
    placed: bool,
}

/// A multiscale image.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Image {
    pub(crate) axes: Vec<Axis>,
    /// From the finest.
    pub(crate) levels: Vec<Level>,
}

impl Image {
    /// Whether the place of a level relative to the others is known.
    pub(crate) fn placed(&self, level: usize) -> bool {
        level == 0 || self.levels[level].placed
    }
}

/// The image in the attributes of a group; None if there is none.
///
/// # Errors
/// What the attributes lack.
pub(crate) fn image(attributes: &Value) -> Result<Option<Image>, String> {
    let described = attributes.get("ome").unwrap_or(attributes).get("multiscales");
    let Some(first) = described.and_then(|all| all.get(0)) else { return Ok(None) };
    let named = |axis: &Value| -> Option<Axis> {
        if let Some(name) = axis.as_str() {
            return Some(Axis { name: name.to_owned(), unit: None });
        }
        let unit = axis.get("unit").and_then(Value::as_str).map(str::to_owned);
        Some(Axis { name: axis.get("name")?.as_str()?.to_owned(), unit })
    };
    let axes = match first.get("axes").and_then(Value::as_array) {
        Some(axes) => axes.iter().map(named).collect::<Option<Vec<_>>>().ok_or("an axis without a name")?,
        // Before version 0.3 there were always these.
        None => ["t", "c", "z", "y", "x"].map(|name| Axis { name: name.into(), unit: None }).into(),
    };
    let common = transform(first, axes.len())?;
    let mut levels = Vec::new();
    for level in first.get("datasets").and_then(Value::as_array).ok_or("no datasets")? {
        let path = level.get("path").and_then(Value::as_str).ok_or("a dataset without a path")?.to_owned();
        if path.starts_with('/') || path.contains("://") || path.split('/').any(|part| part == "..") {
            return Err("a dataset whose path leads out of the image".into());
        }
        let (scale, translation) = transform(level, axes.len())?;
        let together = |a: &[f64], b: &[f64]| -> Vec<f64> { a.iter().zip(b).map(|(a, b)| a * b).collect() };
        let moved = together(&translation, &common.0).iter().zip(&common.1).map(|(a, b)| a + b).collect();
        levels.push(Level {
            path,
            scale: together(&scale, &common.0),
            translation: moved,
            placed: transformed(level),
        });
    }
    if levels.is_empty() {
        return Err("no datasets".into());
    }
    Ok(Some(Image { axes, levels }))
}

/// Whether the attributes are those of an image with this level.
pub(crate) fn names(attributes: &Value, level: &str) -> bool {
    let described = attributes.get("ome").unwrap_or(attributes).get("multiscales");
    let datasets = described.and_then(|all| all.get(0)?.get("datasets")?.as_array());
    datasets.is_some_and(|all| all.iter().any(|of| of.get("path").and_then(Value::as_str) == Some(level)))
}

/// Whether it has transformations.
fn transformed(of: &Value) -> bool {
    of.get("coordinateTransformations").and_then(Value::as_array).is_some_and(|all| !all.is_empty())
}

/// Scale and translation of a level, or of all.
fn transform(of: &Value, axes: usize) -> Result<(Vec<f64>, Vec<f64>), String> {
    let (mut scale, mut translation) = (vec![1.0; axes], vec![0.0; axes]);
    let none = Vec::new();
    for part in of.get("coordinateTransformations").and_then(Value::as_array).unwrap_or(&none) {
        let kind = part.get("type").and_then(Value::as_str).unwrap_or("(none)");
        let numbers = || -> Result<Vec<f64>, String> {
            let given = part.get(kind).and_then(Value::as_array);
            let numbers = given.and_then(|all| all.iter().map(Value::as_f64).collect::<Option<Vec<_>>>());
            let numbers = numbers.filter(|all| all.len() == axes && all.iter().all(|x| x.is_finite()));
            numbers.ok_or_else(|| format!("a {kind} that has not one number for each of the {axes} axes"))
        };
        match kind {
            "scale" => {
                for ((scale, translation), by) in scale.iter_mut().zip(&mut translation).zip(numbers()?) {
                    if by <= 0.0 {
                        return Err(format!("a scale of {by}"));
                    }
                    (*scale, *translation) = (*scale * by, *translation * by);
                }
            }
            "translation" => translation.iter_mut().zip(numbers()?).for_each(|(at, by)| *at += by),
            "identity" => {}
            other => {
                return Err(format!(
                    "a transformation of type {other:?}: only scale, translation and identity are known"
                ));
            }
        }
    }
    Ok((scale, translation))
}

/// A unit of length in metres; None for an unknown one.
pub(crate) fn metres(unit: &str) -> Option<f64> {
    Some(match unit {
        "angstrom" => 1e-10,
        "picometer" | "pm" => 1e-12,
        "nanometer" | "nm" => 1e-9,
        "micrometer" | "micron" | "um" | "µm" => 1e-6,
        "millimeter" | "mm" => 1e-3,
        "centimeter" | "cm" => 1e-2,
        "meter" | "m" => 1.0,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn levels_and_all_of_them_are_transformed() {
        let axes =
            json!([{"name": "z", "type": "space", "unit": "nanometer"}, {"name": "x", "type": "space"}]);
        let scale = |s: [f64; 2]| json!({"type": "scale", "scale": s});
        let attributes = json!({"ome": {"version": "0.5", "multiscales": [{
            "axes": axes,
            "datasets": [
                {"path": "s0", "coordinateTransformations": [scale([4.0, 2.0])]},
                {"path": "s1", "coordinateTransformations": [scale([8.0, 4.0]), {"type": "translation", "translation": [2.0, 1.0]}]},
            ],
            "coordinateTransformations": [scale([10.0, 10.0])],
        }]}});
        let found = image(&attributes).unwrap().unwrap();
        assert_eq!(found.axes[0], Axis { name: "z".into(), unit: Some("nanometer".into()) });
        assert_eq!(
            (&found.levels[1].scale, &found.levels[1].translation),
            (&vec![80.0, 40.0], &vec![20.0, 10.0])
        );
        assert_eq!(image(&json!({"other": 1})), Ok(None));
        // An old one, and what makes no sense.
        let old =
            image(&json!({"multiscales": [{"datasets": [{"path": "0"}, {"path": "1"}]}]})).unwrap().unwrap();
        assert_eq!((old.axes.len(), &old.levels[0].scale), (5, &vec![1.0; 5]));
        assert_eq!((old.placed(0), old.placed(1), found.placed(1)), (true, false, true));
        for (part, word) in [
            (json!({"type": "affine"}), "affine"),
            (json!({"type": "scale", "scale": [1.0]}), "each of the 5"),
            (json!({"type": "scale", "scale": [1.0, 1.0, 0.0, 1.0, 1.0]}), "scale of 0"),
        ] {
            let bad =
                json!({"multiscales": [{"datasets": [{"path": "0", "coordinateTransformations": [part]}]}]});
            assert!(image(&bad).unwrap_err().contains(word));
        }
    }
}
