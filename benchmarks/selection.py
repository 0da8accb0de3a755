# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""What joint selection costs: time against the literal algorithm and against its own matrix products, memory, growth.

    python benchmarks/selection.py              # the table, and benchmarks/results/selection.json
    python benchmarks/selection.py --quick      # a small size, to see that it runs
    python benchmarks/selection.py --device cuda --output selection.json    # another table, of any device

Three ways to draw the same sub-batch, timed in one run so that their ratios mean something on a busy machine too:

- `ours`: `jest_hf.selection.select_jointly`.
- `literal`: the algorithm as the paper prints it (arXiv 2406.17711, Algorithm 1): whole loss matrices of learner and
  reference, and for every chunk the score matrix multiplied by a mask of the drawn rows, then of the drawn columns,
  and summed. Only its sampling is Gumbel-top-k here too, since exp() of such scores overflows.
- `products`: nothing but the matrix products that `ours` cannot do without, in the same tiles.

With `--device` a table of that device: the selection with its noise, the noise alone and the bare products, for three
sizes and, on CUDA, for each `selection_precision`; and how often the host waits for a CUDA device in one selection.

Peak memory is taken in fresh processes: the high-water mark of the resident set during the selection, less the
resident set before it, with an allocator told to hand freed blocks back to the system at once, so that it hides none.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path


# Waiting threads should sleep: spinning ones starve each other, and the figures, wherever a core is shared.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import Tensor  # noqa: E402

from jest_hf.selection import (  # noqa: E402
    ContrastiveEmbeddings,
    PairwiseScores,
    arithmetic,
    chunk_sizes,
    gumbel_noise,
    select_jointly,
)


TILE_ROWS = 1024
DEVICE_SIZES, DEVICE_WIDTH = (1280, 10240, 163840), 768
RESULTS = Path(__file__).parent / "results" / "selection.json"
MIB = 2**20


def make_models(size: int, width: int) -> tuple[ContrastiveEmbeddings, ContrastiveEmbeddings]:
    """Return random learner and reference embeddings with SigLIP-like scales and biases."""
    generator = torch.Generator().manual_seed(0)
    image, text, ref_image, ref_text = (F.normalize(torch.randn(size, width, generator=generator)) for _ in range(4))
    return ContrastiveEmbeddings(image, text, 10.0, -10.0), ContrastiveEmbeddings(ref_image, ref_text, 30.0, -12.0)


def ours(learner: ContrastiveEmbeddings, reference: ContrastiveEmbeddings, size: int, n_chunks: int) -> Tensor:
    """Select by jest_hf, noise included."""
    scores = PairwiseScores.from_embeddings(learner, reference)
    return select_jointly(scores, size, n_chunks, noise=gumbel_noise(0, 0, n_chunks, len(scores)))


def literal(learner: ContrastiveEmbeddings, reference: ContrastiveEmbeddings, size: int, n_chunks: int) -> Tensor:
    """Select by the paper's pseudo-code, with whole matrices."""
    scores = pair_losses(learner) - pair_losses(reference)
    own = scores.diagonal().clone()
    noise = gumbel_noise(0, 0, n_chunks, len(scores))
    is_drawn = torch.zeros(len(scores))
    drawn: list[Tensor] = []
    for chunk, chunk_size in enumerate(chunk_sizes(size, n_chunks)):
        log_weights = own
        if chunk:
            as_text = (scores * is_drawn[:, None]).sum(dim=0)
            as_image = (scores * is_drawn[None, :]).sum(dim=1)
            log_weights = own + as_text + as_image
        keys = (log_weights + noise[chunk]).masked_fill(is_drawn.bool(), -torch.inf)
        drawn.append(keys.topk(chunk_size).indices)
        is_drawn[drawn[-1]] = 1.0
    return torch.cat(drawn)


def pair_losses(model: ContrastiveEmbeddings) -> Tensor:
    """The sigmoid loss matrix of one model, `[B, B]`."""
    logits = (model.image @ model.text.T).mul_(model.logit_scale).add_(model.logit_bias)
    logits.diagonal().neg_()
    return F.softplus(logits)


def products(learner: ContrastiveEmbeddings, reference: ContrastiveEmbeddings, size: int, n_chunks: int) -> None:
    """The bare matrix products: candidates against each chunk but the last, two directions, two models."""
    begin = 0
    for chunk_size in chunk_sizes(size, n_chunks)[:-1]:
        drawn = slice(begin, begin + chunk_size)
        begin += chunk_size
        for model in (learner, reference):
            for rows, columns in ((model.image, model.text[drawn]), (model.text, model.image[drawn])):
                scratch = torch.empty(min(TILE_ROWS, len(rows)), len(columns))
                for at in range(0, len(rows), TILE_ROWS):
                    tile = rows[at : at + TILE_ROWS]
                    torch.mm(tile, columns.T, out=scratch[: len(tile)])


def seconds(function: Callable, *arguments: object) -> float:
    begin = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - begin


def alternate(functions: dict[str, Callable], repeats: int, *arguments: object) -> dict[str, float]:
    """Return the best of `repeats` timings of each function, taken in turn."""
    timings = [{name: seconds(function, *arguments) for name, function in functions.items()} for _ in range(repeats)]
    return {name: min(timing[name] for timing in timings) for name in functions}


def on_device(
    learner: ContrastiveEmbeddings, reference: ContrastiveEmbeddings, size: int, n_chunks: int, precision: str
) -> Tensor:
    """As `ours`, with the noise made on the device of the embeddings."""
    scores = PairwiseScores.from_embeddings(learner, reference, precision=precision)
    noise = gumbel_noise(0, 0, n_chunks, len(scores), device=learner.device)
    return select_jointly(scores, size, n_chunks, noise=noise)


def products_on_device(
    learner: ContrastiveEmbeddings, reference: ContrastiveEmbeddings, size: int, n_chunks: int, precision: str
) -> None:
    """As `products`, in one product for all candidates that fit into 256 MiB."""
    begin = 0
    with arithmetic.products(precision, learner.device):
        for chunk_size in chunk_sizes(size, n_chunks)[:-1]:
            drawn = slice(begin, begin + chunk_size)
            begin += chunk_size
            for model in (learner, reference):
                for rows, columns in ((model.image, model.text[drawn]), (model.text, model.image[drawn])):
                    for tile in rows.split(2**26 // chunk_size):
                        tile @ columns.T


def host_waits(function: Callable, *arguments: object) -> int:
    """How often the host waits for a CUDA device, by torch's own count."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            function(*arguments)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(one.message) for one in caught)


def measure_device(device: torch.device, size: int, width: int, precision: str, repeats: int) -> dict[str, object]:
    """Time the selection of a fifth of `size` candidates on a device, in milliseconds, the best of `repeats`."""
    is_cuda = device.type == "cuda"
    sub_batch, n_chunks = size // 5, 16
    models = [model.to(device) for model in make_models(size, width)]
    factors = models
    if precision == "bfloat16":
        factors = [
            ContrastiveEmbeddings(one.image.bfloat16(), one.text.bfloat16(), one.logit_scale, one.logit_bias)
            for one in models
        ]

    def waiting(function: Callable) -> Callable:
        def run(*arguments: object) -> None:
            function(*arguments)
            if is_cuda:
                torch.cuda.synchronize(device)

        return run

    functions = {
        "ours": waiting(lambda: on_device(*models, sub_batch, n_chunks, precision)),
        "noise": waiting(lambda: gumbel_noise(0, 0, n_chunks, size, device=device)),
        "products": waiting(lambda: products_on_device(*factors, sub_batch, n_chunks, precision)),
    }
    for function in functions.values():  # libraries are loaded and kernels compiled
        function()
    timing = alternate(functions, repeats)
    row = {"size": size, "sub_batch": sub_batch, "width": width, "n_chunks": n_chunks, "precision": precision}
    row |= {f"{name}_ms": 1000 * value for name, value in timing.items()}
    row["ratio_to_products"] = timing["ours"] / timing["products"]
    if is_cuda:
        row["host_waits"] = host_waits(on_device, *models, sub_batch, n_chunks, precision)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        on_device(*models, sub_batch, n_chunks, precision)
        row["peak_extra_mib"] = (torch.cuda.max_memory_allocated(device) - before) / MIB
    return row


def print_device_table(arguments: argparse.Namespace) -> None:
    device = torch.device(arguments.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    precisions = arithmetic.PRECISIONS if device.type == "cuda" else ("float32",)
    print(f"{name}, D = {arguments.device_width}, f = 0.8, N = 16")
    print("     B      b  precision   ours ms  products ms  noise ms  ours/products  waits  peak MiB")
    rows = []
    for size in arguments.device_sizes:
        for precision in precisions:
            row = measure_device(device, size, arguments.device_width, precision, arguments.repeats)
            rows.append(row)
            print(
                f"{size:>6} {row['sub_batch']:>6} {precision:>10} {row['ours_ms']:>9.2f} {row['products_ms']:>12.2f} "
                f"{row['noise_ms']:>9.2f} {row['ratio_to_products']:>14.2f} {row.get('host_waits', '-'):>6} "
                f"{row.get('peak_extra_mib', 0.0):>9.1f}",
                flush=True,
            )
    if arguments.output != RESULTS:
        found = {"device": name, "torch": torch.__version__, "repeats": arguments.repeats, "rows": rows}
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(found, indent=2) + "\n")
        print(f"\nWritten to {arguments.output}")


def resident(field: str) -> float:
    """A field of this process's memory status in MiB (Linux): `VmRSS` now, `VmHWM` its high-water mark."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(field + ":")[1].split()[0]) / 1024


def print_peak_memory(size: int, width: int, sub_batch: int, n_chunks: int) -> None:
    """Run in a fresh process by [`peak_memory`]: print the most that `ours` holds beyond its inputs, in MiB."""
    ours(*make_models(64, width), 16, 4)  # loads libraries and starts threads, which are not the selection's
    models = make_models(size, width)
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = resident("VmRSS")
    ours(*models, sub_batch, n_chunks)
    print(resident("VmHWM") - before)


def peak_memory(threads: int, *arguments: int) -> float:
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    command = [sys.executable, __file__, "--threads", str(threads), "--peak_memory", *map(str, arguments)]
    return float(subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout)


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.machine())


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=16384, help="super-batch B")
    parser.add_argument("--sub_batch", type=int, default=3264, help="sub-batch b")
    parser.add_argument("--n_chunks", type=int, default=16, help="chunks N")
    parser.add_argument("--widths", type=int, nargs="+", default=[128, 768], help="embedding widths D")
    parser.add_argument("--growth", type=int, nargs="+", default=[4096, 8192, 16384, 32768], help="B, at f = 0.8")
    parser.add_argument("--repeats", type=int, default=5, help="timings of each function, of which the best counts")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="a small size, to see that it runs; writes no results")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--device", help="print the table of this device, such as cuda or cpu, instead")
    parser.add_argument("--device_sizes", type=int, nargs="+", default=DEVICE_SIZES, help="B, with --device")
    parser.add_argument("--device_width", type=int, default=DEVICE_WIDTH, help="D, with --device")
    parser.add_argument("--peak_memory", nargs=4, type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.size, arguments.sub_batch, arguments.widths = 1024, 204, [32]
        arguments.growth, arguments.repeats = [512, 1024], 1
        arguments.device_sizes, arguments.device_width = [256, 512], 32
    return arguments


def measure_width(width: int, arguments: argparse.Namespace) -> dict[str, float]:
    shape = (arguments.sub_batch, arguments.n_chunks)
    models = make_models(arguments.size, width)
    timing = alternate({"ours": ours, "products": products}, arguments.repeats, *models, *shape)
    timing["literal"] = seconds(literal, *models, *shape)  # once: it takes many times as long
    return {
        "width": width,
        **{f"{name}_s": value for name, value in timing.items()},
        "speedup_over_literal": timing["literal"] / timing["ours"],
        "ratio_to_products": timing["ours"] / timing["products"],
        "peak_extra_mib": peak_memory(arguments.threads, arguments.size, width, *shape),
    }


def measure_growth(size: int, arguments: argparse.Namespace) -> dict[str, float]:
    width, sub_batch = arguments.widths[0], size // 5
    shape = (sub_batch, arguments.n_chunks)
    timing = alternate({"ours": ours}, arguments.repeats, *make_models(size, width), *shape)
    peak = peak_memory(arguments.threads, size, width, *shape)
    return {"size": size, "sub_batch": sub_batch, "width": width, "ours_s": timing["ours"], "peak_extra_mib": peak}


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    if arguments.peak_memory:
        print_peak_memory(*arguments.peak_memory)
        return
    if arguments.device:
        print_device_table(arguments)
        return

    print(f"B = {arguments.size}, b = {arguments.sub_batch}, N = {arguments.n_chunks}, {arguments.threads} threads")
    print("   D    ours s  products s  literal s  ours/products  literal/ours  ours MiB")
    widths = []
    for width in arguments.widths:
        row = measure_width(width, arguments)
        widths.append(row)
        print(
            f"{width:>4} {row['ours_s']:>9.3f} {row['products_s']:>11.3f} {row['literal_s']:>10.2f} "
            f"{row['ratio_to_products']:>14.2f} {row['speedup_over_literal']:>13.1f} {row['peak_extra_mib']:>9.1f}",
            flush=True,
        )

    print(f"\nGrowth at f = 0.8, D = {arguments.widths[0]}\n     B      b    ours s  ours MiB")
    growth = []
    for size in arguments.growth:
        row = measure_growth(size, arguments)
        growth.append(row)
        print(f"{size:>6} {row['sub_batch']:>6} {row['ours_s']:>9.3f} {row['peak_extra_mib']:>9.1f}", flush=True)

    if not arguments.quick:
        results = {
            "setting": {
                "size": arguments.size, "sub_batch": arguments.sub_batch, "n_chunks": arguments.n_chunks,
                "threads": arguments.threads, "repeats": arguments.repeats, "torch": torch.__version__,
                "cpu": processor(),
            },
            "widths": widths,
            "growth": growth,
        }  # fmt: skip
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(results, indent=2) + "\n")
        print(f"\nWritten to {arguments.output}")


if __name__ == "__main__":
    main()
