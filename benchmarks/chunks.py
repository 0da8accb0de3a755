# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""How learnable the drawn sub-batch is, against the number of chunks and the filter ratio (the paper's Fig. 2).

    python benchmarks/chunks.py                                         # trains a reference and a learner first
    python benchmarks/chunks.py --reference jest-out/jest/reference --learner jest-out/jest/iid/checkpoint-480

The second line takes both from a run of examples/recipes/jest.yaml. The learner is in IID training on the noisy
scenes, the reference is trained on the curated ones. The sub-batch has one size b throughout; the filter ratio sets
the super-batch it is drawn from. Its learnability is the learner's contrastive loss minus the reference's, over the
sub-batch as one batch: the mean over its examples of their summed pairwise scores. The size matters: what examples add
to each other grows with b, what each has by itself does not, so that in small batches independent draws are nearly as
good (--size 256).

Two normalisations, as in the figure:

- against the number of chunks N: 0 is N = 1 (independent draws by the examples' own scores), 1 is brute-force Gibbs
  sampling, which Algorithm 1 approximates: the sub-batch's members are drawn anew, one at a time, given all others,
  until this changes nothing any more;
- against the filter ratio f, N = 16: 0 is f = 0 (an IID sub-batch), 1 is f = 0.5.

Where the two ends of a scale lie within two standard errors of each other there is nothing to normalise: the table
then says "no gap", and the plain learnability below it is what was found.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any


os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import Tensor  # noqa: E402
from transformers import AutoModel, AutoProcessor, PreTrainedModel, PrinterCallback  # noqa: E402
from transformers.utils import logging  # noqa: E402

from jest_hf import JESTConfig, JESTDataCollator, JESTTrainer  # noqa: E402
from jest_hf.data import build_processor, load_scenes  # noqa: E402
from jest_hf.data.rows import Rows  # noqa: E402
from jest_hf.losses import sigmoid_contrastive_loss  # noqa: E402
from jest_hf.models import DualEncoder, build_siglip, expose_temperature  # noqa: E402
from jest_hf.report import format_table  # noqa: E402
from jest_hf.report.plots import COLOURS, MARKERS  # noqa: E402
from jest_hf.selection import (  # noqa: E402
    ContrastiveEmbeddings,
    PairwiseScores,
    gumbel_noise,
    select_jointly,
)


RESULTS = Path(__file__).parent / "results" / "chunks.json"
PLOT = Path(__file__).parents[1] / "docs" / "images" / "chunks.png"
CHUNKS = (1, 2, 4, 8, 16, 32)
FILTER_RATIOS = (0.5, 0.8, 0.9)
DEFAULT_CHUNKS = 16
# arXiv 2406.17711, Fig. 2.
PAPER_CHUNKS = {1: 0.0, 2: 0.69, 4: 0.885, 8: 0.96, 16: 0.995, 32: 1.0}
PAPER_FILTER_RATIOS = {0.0: 0.0, 0.5: 1.0, 0.8: 1.12, 0.9: 1.15}


def train(model: PreTrainedModel, split: str, processor: Any, steps: int) -> PreTrainedModel:
    """IID training, with the settings of the demonstration."""
    with tempfile.TemporaryDirectory() as folder:
        args = JESTConfig(
            output_dir=folder, selection="uniform", max_steps=steps, per_device_train_batch_size=256,
            learning_rate=1e-3, warmup_steps=20, lr_scheduler_type="cosine", weight_decay=1e-4, report_to="none",
            save_strategy="no", logging_strategy="no", disable_tqdm=True, use_cpu=True,
        )  # fmt: skip
        trainer = JESTTrainer(model=model, args=args, train_dataset=load_scenes(split), processing_class=processor)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return model


def embed_pool(options: argparse.Namespace) -> tuple[ContrastiveEmbeddings, ContrastiveEmbeddings]:
    """Learner's and reference's embeddings of the rows that super-batches are drawn from."""
    processor = build_processor(load_scenes("curated")["caption"], image_size=32, max_length=20)
    embedded = []
    for path, split, steps, seed in (
        (options.learner, "web", options.learner_steps, 0),
        (options.reference, "curated", options.reference_steps, 1000),
    ):
        if path is None:
            own_processor = processor
            model = build_siglip("tiny", processor.tokenizer, image_size=32, patch_size=8, seed=seed)
            train(model, split, processor, steps)
        else:
            own_processor, model = AutoProcessor.from_pretrained(path), AutoModel.from_pretrained(path)
        expose_temperature(model)
        rows, view = Rows(load_scenes("web", n=options.rows)), DualEncoder(model.config, own_processor)
        batch = JESTDataCollator(own_processor)(rows.__getitems__(range(len(rows))))
        embedded.append(view.score(model, batch, 256))
    return embedded[0], embedded[1]


def learnability(learner: ContrastiveEmbeddings, reference: ContrastiveEmbeddings, indices: Tensor) -> float:
    """Learner's loss minus the reference's over one sub-batch."""
    losses = [
        sigmoid_contrastive_loss(part.image, part.text, part.logit_scale, part.logit_bias)
        for part in (learner.take(indices), reference.take(indices))
    ]
    return float(losses[0] - losses[1])


def pair_losses(model: ContrastiveEmbeddings) -> Tensor:
    """The sigmoid loss of every pair, float32 `[B, B]`."""
    logits = (model.image @ model.text.T).mul_(model.logit_scale).add_(model.logit_bias)
    logits.diagonal().neg_()
    return F.softplus(logits)


def gibbs(scores: Tensor, size: int, sweeps: int, seed: int) -> list[Tensor]:
    """
    Brute-force Gibbs sampling of sub-batches with p proportional to the exponential of the sum of all their scores.

    A sweep draws every member of the sub-batch anew, in turn, from its conditional given all others: from the
    candidates outside, with p proportional to exp(own score + scores with the others, as image and as text).

    Args:
        scores (`torch.Tensor`): `[B, B]`.
        size (`int`): of the sub-batch (b).
        sweeps (`int`): each is b iterations.
        seed (`int`): of the first, uniform sub-batch and of all draws.

    Returns:
        `list[torch.Tensor]`: the sub-batch at first and after each sweep, int64 `[b]`.
    """
    own = scores.diagonal().double()
    pairs = scores + scores.T
    pairs.fill_diagonal_(0.0)
    members = gumbel_noise(seed, 0, 1, len(scores))[0].topk(size).indices
    log_weights = own + pairs[members].sum(dim=0, dtype=torch.float64)
    closed = torch.zeros_like(own)  # -inf for members
    closed[members] = -torch.inf
    states = [members.clone()]
    for sweep in range(1, sweeps + 1):
        for slot, noise in enumerate(gumbel_noise(seed, sweep, size, len(scores))):
            leaving = members[slot]
            log_weights -= pairs[leaving]
            closed[leaving] = 0.0
            entering = (log_weights + closed + noise).argmax()
            log_weights += pairs[entering]
            closed[entering] = -torch.inf
            members[slot] = entering
        states.append(members.clone())
    return states


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Learnability of every sampler and draw: `{filter ratio: {sampler: [a value for each draw]}}`, and IID's."""
    pool = embed_pool(options)
    n_rows = len(pool[0])
    results: dict[str, Any] = {"iid": [], **{str(f): {} for f in FILTER_RATIOS}}
    for draw in range(options.draws):
        order = torch.randperm(n_rows, generator=torch.Generator().manual_seed(draw))
        results["iid"].append(learnability(*pool, order[: options.size]))
        for f in FILTER_RATIOS:
            learner, reference = (model.take(order[: round(options.size / (1 - f))]) for model in pool)
            scores = PairwiseScores.from_embeddings(learner, reference)
            at = results[str(f)]
            for n_chunks in CHUNKS:
                noise = gumbel_noise(draw, 0, n_chunks, len(scores))
                indices = select_jointly(scores, options.size, n_chunks, noise=noise)
                at.setdefault(f"N={n_chunks}", []).append(learnability(learner, reference, indices))
            states = gibbs(pair_losses(learner) - pair_losses(reference), options.size, options.sweeps, draw)
            curve = [learnability(learner, reference, state) for state in states]
            at.setdefault("gibbs_by_sweep", []).append(curve)
            # The mean of the second half: a single state of a chain that has converged still fluctuates.
            at.setdefault("gibbs", []).append(float(np.mean(curve[len(curve) // 2 :])))
        print(f"draw {draw + 1} of {options.draws} done", flush=True)
    return results


def normalised(values: Sequence[float], zero: Sequence[float], one: Sequence[float]) -> dict[str, float] | None:
    """Where `values` lie between `zero` and `one`, with a standard error over draws; `None` if these do not differ."""
    values, zero, one = map(np.array, (values, zero, one))
    if not (one - zero).mean() > 2 * standard_error(one - zero):
        return None
    position = (values - zero).mean() / (one - zero).mean()
    # The ratio's first-order error: draws are paired, so what they share cancels.
    error = standard_error(values - zero - position * (one - zero)) / (one - zero).mean()
    return {"mean": float(position), "standard_error": float(error)}


def standard_error(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / len(values) ** 0.5)


def summarise(results: dict[str, Any]) -> dict[str, Any]:
    """Both curves, normalised."""
    chunks = {}
    for f in FILTER_RATIOS:
        at = results[str(f)]
        chunks[str(f)] = {str(n): normalised(at[f"N={n}"], at["N=1"], at["gibbs"]) for n in CHUNKS}
    by_ratio = {0.0: results["iid"], **{f: results[str(f)][f"N={DEFAULT_CHUNKS}"] for f in FILTER_RATIOS}}
    ratios = {str(f): normalised(values, results["iid"], by_ratio[0.5]) for f, values in by_ratio.items()}
    return {"chunks": chunks, "filter_ratios": ratios}


def print_tables(results: dict[str, Any], summary: dict[str, Any]) -> None:
    def cell(point: dict[str, float] | None) -> str:
        return "no gap" if point is None else f"{point['mean']:.3f} ± {point['standard_error']:.3f}"

    rows = [
        [f"N = {n}", *(cell(summary["chunks"][str(f)][str(n)]) for f in FILTER_RATIOS), f"{PAPER_CHUNKS[n]:.3f}"]
        for n in CHUNKS
    ]
    print("\nAgainst the number of chunks (0: N = 1, 1: brute-force Gibbs)")
    print(format_table(["", *(f"f = {f}" for f in FILTER_RATIOS), "paper"], rows))
    print("\nAgainst the filter ratio, N = 16 (0: IID, 1: f = 0.5)")
    rows = [[f"f = {f}", cell(summary["filter_ratios"][str(f)]), f"{p:.2f}"] for f, p in PAPER_FILTER_RATIOS.items()]
    print(format_table(["", "here", "paper"], rows))
    print("\nLearnability (nats an example, mean over draws)")
    names = [f"N={n}" for n in CHUNKS] + ["gibbs"]
    rows = [[f"f = {f}", *(f"{np.mean(results[str(f)][name]):.3f}" for name in names)] for f in FILTER_RATIOS]
    print(format_table(["", *names], rows))
    print(f"IID: {np.mean(results['iid']):.3f}")
    for f in FILTER_RATIOS:
        curve = np.mean(results[str(f)]["gibbs_by_sweep"], axis=0)
        print(f"Gibbs by sweep, f = {f}: {' '.join(f'{value:.2f}' for value in curve)}")


def plot(summary: dict[str, Any], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 4.2), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for f, colour, marker in zip(FILTER_RATIOS, COLOURS, MARKERS, strict=False):
        points = summary["chunks"][str(f)]
        if points["1"] is None:
            left.plot([], [], color=colour, marker=marker, label=f"f = {f}: N = 1 reaches Gibbs")
            continue
        means, errors = ([points[str(n)][key] for n in CHUNKS] for key in ("mean", "standard_error"))
        left.errorbar(CHUNKS, means, errors, color=colour, marker=marker, markersize=5, label=f"f = {f}")
    left.plot(*zip(*PAPER_CHUNKS.items(), strict=True), color="0.4", linestyle=":", marker="x", label="paper")
    left.set_xscale("log", base=2)
    left.set_xticks(CHUNKS, CHUNKS)
    left.set_xlabel("chunks N (1 on the axis: brute-force Gibbs)")
    left.set_ylabel("normalised learnability of the sub-batch")
    points = summary["filter_ratios"]
    means, errors = ([points[str(f)][key] for f in PAPER_FILTER_RATIOS] for key in ("mean", "standard_error"))
    right.errorbar(list(PAPER_FILTER_RATIOS), means, errors, color=COLOURS[0], marker=MARKERS[0], label="here, N = 16")
    right.plot(*zip(*PAPER_FILTER_RATIOS.items(), strict=True), color="0.4", linestyle=":", marker="x", label="paper")
    right.set_xlabel("filter ratio f (1 on the axis: f = 0.5)")
    for axes in (left, right):
        axes.grid(color="0.9")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="lower right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def processor_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.machine())


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reference", help="path of a saved reference and its processor; by default one is trained")
    parser.add_argument("--learner", help="path of a saved learner and its processor; by default one is trained")
    parser.add_argument("--reference_steps", type=int, default=150)
    parser.add_argument("--learner_steps", type=int, default=200)
    parser.add_argument("--size", type=int, default=2048, help="sub-batch b")
    parser.add_argument("--rows", type=int, default=24000, help="noisy rows that super-batches are drawn from")
    parser.add_argument("--draws", type=int, default=4, help="super-batches, each with its own noise")
    parser.add_argument("--sweeps", type=int, default=12, help="of the Gibbs sampler, b iterations each")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs; writes no results")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--plot", type=Path, default=PLOT)
    options = parser.parse_args()
    if options.quick:
        options.reference_steps, options.learner_steps, options.size = 4, 2, 32
        options.rows, options.draws, options.sweeps = 1024, 2, 2
    return options


def main() -> None:
    options = parse_arguments()
    torch.set_num_threads(options.threads)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    results = measure(options)
    summary = summarise(results)
    print_tables(results, summary)
    if options.quick:
        return
    setting = {name: value for name, value in vars(options).items() if name not in ("output", "plot", "quick")}
    setting |= {"torch": torch.__version__, "cpu": processor_name()}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps({"setting": setting, **summary, "learnability": results}, indent=2) + "\n")
    plot(summary, options.plot)
    print(f"\nWritten to {options.output} and {options.plot}")


if __name__ == "__main__":
    main()
