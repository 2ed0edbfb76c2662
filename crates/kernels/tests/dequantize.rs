//! Weights mean what their own tools say: vectors made with the `gguf` and `mlx` Python packages.

use shoal_kernels::{Dtype, Matrix, MlxArrays, MlxFormat};

#[test]
fn dequantize_agrees_with_the_gguf_package() {
    let lines = include_str!("gguf_vectors.txt").lines();
    let mut seen = Vec::new();
    for line in lines.filter(|line| !line.starts_with('#')) {
        let [name, block, values] = line.split(' ').collect::<Vec<_>>().try_into().unwrap();
        let dtype = Dtype::from_name(name).unwrap();
        let expected = floats(values);
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
fn dequantize_agrees_with_the_mlx_package() {
    let lines = include_str!("mlx_vectors.txt").lines();
    let mut seen = Vec::new();
    for line in lines.filter(|line| !line.starts_with('#')) {
        let [
            mode,
            bits,
            group,
            dtype,
            global,
            codes,
            scales,
            biases,
            values,
        ] = line.split(' ').collect::<Vec<_>>().try_into().unwrap();
        let (codes, scales, biases) = (hex(codes), hex(scales), hex(biases));
        let format = match mode {
            "affine" => MlxFormat::Affine {
                bits: bits.parse().unwrap(),
                group: group.parse().unwrap(),
                floats: Dtype::from_name(dtype).unwrap(),
            },
            "mxfp4" => MlxFormat::MxFp4,
            "nvfp4" => MlxFormat::NvFp4,
            "mxfp8" => MlxFormat::MxFp8,
            _ => panic!("{mode}"),
        };
        let arrays = MlxArrays {
            codes: &codes,
            scales: &scales,
            biases: &biases,
            global_scale: floats(global).first().copied(),
        };
        let expected = floats(values);
        let matrix = Matrix::from_mlx(format, 1, expected.len(), arrays).unwrap();
        let mut out = vec![0.0; expected.len()];
        matrix.dequantize_row(0, &mut out);
        assert_eq!(out, expected, "{format:?}");
        seen.push((mode, bits));
    }
    seen.dedup();
    let affine = ["2", "3", "4", "5", "6", "8"].map(|bits| ("affine", bits));
    let others = [("mxfp4", "4"), ("nvfp4", "4"), ("mxfp8", "8")];
    assert_eq!(seen, [&affine[..], &others].concat(), "every format");
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

fn floats(digits: &str) -> Vec<f32> {
    let bytes = hex(digits);
    let floats = bytes.as_chunks().0.iter();
    floats.map(|&bytes| f32::from_le_bytes(bytes)).collect()
}

/// Bytes in hex, or `-` for none.
fn hex(digits: &str) -> Vec<u8> {
    let digits = digits.trim_start_matches('-');
    (0..digits.len())
        .step_by(2)
        .map(|i| u8::from_str_radix(&digits[i..i + 2], 16).unwrap())
        .collect()
}
