# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""What joint selection costs each of W ranks: counted on real processes, and on paper at the scale of the paper.

    python benchmarks/scale.py                  # both tables, and benchmarks/results/scale.json
    python benchmarks/scale.py --plan           # only the second, which needs no processes
    python benchmarks/scale.py --quick          # small sizes, to see that it runs

Measured: the same super-batch is drawn from by W = 1, 2 and 4 processes over gloo. Each counts

- FLOPs: those of its matrix products, by PyTorch's FLOP counter;
- bytes: what it holds of the super-batch (its share of the embeddings, noise and running sums), and the peak of all
  other tensors alive in the selection: some vectors of its share's length, and whatever B and W are the embeddings of
  one chunk's winners and one tile of logits. Memory inside an operation and the buffers of gloo are not seen;
- traffic: what it receives per chunk, against the bound of W b/N candidates of 16 bytes and b/N embeddings.

On paper: a super-batch of B = 163,840 (arXiv 2406.17711: f = 0.8, b = 32,768), float32 embeddings of two models, and
the step of a SigLIP B/16 at 256 px with 64 tokens: forward and backward of the sub-batch to train, a forward of the
super-batch to score, the reference cached. Selection is counted twice: its matrix products alone, as the step is
counted, and also with 20 operations for each logit's softplus (an exponential and a logarithm, each a polynomial of
some eight terms) and its sum. Sorting is not counted: on every rank, B/W keys and the candidates that it receives.

FLOPs are not seconds: selection works in float32, in which a GPU may be many times slower than in the bfloat16 of the
models, and its share of the time is so much larger.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from transformers import SiglipConfig

from jest_hf.distributed import Ranks
from jest_hf.report import format_table, forward_flops, step_flops
from jest_hf.selection import ContrastiveEmbeddings, PairwiseScores, chunk_sizes, draw_chunks, gumbel_noise


RESULTS = Path(__file__).parent / "results" / "scale.json"
MIB, TERA = 2**20, 1e12

CANDIDATE_BYTES = 16  # a float64 key and a position
SOFTPLUS_FLOPS = 20

# The largest tile of logits, by drawn examples and candidates, on a GPU: jest_hf/selection/parts.py.
TILE = (1024, 8192)


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that operations make, as long as they live.

    Args:
        given (`torch.Tensor`): Tensors that were there before, which do not count.
    """

    def __init__(self, *given: Tensor) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._seen = {tensor.untyped_storage()._cdata for tensor in given}

    def __torch_dispatch__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return
        self._seen.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.live -= size


def draw_share(size: int, width: int, sub_batch: int, n_chunks: int) -> dict[str, Any]:
    """Draw from a rank's share of a random super-batch, and count."""
    ranks = Ranks.world()
    start, stop = (size * rank // ranks.size for rank in (ranks.rank, ranks.rank + 1))
    generator = torch.Generator().manual_seed(0)
    # Every rank makes the whole super-batch, one tensor after the other, and keeps a copy of its rows only.
    images_and_texts = [
        F.normalize(torch.randn(size, width, generator=generator))[start:stop].clone() for _ in range(4)
    ]
    learner = ContrastiveEmbeddings(*images_and_texts[:2], 10.0, -10.0)
    reference = ContrastiveEmbeddings(*images_and_texts[2:], 30.0, -12.0)
    scores = PairwiseScores.from_embeddings(learner, reference)
    noise = gumbel_noise(0, 0, n_chunks, size, start=start, stop=stop)

    with LiveBytes(*images_and_texts) as running_sums:
        running = scores.start()
    del running

    indices = []
    with FlopCounterMode(display=False) as flops, LiveBytes(*images_and_texts, noise) as memory:
        for chunk in draw_chunks(scores, sub_batch, n_chunks, noise=noise, ranks=ranks):
            indices += chunk.indices.tolist()
    return {
        "indices": indices,
        "flops": flops.get_total_flops(),
        "embedding_bytes": sum(tensor.nbytes for tensor in images_and_texts),
        "noise_bytes": noise.nbytes,
        "running_sum_bytes": running_sums.peak,
        "peak_other_bytes": memory.peak - running_sums.peak,
        "received_per_chunk": [ranks.bytes_received / n_chunks],  # the mean: all chunks are drawn at once
    }


def _work(rank: int, world_size: int, folder: str, threads: int, shape: tuple[int, ...]) -> None:
    torch.set_num_threads(threads)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=world_size)
    Path(folder, str(rank)).write_text(json.dumps(draw_share(*shape)))
    dist.destroy_process_group()


def measure(world_size: int, threads: int, shape: tuple[int, ...]) -> list[dict[str, Any]]:
    """What each rank of a real group counts."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_work, (world_size, folder, threads, shape), nprocs=world_size)
        return [json.loads(Path(folder, str(rank)).read_text()) for rank in range(world_size)]


def traffic_bound(world_size: int, chunk_size: int, widths: list[int]) -> int:
    """Bytes that a rank may receive per chunk: W b/N candidates and b/N embeddings of images and texts."""
    return world_size * chunk_size * CANDIDATE_BYTES + chunk_size * sum(2 * 4 * width for width in widths)


def summarise(ranks: list[dict[str, Any]], chunk_size: int, width: int) -> dict[str, Any]:
    """The most that any rank counted."""
    most = {name: max(rank[name] for rank in ranks) for name in ranks[0] if name.endswith(("bytes", "flops"))}
    return {
        "world_size": len(ranks),
        **most,
        "received_per_chunk": max(max(rank["received_per_chunk"]) for rank in ranks),
        "received_per_chunk_bound": traffic_bound(len(ranks), chunk_size, [width, width]),
    }


def measured_rows(world_sizes: list[int], threads: int, shape: tuple[int, ...]) -> list[dict[str, Any]]:
    """Count for each number of ranks, and check that all of them draw the same."""
    size, width, sub_batch, n_chunks = shape
    rows, expected = [], None
    for world_size in world_sizes:
        ranks = measure(world_size, threads, shape)
        expected = ranks[0]["indices"] if expected is None else expected
        for rank, counted in enumerate(ranks):
            if counted["indices"] != expected:
                raise AssertionError(f"rank {rank} of {world_size} drew another sub-batch than {world_sizes[0]} did.")
        rows.append(summarise(ranks, chunk_sizes(sub_batch, n_chunks)[0], width))
    return rows


def held(row: dict[str, Any]) -> int:
    """Bytes that a rank keeps of the super-batch throughout a selection."""
    return row["embedding_bytes"] + row["noise_bytes"] + row["running_sum_bytes"]


def print_measured(rows: list[dict[str, Any]]) -> None:
    one = rows[0]
    lines = [
        [
            row["world_size"],
            row["flops"] / 1e9,
            row["flops"] / one["flops"],
            held(row) / MIB,
            held(row) / held(one),
            row["peak_other_bytes"] / MIB,
            (held(row) + row["peak_other_bytes"]) / (held(one) + one["peak_other_bytes"]),
            row["received_per_chunk"] / 1024,
            row["received_per_chunk_bound"] / 1024,
            row["received_per_chunk"] / row["received_per_chunk_bound"],
        ]
        for row in rows
    ]
    header = [
        "W", "GFLOPs", "of W=1", "held MiB", "of W=1", "peak other MiB", "both of W=1", "received KiB/chunk", "bound",
        "of it",
    ]  # fmt: skip
    print(format_table(header, lines))


def selection_flops(size: int, sub_batch: int, n_chunks: int, width: int) -> float:
    """Matrix products of a selection by two models: every candidate with every drawn example, in two directions."""
    met = sub_batch - chunk_sizes(sub_batch, n_chunks)[-1]  # nobody asks what the last chunk adds
    return 2.0 * width * 4 * size * met


def plan(
    size: int, sub_batch: int, n_chunks: int, width: int, world_sizes: list[int], config: SiglipConfig
) -> dict[str, Any]:
    """Arithmetic for one rank of W, and for the whole step."""
    sizes = chunk_sizes(sub_batch, n_chunks)
    embedding = 2 * 2 * 4 * width  # image and text, learner and reference, float32
    products = selection_flops(size, sub_batch, n_chunks, width)
    step = step_flops(sum(forward_flops(config).values()), sub_batch=sub_batch, super_batch=size)
    whole = {
        "training_flops": step.training,
        "scoring_flops": step.scoring,
        "selection_flops": products,
        "selection_elementwise_flops": products / (2 * width) * SOFTPLUS_FLOPS,
    }
    rows = []
    for world_size in world_sizes:
        share = -(-size // world_size)
        others = world_size - 1
        rows.append(
            {
                "world_size": world_size,
                "share": share,
                **{name: value / world_size for name, value in whole.items()},
                "embedding_bytes": embedding * share,
                "noise_bytes": 4 * n_chunks * share,
                "running_sum_bytes": 4 * 8 * share,
                # The winners' embeddings as they come and in order, and a tile of logits and of their softplus.
                "chunk_bytes": 2 * embedding * sizes[0] + 2 * 4 * min(sizes[0], TILE[0]) * min(share, TILE[1]),
                # At the most: no rank has more candidates than examples, and some winners are one's own.
                "candidates_received": sum(others * (1 + min(m, share)) * CANDIDATE_BYTES for m in sizes),
                "winners_received": embedding * sum(sizes[:-1]),
                "loss_gather_received": 2 * width * 4 * (sub_batch - sub_batch // world_size),
            }
        )
    return {"whole": whole, "share_per_cent": share_of_step(whole), "rows": rows}


def share_of_step(flops: dict[str, float]) -> dict[str, float]:
    """Per cent of the step's FLOPs that selection takes: of selection and training, or of these and scoring."""
    step, elementwise = flops["training_flops"], flops["selection_elementwise_flops"]
    products, scoring = flops["selection_flops"], flops["scoring_flops"]
    return {
        "products, scoring left out": 100 * products / (products + step),
        "products": 100 * products / (products + step + scoring),
        "products and elementwise, scoring left out": 100 * (products + elementwise) / (products + elementwise + step),
        "products and elementwise": 100 * (products + elementwise) / (products + elementwise + step + scoring),
    }


def print_plan(planned: dict[str, Any]) -> None:
    lines = [
        [
            row["world_size"],
            row["share"],
            row["embedding_bytes"] / MIB,
            (row["running_sum_bytes"] + row["noise_bytes"]) / MIB,
            row["chunk_bytes"] / MIB,
            row["candidates_received"] / MIB,
            row["winners_received"] / MIB,
            row["loss_gather_received"] / MIB,
            row["selection_flops"] / TERA,
            (row["selection_flops"] + row["selection_elementwise_flops"]) / TERA,
            row["training_flops"] / TERA,
            row["scoring_flops"] / TERA,
        ]
        for row in planned["rows"]
    ]
    header = [
        "W", "B/W", "embeddings", "sums, noise", "chunk", "<- candidates", "<- winners", "<- loss", "products",
        "+ elementwise", "training", "scoring",
    ]  # fmt: skip
    print(format_table(header, lines))
    print(
        "Per rank and step: memory in MiB; traffic in MiB, received at the most (<- loss: its all-gather); TFLOPs.\n"
    )
    print(
        format_table(
            ["selection's FLOPs", "% of the step"], [list(line) for line in planned["share_per_cent"].items()]
        )
    )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=8192, help="super-batch B of the measured part")
    parser.add_argument("--sub_batch", type=int, default=1632, help="sub-batch b of the measured part")
    parser.add_argument("--width", type=int, default=128, help="embedding width D of the measured part")
    parser.add_argument("--n_chunks", type=int, default=16, help="chunks N")
    parser.add_argument("--world_sizes", type=int, nargs="+", default=[1, 2, 4], help="W of the measured part")
    parser.add_argument("--threads", type=int, default=1, help="threads of each process")
    parser.add_argument("--plan", action="store_true", help="only the arithmetic at the paper's scale")
    parser.add_argument("--plan_world_sizes", type=int, nargs="+", default=[2**k for k in range(3, 10)])
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs; writes no results")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.size, arguments.sub_batch, arguments.width, arguments.world_sizes = 512, 96, 32, [1, 2]
    return arguments


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.machine())


def main() -> None:
    arguments = parse_arguments()
    results: dict[str, Any] = {}
    if not arguments.plan:
        shape = (arguments.size, arguments.width, arguments.sub_batch, arguments.n_chunks)
        print("Measured: B = {}, D = {}, b = {}, N = {}, the most of any rank".format(*shape))
        results["measured"] = measured_rows(arguments.world_sizes, arguments.threads, shape)
        print_measured(results["measured"])
        print("All draw the same sub-batch.\n")

    # The defaults are the published base model, at 224 px, with 64 tokens.
    base = SiglipConfig(vision_config={"image_size": 256}, text_config={"bos_token_id": 1, "eos_token_id": 1})
    size, sub_batch, width = 163_840, 32_768, base.vision_config.hidden_size
    print(
        f"On paper: B = {size}, D = {width}, b = {sub_batch}, N = {arguments.n_chunks}, learner SigLIP B/16 at 256 px"
    )
    results["plan"] = plan(size, sub_batch, arguments.n_chunks, width, arguments.plan_world_sizes, base)
    print_plan(results["plan"])

    if not (arguments.plan or arguments.quick):
        setting = {
            "size": arguments.size, "width": arguments.width, "sub_batch": arguments.sub_batch,
            "n_chunks": arguments.n_chunks, "threads": arguments.threads, "torch": torch.__version__,
            "cpu": processor(),
        }  # fmt: skip
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps({"setting": setting, **results}, indent=2) + "\n")
        print(f"\nWritten to {arguments.output}")


if __name__ == "__main__":
    main()
