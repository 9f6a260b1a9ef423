//! Tensor trains in safetensors files, which other programs can read.
//!
//! Flow: [`TensorTrain`], [`TtMatrix`] -> a file with `core.0`, `core.1`, … in float64 -> the
//! same.
//! Memory: the file, during reading and writing.

use std::collections::HashMap;
use std::path::Path;

use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize};

use super::{Core, TensorTrain, TtMatrix};
use crate::{Error, Result};

/// Metadata keys for the digits of a matrix.
const DIGITS: [&str; 2] = ["rows", "cols"];

fn write(path: &Path, train: &TensorTrain, metadata: HashMap<String, String>) -> Result<()> {
    let bytes: Vec<Vec<u8>> =
        train.cores.iter().map(|core| core.data.iter().flat_map(|x| x.to_le_bytes()).collect()).collect();
    let wrong = |e: safetensors::SafeTensorError| Error::misuse(path, e.to_string());
    let mut views = Vec::with_capacity(bytes.len());
    for (axis, (core, bytes)) in train.cores.iter().zip(&bytes).enumerate() {
        let view = TensorView::new(Dtype::F64, vec![core.left, core.side, core.right], bytes);
        views.push((format!("core.{axis}"), view.map_err(wrong)?));
    }
    let whole = serialize(views, Some(metadata)).map_err(wrong)?;
    std::fs::write(path, whole).map_err(Error::io(path))
}

fn read(path: &Path) -> Result<(TensorTrain, HashMap<String, String>)> {
    let bytes = std::fs::read(path).map_err(Error::io(path))?;
    let wrong = |what: String| Error::format(path, 0, format!("not a tensor train: {what}"));
    let (_, head) = SafeTensors::read_metadata(&bytes).map_err(|e| wrong(e.to_string()))?;
    let file = SafeTensors::deserialize(&bytes).map_err(|e| wrong(e.to_string()))?;
    let mut cores = Vec::new();
    while let Ok(core) = file.tensor(&format!("core.{}", cores.len())) {
        let &[left, side, right] = core.shape() else {
            return Err(wrong(format!(
                "core.{} has the shape {:?}, not three axes",
                cores.len(),
                core.shape()
            )));
        };
        if core.dtype() != Dtype::F64 {
            return Err(wrong(format!("core.{} is {:?}, not F64", cores.len(), core.dtype())));
        }
        let data = core.data().as_chunks::<8>().0.iter().map(|x| f64::from_le_bytes(*x)).collect();
        cores.push(Core { left, side, right, data });
    }
    if cores.len() != file.len() {
        return Err(wrong(format!(
            "{} tensors, of which only {} are core.0, core.1 and so on",
            file.len(),
            cores.len()
        )));
    }
    let train = TensorTrain::new(cores).map_err(|e| wrong(e.to_string()))?;
    Ok((train, head.metadata().clone().unwrap_or_default()))
}

impl TensorTrain {
    /// Writes the train to a file.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn save(&self, path: &Path) -> Result<()> {
        write(path, self, HashMap::new())
    }

    /// Reads a file that [`TensorTrain::save`] wrote.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Format`] if the file does not hold a train.
    pub fn load(path: &Path) -> Result<Self> {
        Ok(read(path)?.0)
    }
}

impl TtMatrix {
    /// Writes the matrix to a file.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn save(&self, path: &Path) -> Result<()> {
        let text = |digits: &[usize]| digits.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
        let digits = DIGITS.into_iter().zip([text(&self.rows), text(&self.cols)]);
        write(path, &self.train, digits.map(|(name, text)| (name.to_owned(), text)).collect())
    }

    /// Reads a file that [`TtMatrix::save`] wrote.
    ///
    /// # Errors
    /// As [`TensorTrain::load`].
    pub fn load(path: &Path) -> Result<Self> {
        let (train, metadata) = read(path)?;
        let wrong = |what: String| Error::format(path, 0, what);
        let digits = DIGITS.map(|name| {
            let text = metadata.get(name)?;
            text.split(',').map(|digit| digit.parse().ok()).collect::<Option<Vec<usize>>>()
        });
        let [Some(rows), Some(cols)] = digits else {
            return Err(wrong("a tensor train without the digits of a matrix: load it as a train".into()));
        };
        Self::new(&rows, &cols, train).map_err(|e| wrong(e.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::super::Limit;
    use super::*;

    #[test]
    fn files_come_back_and_others_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.safetensors");
        let values: Vec<f64> = (0..60).map(|i| f64::from(i * i % 17)).collect();
        let limit = Limit { tolerance: 0.0, rank: None };
        let table = TtMatrix::decompose(&values, &[2, 3], &[5, 2], limit).unwrap();
        table.save(&path).unwrap();
        assert_eq!(TtMatrix::load(&path).unwrap(), table);
        assert_eq!(TensorTrain::load(&path).unwrap(), *table.train());
        table.train().save(&path).unwrap();
        assert!(TtMatrix::load(&path).unwrap_err().to_string().contains("without the digits"));
        let whole = std::fs::read(&path).unwrap();
        for cut in 0..whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            assert!(TensorTrain::load(&path).is_err(), "{cut} bytes");
        }
        assert!(TensorTrain::load(&dir.path().join("y")).unwrap_err().to_string().contains('y'));
    }
}
