"""Seconds that the fingerprint of all weights takes per GB: `python benchmarks/fingerprint.py [--device cuda]`."""

import argparse
import time

import torch

from nnsight_mmflow.runs.fingerprint import weights_digest


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--gb", type=float, default=2.0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    width = 4096
    for dtype in (torch.float16, torch.float32):
        count = round(given.gb * 1e9 / dtype.itemsize / width**2)
        layers = [torch.nn.Linear(width, width, bias=False, device=given.device, dtype=dtype) for _ in range(count)]
        model = torch.nn.Sequential(*layers)
        weights_digest(layers[0])  # the factors, and the first call of each operation
        started, worked = time.perf_counter(), time.process_time()
        weights_digest(model)
        seconds, worked = time.perf_counter() - started, time.process_time() - worked
        size = sum(one.nbytes for one in model.parameters()) / 1e9
        print(
            f"{given.device}, {given.threads} thread(s), {dtype}: {size:.2f} GB, {seconds / size:.3f} s per GB"
            f" ({worked / size:.3f} s of processor time)"
        )


if __name__ == "__main__":
    main()
