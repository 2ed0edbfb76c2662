//! Families of models: each is a function from a file's metadata to a [`ModelSpec`]. Only here are families named.

mod llama;
mod rope;

use crate::error::ModelError;
use crate::gguf::{Gguf, Value};
use crate::spec::{ModelSpec, Split, WeightSpec};

struct Family {
    architecture: &'static str,
    spec: fn(&Source<'_>) -> Result<ModelSpec, ModelError>,
}

const FAMILIES: &[Family] = &[Family {
    architecture: "llama",
    spec: llama::spec,
}];

/// Reads the spec of whatever family the file is of.
pub(crate) fn spec(file: &Gguf) -> Result<ModelSpec, ModelError> {
    let architecture = text(file, "general.architecture")?;
    let Some(family) = FAMILIES
        .iter()
        .find(|family| family.architecture == architecture)
    else {
        return Err(ModelError::Architecture {
            name: architecture.to_owned(),
            supported: FAMILIES
                .iter()
                .map(|family| family.architecture)
                .collect::<Vec<_>>()
                .join(", "),
        });
    };
    let spec = (family.spec)(&Source { file, architecture })?;
    check_all_used(file, &spec)?;
    Ok(spec)
}

/// A file seen by a family: keys without their prefix, weights by their name and expected shape.
struct Source<'a> {
    file: &'a Gguf,
    architecture: &'a str,
}

impl Source<'_> {
    fn value(&self, key: &str) -> Option<&Value> {
        self.file.metadata(&format!("{}.{key}", self.architecture))
    }

    fn bad(&self, key: &str, problem: &'static str) -> ModelError {
        ModelError::Metadata {
            key: format!("{}.{key}", self.architecture),
            problem,
        }
    }

    fn optional_float(&self, key: &str) -> Result<Option<f32>, ModelError> {
        self.value(key)
            .map(|value| {
                value
                    .as_f64()
                    .map(|value| value as f32)
                    .filter(|value| value.is_finite())
                    .ok_or_else(|| self.bad(key, "not a finite number"))
            })
            .transpose()
    }

    fn optional_count(&self, key: &str) -> Result<Option<usize>, ModelError> {
        self.value(key)
            .map(|value| {
                value
                    .as_u64()
                    .filter(|count| *count <= COUNT_MAX)
                    .map(|count| count as usize)
                    .ok_or_else(|| self.bad(key, "not a count within reason"))
            })
            .transpose()
    }

    fn count(&self, key: &str) -> Result<usize, ModelError> {
        match self.optional_count(key)? {
            None => Err(self.bad(key, "missing")),
            Some(0) => Err(self.bad(key, "zero")),
            Some(count) => Ok(count),
        }
    }

    /// Finds a weight of a known shape.
    fn weight(
        &self,
        name: &str,
        rows: usize,
        cols: usize,
        split: Split,
    ) -> Result<WeightSpec, ModelError> {
        let name = format!("{name}.weight");
        let Some(tensor) = self.file.tensor(&name) else {
            return Err(ModelError::MissingTensor { name });
        };
        if (tensor.rows, tensor.cols) != (rows, cols) {
            return Err(ModelError::TensorShape {
                name,
                rows,
                cols,
                found_rows: tensor.rows,
                found_cols: tensor.cols,
            });
        }
        Ok(WeightSpec {
            name,
            dtype: tensor.dtype,
            rows,
            cols,
            split,
        })
    }

    fn has_weight(&self, name: &str) -> bool {
        self.file.tensor(&format!("{name}.weight")).is_some()
    }
}

fn text<'a>(file: &'a Gguf, key: &str) -> Result<&'a str, ModelError> {
    let bad = |problem| ModelError::Metadata {
        key: key.to_owned(),
        problem,
    };
    file.metadata(key)
        .ok_or_else(|| bad("missing"))?
        .as_str()
        .ok_or_else(|| bad("not a text"))
}

/// A weight that no part of the graph reads would silently change what the model says.
fn check_all_used(file: &Gguf, spec: &ModelSpec) -> Result<(), ModelError> {
    let used: std::collections::HashSet<&str> =
        spec.weights().map(|weight| weight.name.as_str()).collect();
    let unknown = file
        .tensors()
        .iter()
        .find(|tensor| !used.contains(tensor.name.as_str()) && tensor.name != rope::FACTORS);
    unknown.map_or(Ok(()), |tensor| {
        Err(ModelError::UnknownTensor {
            name: tensor.name.clone(),
            architecture: spec.architecture.clone(),
        })
    })
}

/// Far beyond any model, small enough that products of two counts do not overflow.
const COUNT_MAX: u64 = 1 << 28;
