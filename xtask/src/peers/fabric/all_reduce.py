"""The time of an all-reduce of f32 over MLX's ring, one process for each rank: MLX_RANK and MLX_HOSTFILE say which.

For each BYTES ROUNDS SAMPLES of the arguments, rank 0 prints a line `BYTES SECONDS` for each sample, the seconds being
those of one round.
"""

import sys
import time

import mlx.core as mx

group = mx.distributed.init(strict=True, backend="ring")
sizes = [int(word) for word in sys.argv[1:]]
for size, rounds, samples in zip(*[iter(sizes)] * 3):
    values = mx.ones(size // 4)
    summed = mx.distributed.all_sum(values, group=group, stream=mx.cpu)
    assert mx.all(summed == group.size()).item(), "a sum is wrong"
    values = mx.zeros(size // 4)
    mx.eval(values)
    for _ in range(samples):
        started = time.perf_counter()
        for _ in range(rounds):
            values = mx.distributed.all_sum(values, group=group, stream=mx.cpu)
            mx.eval(values)
        if group.rank() == 0:
            print(size, f"{(time.perf_counter() - started) / rounds:.9f}", flush=True)
