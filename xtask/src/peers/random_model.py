"""Writes a GGUF file of a llama-family model with random weights: a shape to measure, not to talk to.

    random_model.py FORMAT TOKENIZER.gguf OUT.gguf

FORMAT (Q4_0, Q4_K or Q8_0) is that of every matrix. The tokenizer is copied from a real model. Weights spread around 0
like trained ones, so that activations stay finite; the seed is fixed, so that every machine measures the same file.
"""

import os
import sys

import gguf
import numpy as np

LAYERS, WIDTH, FFN, HEADS, KV_HEADS, CONTEXT = 16, 2048, 8192, 32, 8, 8192
DEVIATION = 0.02


def halves(values):
    """Half-precision floats as bytes, two for each value."""
    return values.astype(np.float16).view(np.uint8).reshape(len(values), 2)


def q4_0(count, random):
    scale = DEVIATION / 4.6 * random.uniform(0.8, 1.2, count)
    return np.hstack([halves(scale), random.integers(0, 256, (count, 16), np.uint8)])


def q8_0(count, random):
    scale = DEVIATION / 73 * random.uniform(0.8, 1.2, count)
    return np.hstack([halves(scale), random.integers(0, 256, (count, 32), np.uint8)])


def q4_k(count, random):
    # Six-bit scales with the upper bit set, each also the minimum of its eighth of the block; the minima's own scale is 7.5
    # times the other, so that weights are d s (q - 7.5).
    d = DEVIATION / 4.6 / 48 * random.uniform(0.8, 1.2, count)
    s = random.integers(32, 64, (count, 8), np.uint8)
    low, high = s[:, :4], s[:, 4:]
    packed = low | (high >> 4 << 6)
    scales = np.hstack([packed, packed, (high & 15) * 17])
    return np.hstack([halves(d), halves(7.5 * d), scales, random.integers(0, 256, (count, 128), np.uint8)])


FORMATS = {"Q4_0": (q4_0, 32), "Q8_0": (q8_0, 32), "Q4_K": (q4_k, 256)}


def tensors(vocabulary):
    """Names and shapes, norms as vectors."""
    yield "token_embd.weight", (vocabulary, WIDTH)
    yield "output_norm.weight", (WIDTH,)
    kv_width = WIDTH // HEADS * KV_HEADS
    for layer in range(LAYERS):
        for name, shape in (
            ("attn_norm", (WIDTH,)),
            ("attn_q", (WIDTH, WIDTH)),
            ("attn_k", (kv_width, WIDTH)),
            ("attn_v", (kv_width, WIDTH)),
            ("attn_output", (WIDTH, WIDTH)),
            ("ffn_norm", (WIDTH,)),
            ("ffn_gate", (FFN, WIDTH)),
            ("ffn_up", (FFN, WIDTH)),
            ("ffn_down", (WIDTH, FFN)),
        ):
            yield f"blk.{layer}.{name}.weight", shape


def copy_tokenizer(fields, out):
    """Copies the tokenizer; returns the size of its vocabulary."""
    tokens = fields["tokenizer.ggml.tokens"].contents()
    out.add_tokenizer_model(fields["tokenizer.ggml.model"].contents())
    out.add_tokenizer_pre(fields["tokenizer.ggml.pre"].contents())
    out.add_token_list(tokens)
    out.add_token_types(fields["tokenizer.ggml.token_type"].contents())
    out.add_token_merges(fields["tokenizer.ggml.merges"].contents())
    out.add_bos_token_id(fields["tokenizer.ggml.bos_token_id"].contents())
    out.add_eos_token_id(fields["tokenizer.ggml.eos_token_id"].contents())
    out.add_vocab_size(len(tokens))
    return len(tokens)


def write(name, tokenizer, path):
    blocks, block_len = FORMATS[name]
    quantization = gguf.GGMLQuantizationType[name]
    random = np.random.default_rng(1)
    out = gguf.GGUFWriter(path, "llama")
    out.add_name(f"1B random {name}")
    out.add_context_length(CONTEXT)
    out.add_embedding_length(WIDTH)
    out.add_block_count(LAYERS)
    out.add_feed_forward_length(FFN)
    out.add_head_count(HEADS)
    out.add_head_count_kv(KV_HEADS)
    out.add_layer_norm_rms_eps(1e-5)
    out.add_rope_freq_base(10000.0)
    out.add_rope_dimension_count(WIDTH // HEADS)
    vocabulary = copy_tokenizer(gguf.GGUFReader(tokenizer).fields, out)

    def data(shape):
        if len(shape) == 1:
            return np.ones(shape, np.float32)
        rows, cols = shape
        return blocks(rows * cols // block_len, random).reshape(rows, -1)

    for tensor, shape in tensors(vocabulary):
        if len(shape) == 1:
            out.add_tensor_info(tensor, shape, np.dtype(np.float32), 4 * shape[0])
        else:
            bytes_shape = gguf.quant_shape_to_byte_shape(shape, quantization)
            size = bytes_shape[0] * bytes_shape[1]
            out.add_tensor_info(tensor, bytes_shape, np.dtype(np.uint8), size, raw_dtype=quantization)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_ti_data_to_file()
    for _, shape in tensors(vocabulary):
        out.write_tensor_data(data(shape))
    out.close()


if __name__ == "__main__":
    format_name, tokenizer_path, out_path = sys.argv[1:]
    # Under another name until it is whole.
    write(format_name, tokenizer_path, out_path + ".part")
    os.replace(out_path + ".part", out_path)
