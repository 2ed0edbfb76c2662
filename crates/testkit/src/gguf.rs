//! Writing GGUF files.

use shoal_kernels::Dtype;

/// Writes GGUF version 3 (<https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>). Nothing is checked: tests also
/// want files that are wrong.
#[derive(Clone, Debug, Default)]
pub struct GgufWriter {
    metadata: Vec<(String, Vec<u8>)>,
    tensors: Vec<Tensor>,
}

#[derive(Clone, Debug)]
struct Tensor {
    name: String,
    dimensions: Vec<u64>,
    code: u32,
    data: Vec<u8>,
}

impl GgufWriter {
    /// Adds a text.
    pub fn text(&mut self, key: &str, value: &str) {
        self.value(key, 8, string(value));
    }

    /// Adds a 32-bit unsigned integer.
    pub fn number(&mut self, key: &str, value: u32) {
        self.value(key, 4, value.to_le_bytes().into());
    }

    /// Adds a 32-bit float.
    pub fn float(&mut self, key: &str, value: f32) {
        self.value(key, 6, value.to_le_bytes().into());
    }

    /// Adds a truth value.
    pub fn boolean(&mut self, key: &str, value: bool) {
        self.value(key, 7, vec![value.into()]);
    }

    /// Adds an array of texts.
    pub fn texts<S: AsRef<str>>(&mut self, key: &str, values: &[S]) {
        let elements = values.iter().flat_map(|value| string(value.as_ref()));
        self.value(key, 9, array(8, values.len(), elements));
    }

    /// Adds an array of 32-bit signed integers.
    pub fn integers(&mut self, key: &str, values: &[i32]) {
        let elements = values.iter().flat_map(|value| value.to_le_bytes());
        self.value(key, 9, array(5, values.len(), elements));
    }

    /// Adds a value of any kind, by the specification's number for it; a key that is there is replaced.
    pub fn value(&mut self, key: &str, kind: u32, value: Vec<u8>) {
        let encoded = [kind.to_le_bytes().to_vec(), value].concat();
        match self.metadata.iter_mut().find(|(name, _)| name == key) {
            Some((_, old)) => *old = encoded,
            None => self.metadata.push((key.to_owned(), encoded)),
        }
    }

    /// Adds a tensor; the first of `dimensions` is the length of a row.
    pub fn tensor(&mut self, name: &str, dimensions: &[u64], dtype: Dtype, data: Vec<u8>) {
        self.tensor_of(name, dimensions, code_of(dtype), data);
    }

    /// Adds a tensor of any type, by the specification's number for it.
    pub fn tensor_of(&mut self, name: &str, dimensions: &[u64], code: u32, data: Vec<u8>) {
        self.tensors.push(Tensor {
            name: name.to_owned(),
            dimensions: dimensions.to_vec(),
            code,
            data,
        });
    }

    /// Takes out a tensor.
    pub fn remove_tensor(&mut self, name: &str) {
        self.tensors.retain(|tensor| tensor.name != name);
    }

    /// Returns the file's bytes.
    #[must_use]
    pub fn finish(&self) -> Vec<u8> {
        let mut file = b"GGUF".to_vec();
        file.extend(3_u32.to_le_bytes());
        file.extend((self.tensors.len() as u64).to_le_bytes());
        file.extend((self.metadata.len() as u64).to_le_bytes());
        for (key, value) in &self.metadata {
            file.extend(string(key));
            file.extend(value);
        }
        let mut offset = 0_u64;
        for tensor in &self.tensors {
            file.extend(string(&tensor.name));
            file.extend((tensor.dimensions.len() as u32).to_le_bytes());
            file.extend(tensor.dimensions.iter().flat_map(|size| size.to_le_bytes()));
            file.extend(tensor.code.to_le_bytes());
            file.extend(offset.to_le_bytes());
            offset = (offset + tensor.data.len() as u64).next_multiple_of(ALIGNMENT as u64);
        }
        for tensor in &self.tensors {
            file.resize(file.len().next_multiple_of(ALIGNMENT), 0);
            file.extend(&tensor.data);
        }
        file
    }
}

fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

fn array(kind: u32, count: usize, elements: impl Iterator<Item = u8>) -> Vec<u8> {
    let mut bytes = kind.to_le_bytes().to_vec();
    bytes.extend((count as u64).to_le_bytes());
    bytes.extend(elements);
    bytes
}

fn code_of(dtype: Dtype) -> u32 {
    match dtype {
        Dtype::F32 => 0,
        Dtype::F16 => 1,
        Dtype::Q4_0 => 2,
        Dtype::Q4_1 => 3,
        Dtype::Q5_0 => 6,
        Dtype::Q5_1 => 7,
        Dtype::Q8_0 => 8,
        Dtype::Q4K => 12,
        Dtype::Q5K => 13,
        Dtype::Q6K => 14,
        Dtype::Iq4Nl => 20,
        Dtype::Bf16 => 30,
    }
}

const ALIGNMENT: usize = 32;
