# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""A run with all of its results written down, in a form that can be compared bit by bit and read by people."""

from __future__ import annotations

import hashlib
import json
import pickle
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor, nn


# What differs from one moment to the next.
TIMES = re.compile(r"_seconds$|runtime$|_per_second$|preparation_time$")
MASK = "(a time)"
CARD_MASKS = (
    (re.compile(r"^(\| (?:training time|hardware) *\|).*$", re.MULTILINE), rf"\1 {MASK}"),
    (re.compile(r"^Made with .*$", re.MULTILINE), "Made with (versions)."),
    (re.compile(r"^- PEFT .*$", re.MULTILINE), "- PEFT (version)"),
    # Digests of what is compared anyway, times included.
    (re.compile(r"(<!-- jest_hf:[\w-]+ )[0-9a-f]{8}"), r"\1(digest)"),
)
# Files with an item of their own, by a part of their paths.
PARTS = {"random_state": ("rng_state",), "cache": ("reference_cache/", "irreducible_losses")}


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:20]


def of_tensor(value: Tensor) -> str:
    """A tensor in a line: dtype, shape, a hash of all bits, and a sum for whoever reads it."""
    value = value.detach().cpu().contiguous()
    data = value.reshape(-1).view(torch.uint8) if value.numel() else torch.empty(0, dtype=torch.uint8)
    total = value.double().sum().item() if value.numel() and not value.is_complex() else 0
    shape = "x".join(map(str, value.shape)) or "scalar"
    return f"{str(value.dtype).removeprefix('torch.')} {shape} {digest(data.numpy().tobytes())} sum {total:.9g}"


def of_state(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Tensors by name, in their order."""
    return {name: of_tensor(value) for name, value in state.items()}


def plain(value: Any) -> Any:
    """Anything that a run leaves behind, as JSON: tensors as lines, dicts with their order, floats with all digits."""
    if isinstance(value, Tensor):
        return of_tensor(value)
    if isinstance(value, np.ndarray):
        return of_tensor(torch.from_numpy(np.ascontiguousarray(value)))
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, bool | int | str) or value is None:
        return value
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        kept = ((str(key), one) for key, one in value.items() if key not in NEWER_LOGS)
        return {key: MASK if TIMES.search(key) else plain(one) for key, one in kept}
    if isinstance(value, tuple | list):
        return [plain(one) for one in value]
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    return f"{type(value).__name__} {value}"


def of_card(text: str) -> list[str]:
    """The lines of a card, without time, machine and versions."""
    for pattern, replacement in CARD_MASKS:
        text = pattern.sub(replacement, text)
    return text.splitlines()


# Of a ledger: the columns that every version has. Stages and scores came later; the selections follow from the scores.
LEDGER_COLUMNS = ["step", "rank", "order", "example_id"]
NEWER_LOGS = {"elapsed_seconds"}
NEWER_FILES = ("_rejected-",)  # in a ledger, of versions that sample the rows that were not selected


def of_parquet(path: Path) -> dict[str, Any]:
    table = pq.read_table(path)
    if path.parent.name == "selections.parquet":
        table = table.select(LEDGER_COLUMNS)
    columns = {name: plain(table[name].to_pylist()) for name in table.column_names}
    return {"schema": [f"{one.name}: {one.type}" for one in table.schema], **columns}


def of_ledger(path: Path) -> dict[str, Any]:
    """A ledger by step: rank, place in the order of drawing and example, of each row in its order."""
    table = pq.read_table(path, columns=LEDGER_COLUMNS)
    steps: dict[str, list[str]] = {}
    for row in table.to_pylist():
        rest = " ".join(str(value) for name, value in row.items() if name != "step")
        steps.setdefault(f"step {row['step']}", []).append(rest)
    return {"schema": [f"{one.name}: {one.type}" for one in table.schema], **steps}


def of_file(path: Path) -> Any:
    """The contents of a file, without what differs from one moment to the next."""
    if path.suffix == ".parquet":
        return of_parquet(path)
    if path.name == "jest_manifest.json":  # hashes of files, among them those with times
        manifest = json.loads(path.read_text())
        return {"complete": manifest["complete"], "files": sorted(manifest.get("files", {}))}
    if path.suffix == ".json":
        return plain(json.loads(path.read_text()))
    if path.suffix == ".md":
        return of_card(path.read_text())
    if path.suffix == ".png":
        return of_tensor(torch.from_numpy(np.array(Image.open(path))))
    if path.name == "training_args.bin":
        with open(path, "rb") as file:  # not by torch.load's module alone: where the class is found is a promise
            args = torch.load(file, weights_only=False)
        return {"class": f"{type(args).__module__}.{type(args).__qualname__}", **plain(args.to_dict())}
    if path.suffix in (".pt", ".pth", ".bin"):
        return plain(torch.load(path, map_location="cpu", weights_only=False))
    return f"{path.stat().st_size} bytes {digest(path.read_bytes())}"


def of_folder(folder: Path) -> dict[str, Any]:
    """The contents of all files in a folder, by their paths."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(NEWER_FILES))
    return {str(path.relative_to(folder)): of_file(path) for path in paths}


def random_state() -> dict[str, str]:
    return {
        "torch": of_tensor(torch.get_rng_state()),
        "numpy": digest(pickle.dumps(np.random.get_state())),
        "python": digest(pickle.dumps(random.getstate())),
    }


class Recorded:
    """To be mixed into a trainer: writes down what each step gets, and what the learner gets of it."""

    def training_step(self, model: nn.Module, inputs: dict[str, Tensor], *args: Any, **kwargs: Any) -> Tensor:
        self.batches = getattr(self, "batches", [])
        # First, for a step may add to the dict that it gets.
        self.batches.append({"super_batch": _of_batch(inputs), "sub_batch": None, "loss": None})
        return super().training_step(model, inputs, *args, **kwargs)

    def learn(self, model: nn.Module, sub_batch: dict[str, Tensor], *args: Any, **kwargs: Any) -> Tensor:
        self.batches[-1]["sub_batch"] = _of_batch(sub_batch)
        loss = super().learn(model, sub_batch, *args, **kwargs)
        self.batches[-1]["loss"] = repr(float(loss))
        return loss


def _of_batch(batch: Mapping[str, Tensor]) -> dict[str, Any]:
    ids = batch["example_id"].tolist()
    return {"ids": " ".join(map(str, ids)), **{name: of_tensor(batch[name]) for name in sorted(batch)}}


def results(trainer: Any, metrics: Mapping[str, Any], predicted: Callable[[], Any] | None = None) -> dict[str, Any]:
    """
    All results of a finished run, by item.

    Args:
        trainer ([`~jest_hf.JESTTrainer`]): After its run and its evaluation.
        metrics (`dict`): What its evaluation has returned.
        predicted (`Callable`, *optional*): Calls `predict`.
    """
    found: dict[str, Any] = {"random_state": random_state()}  # first, before anything here could draw from it
    folder = Path(trainer.args.output_dir)
    found["batches"] = {f"step {number}": step for number, step in enumerate(trainer.batches, start=1)}
    found["learner"] = of_state(trainer.model.state_dict())
    found["companions"] = {one.name: of_state(one.model.state_dict()) for one in trainer.online_models}
    found["logs"] = [list(plain(entry).items()) for entry in trainer.state.log_history]
    found["evaluation"] = list(plain(metrics).items())
    if predicted is not None:
        found["predictions"] = plain(predicted()._asdict())
    found["flops"] = {
        "run": plain(trainer.run_flops),
        "step": plain(trainer.step_flops),
        "cache": plain(trainer.cache_flops),
        "state": plain(trainer.state.total_flos),
    }
    if trainer.is_world_process_zero():
        trainer.create_model_card()
        found["card"] = of_card((folder / "README.md").read_text())
        found["ledger"] = of_ledger(folder / "selections.parquet")
        contents = of_folder(folder)
        found["files"] = list(contents)
        for item, parts in PARTS.items():
            own = [name for name in contents if any(part in name for part in parts)]
            found.setdefault(item, {}).update({name: contents.pop(name) for name in own})
        found["contents"] = contents
    return found
