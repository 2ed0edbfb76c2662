//! Blocks mean what GGUF's own tools say: vectors made with the `gguf` Python package.

use shoal_kernels::{Dtype, Matrix};

#[test]
fn dequantize_agrees_with_the_gguf_package() {
    let lines = include_str!("gguf_vectors.txt").lines();
    let mut seen = Vec::new();
    for line in lines.filter(|line| !line.starts_with('#')) {
        let [name, block, values] = line.split(' ').collect::<Vec<_>>().try_into().unwrap();
        let dtype = Dtype::from_name(name).unwrap();
        let expected: Vec<f32> = hex(values)
            .as_chunks()
            .0
            .iter()
            .map(|&bytes| f32::from_le_bytes(bytes))
            .collect();
        assert_eq!(expected.len(), dtype.block_len());
        let matrix = Matrix::new(dtype, 1, dtype.block_len(), hex(block)).unwrap();
        let mut out = vec![0.0; dtype.block_len()];
        matrix.dequantize_row(0, &mut out);
        assert_eq!(out, expected, "{name}");
        seen.push(dtype);
    }
    assert_eq!(seen, &Dtype::ALL[3..], "every quantised format");
}

#[test]
fn floats_widen_exactly() {
    let check = |dtype, bytes: &[u8]| {
        let mut out = [0.0; 3];
        let matrix = Matrix::new(dtype, 1, 3, bytes.to_vec()).unwrap();
        matrix.dequantize_row(0, &mut out);
        assert_eq!(out, [1.0, -2.5, 0.0], "{dtype}");
    };
    check(Dtype::F32, &[0, 0, 128, 63, 0, 0, 32, 192, 0, 0, 0, 0]);
    check(Dtype::F16, &[0, 60, 0, 193, 0, 0]);
    check(Dtype::Bf16, &[128, 63, 32, 192, 0, 0]);
}

fn hex(digits: &str) -> Vec<u8> {
    (0..digits.len())
        .step_by(2)
        .map(|i| u8::from_str_radix(&digits[i..i + 2], 16).unwrap())
        .collect()
}
