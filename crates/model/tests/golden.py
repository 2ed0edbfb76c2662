"""Prints the logits that tests/forward.rs expects, from a forward pass in NumPy (f64) over weights that the Python
package `gguf` dequantises. `pip install gguf numpy`, then:
cargo run -p shoal-testkit --example tiny -- Q4_1 tiny.gguf && python3 golden.py tiny.gguf"""

import sys

import gguf
import numpy as np
from gguf.quants import dequantize

reader = gguf.GGUFReader(sys.argv[1])
weights = {
    t.name.removesuffix(".weight"): dequantize(t.data, t.tensor_type).astype(np.float64).reshape(t.shape[::-1])
    for t in reader.tensors
}


def field(key):
    return reader.fields["llama." + key].contents()


def norm(x, weight):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + field("attention.layer_norm_rms_epsilon")) * weight


def rotate(x):
    """Turns neighbouring pairs of every head as complex numbers."""
    pairs = x[..., 0::2] + 1j * x[..., 1::2]
    frequencies = field("rope.freq_base") ** (-2 * np.arange(pairs.shape[-1]) / x.shape[-1])
    pairs *= np.exp(1j * np.arange(len(x))[:, None, None] * frequencies)
    return np.stack([pairs.real, pairs.imag], -1).reshape(x.shape)


tokens = [5, 300, 17, 17, 400, 2, 511, 0, 90, 91, 92]
heads, kv_heads = field("attention.head_count"), field("attention.head_count_kv")
x = weights["token_embd"][tokens]
for layer in range(field("block_count")):
    w = {name: weights[f"blk.{layer}.{name}"] for name in
         "attn_norm attn_q attn_k attn_v attn_output ffn_norm ffn_gate ffn_up ffn_down".split()}
    h = norm(x, w["attn_norm"])
    q = rotate((h @ w["attn_q"].T).reshape(len(tokens), heads, -1))
    k = rotate((h @ w["attn_k"].T).reshape(len(tokens), kv_heads, -1)).repeat(heads // kv_heads, 1)
    v = (h @ w["attn_v"].T).reshape(len(tokens), kv_heads, -1).repeat(heads // kv_heads, 1)
    scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(q.shape[-1])
    scores = np.exp(np.where(np.tri(len(tokens)), scores, -np.inf))
    scores /= scores.sum(-1, keepdims=True)
    x = x + np.einsum("hqk,khd->qhd", scores, v).reshape(len(tokens), -1) @ w["attn_output"].T
    h = norm(x, w["ffn_norm"])
    gate = h @ w["ffn_gate"].T
    x = x + (gate / (1 + np.exp(-gate)) * (h @ w["ffn_up"].T)) @ w["ffn_down"].T
logits = norm(x[-1], weights["output_norm"]) @ weights["token_embd"].T
print([round(float(logits[token]), 4) for token in (0, 100, 259, 511)])
