# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The proof of `make same` is worth what it can see: one bit, one key out of its place, a run that is not there."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import types
from dataclasses import fields
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import TrainingArguments

from jest_hf import JESTConfig
from jest_hf.config import PRESETS
from tests.invariant import __main__ as command
from tests.invariant import runner, trees
from tests.invariant.comparison import compare, format_table, items_of, lacking, walk
from tests.invariant.matrix import COMPANIONS_LAST, RUNS, SETTINGS, STRAY_NUMBER, Cached
from tests.invariant.mutations import MUTATIONS, CompanionsLast, stepped_by
from tests.invariant.recorded import MASK, of_card, of_folder, of_state, of_tensor, plain


# Options that no tiny run on a CPU can set: the Hub's, and one of DeepSpeed and FSDP2.
ELSEWHERE = {"ref_model_revision", "reference_cache_revision", "ref_placement"}


# Options and presets that commits before them do not have: a run with one could not be compared. They come into the
# matrix when no older commit is compared any more; until then tests/training/test_early_selection.py,
# test_two_stages.py and test_images.py hold them.
NEWER = {"select_before_decoding", "prefilter_ratio", "image_cache", "selection_precision"}
NEWER_PRESETS = {"two_stage"}


# ---- The matrix ----


def test_every_preset_is_in_the_matrix():
    assert {run.settings.get("preset") for run in RUNS.values()} - {None} == set(PRESETS) - NEWER_PRESETS


def test_every_option_of_a_run_is_in_the_matrix():
    """A new option needs a run, or its place among those that are tested elsewhere."""
    own = {one.name for one in fields(JESTConfig)} - {one.name for one in fields(TrainingArguments)}
    given = {name for run in RUNS.values() for name in (SETTINGS | run.settings)}
    given |= {"reference_cache"} if any(isinstance(run, Cached) for run in RUNS.values()) else set()
    assert own - given == ELSEWHERE | NEWER


def test_mutations_have_runs_that_must_show_them():
    assert all(any(name in run.seen_by for run in RUNS.values()) for name in MUTATIONS)
    assert {name for run in RUNS.values() for name in run.seen_by} == set(MUTATIONS)


# ---- What is written down ----


def test_one_bit_of_a_tensor_is_seen():
    value = torch.linspace(0, 1, 8)
    other = value.clone()
    other.view(torch.int32)[3] += 1
    assert of_tensor(value) == of_tensor(value.clone()) != of_tensor(other)
    assert of_tensor(torch.zeros(1)) != of_tensor(-torch.zeros(1))
    assert of_tensor(value) != of_tensor(value.view(2, 4)) != of_tensor(value.view(2, 4).to(torch.float64))
    assert of_tensor(value.view(2, 4).T) != of_tensor(value.view(4, 2))
    for dtype in (torch.bfloat16, torch.bool, torch.int64, torch.uint8):
        assert of_tensor(torch.tensor(1).to(dtype)) != of_tensor(torch.tensor(0).to(dtype))
    assert of_tensor(torch.empty(0, 3)) != of_tensor(torch.empty(3, 0))


def test_of_logs_only_times_are_left_out_and_their_places_stay():
    logs = {"loss": 0.1 + 0.2, "scoring_seconds": 0.3, "eval_runtime": 1.0, "eval_steps_per_second": 2.0}
    assert plain(logs) == {
        "loss": "0.30000000000000004",
        "scoring_seconds": MASK,
        "eval_runtime": MASK,
        "eval_steps_per_second": MASK,
    }
    assert list(plain(logs)) == list(logs)


def test_of_a_card_only_times_and_versions_are_left_out():
    card = (
        "<!-- jest_hf:compute 0123abcd generated; your edits, here and elsewhere, stay -->\n| hardware      | {} |\n"
        "| training time | {} |\n| steps         | {} |\n\nMade with torch {}.\n"
    )
    assert of_card(card.format("CPU", "3 s", 4, "2.6")) == of_card(card.format("GPU", "4 s", 4, "2.7"))
    assert of_card(card.format("CPU", "3 s", 4, "2.6")) != of_card(card.format("CPU", "3 s", 5, "2.6"))


def test_files_are_known_by_what_is_in_them(tmp_path):
    def write(folder: Path, order: int = 3, shard: bytes = b"shard", weight: float = 1.0) -> Path:
        folder.mkdir()
        pq.write_table(pa.table({"step": [1, 2], "order": [0, order]}), folder / "selections.parquet")
        (folder / "shard-00000.safetensors").write_bytes(shard)
        (folder / "state.json").write_text(json.dumps({"loss": 0.1, "eval_runtime": id(folder)}))
        torch.save({"state": {0: torch.tensor(weight)}}, folder / "optimizer.pt")
        torch.save(JESTConfig(output_dir="out", use_cpu=True), folder / "training_args.bin")
        return folder

    first = of_folder(write(tmp_path / "a"))
    assert first == of_folder(write(tmp_path / "b"))
    assert first["training_args.bin"]["class"] == "jest_hf.config.JESTConfig"
    for number, change in enumerate(({"order": 4}, {"shard": b"Shard"}, {"weight": 1.0000001})):
        other = of_folder(write(tmp_path / str(number), **change))
        assert len([name for name in first if first[name] != other[name]]) == 1
    (tmp_path / "b" / "state.json").unlink()
    assert list(of_folder(tmp_path / "b")) != list(first)


# ---- What differs ----


def record(name: str = "uniform") -> dict:
    items = {
        "random_state": {"torch": "0"},
        "batches": {f"step {step}": {"ids": "1 2"} for step in range(1, 5)},
        "learner": of_state({"weight": torch.ones(2), "bias": torch.zeros(2)}),
        "companions": {},
        "logs": [[["loss", "0.5"], ["epoch", "1.0"]]],
        "evaluation": [["eval_loss", "0.25"]],
        "flops": {"run": "1.0"},
        "card": ["# A model"],
        "ledger": {"step 1": ["0 0 1"]},
        "files": ["README.md"],
        "contents": {"README.md": ["# A model"]},
        "cache": {},
    }
    return {"0": {"items": items}}


def changed(*path, value) -> dict:
    other = copy.deepcopy(record())
    place = other["0"]["items"]
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return other


def test_equal_records_have_no_difference():
    assert compare("uniform", record(), record(), 1) == []


@pytest.mark.parametrize(
    ("other", "item"),
    [
        (changed("learner", "weight", value="float32 2 0 sum 2"), "learner"),
        (changed("learner", value={"weight": "", "bias": ""}), "learner"),
        (changed("logs", 0, value=[["epoch", "1.0"], ["loss", "0.5"]]), "logs"),
        (changed("logs", value=[]), "missing"),
        (changed("ledger", "step 1", value=["0 1 1"]), "ledger"),
        (changed("files", value=["README.md", "more"]), "files"),
        (changed("companions", value={"proxy": {}}), "companions"),
        (changed("flops", "run", value=1.0), "flops"),
        (changed("a new item", value=1), "a new item"),
        (changed("batches", value={"step 1": {"ids": "1 2"}}), "missing"),
        ({"0": {"error": "ValueError: no"}}, "failed"),
        ({}, "missing"),
    ],
)
def test_a_difference_is_named_on_either_side(other, item):
    assert items_of(compare("uniform", record(), other, 1))[0] == item
    assert items_of(compare("uniform", other, record(), 1))[0] == item


def test_the_order_of_names_counts():
    """Of equal values too: a checkpoint's weights and a log's columns come in an order."""
    one, other = {"a": 1, "b": {"c": 2, "d": 3}}, {"a": 1, "b": {"d": 3, "c": 2}}
    assert [place for place, *_ in walk(one, other, "learner")] == ["learner / b: order of keys"]
    assert list(walk(one, copy.deepcopy(one), "learner")) == []
    assert [place for place, *_ in walk([1, 2], [1, 3], "x")] == ["x / 1"]
    assert list(walk({"x": 1}, {"x": True}, "x")) and list(walk([1], [1, 1], "x"))


def test_what_fails_or_lacks_alike_on_both_sides_is_not_equal():
    failed = {"0": {"error": "ValueError: no"}}
    assert items_of(compare("uniform", failed, failed, 1)) == ["failed"]
    assert items_of(compare("uniform", {}, {}, 1)) == ["missing"]
    assert items_of(compare("uniform", record(), record(), 2)) == ["missing"]  # the second rank
    empty = changed("learner", value={})
    assert items_of(compare("uniform", empty, empty, 1)) == ["missing"]


@pytest.mark.parametrize("name", RUNS)
def test_a_record_must_have_what_its_run_leaves(name):
    absent = lacking(RUNS[name], record()["0"]["items"], first=True)
    run = RUNS[name]
    assert [item for item in absent if not item.startswith("batches")] == [
        *run.leaves,
        *["predictions"] * run.predicts,
        *["before"] * (run.resumed_at is not None),
    ]


def test_the_table_has_a_line_for_each_run():
    table = format_table({"uniform": {1: "equal", 2: "logs"}, "resumed": {1: "equal"}}, [1, 2])
    assert table.splitlines() == [
        "run      1 process  2 processes",
        "uniform  equal      logs",
        "resumed  equal",
    ]


# ---- The command ----


class FakeJob:
    """In place of processes: each side's records are given."""

    given: dict[str, dict] = {}

    def __init__(self, tree, harness, folder, runs, n_processes=1, mutation=None):
        self.folder, self.seconds, self.output = folder, 0.0, "the end"
        self.records = self.given.get(folder.name, {})

    def wait(self):
        return self.records

    def end(self):
        pass


@pytest.fixture
def faked(monkeypatch, tmp_path):
    monkeypatch.setattr(command, "Job", FakeJob)
    given = {"base-1": {"uniform": record()}, "new-1": {"uniform": record()}}
    monkeypatch.setattr(FakeJob, "given", given)
    (tmp_path / "jest_hf").mkdir()
    return given, ["--base", str(tmp_path), "--processes", "1"]


def test_equal_trees_are_a_success(faked, capsys):
    _, line = faked
    assert command.main([*line, "--runs", "uniform"]) == 0
    assert "1 runs, 1 compared with" in capsys.readouterr().out


def test_a_difference_is_a_failure_and_is_shown(faked, capsys):
    given, line = faked
    given["new-1"] = {"uniform": changed("evaluation", value=[["eval_loss", "0.26"]])}
    assert command.main([*line, "--runs", "uniform"]) == 1
    printed = capsys.readouterr().out
    assert "uniform, rank 0, evaluation / 0 / 1" in printed and "base 0.25" in printed and "new  0.26" in printed


def test_a_run_that_is_not_there_is_a_failure(faked, capsys):
    given, line = faked
    assert command.main([*line, "--runs", "uniform,resumed"]) == 1  # on neither side
    assert "end of the output of new-1" in capsys.readouterr().out
    given["base-1"] = given["new-1"] = {}
    assert command.main([*line, "--runs", "uniform"]) == 1


def test_a_mutation_that_is_not_seen_or_seen_elsewhere_is_a_failure(faked):
    given, _ = faked
    names = ["uniform", "dropout_proxy"]
    plain_records = {name: record() for name in names}
    for one in plain_records.values():
        one["0"]["items"]["companions"] = {"proxy": {"weight": "0"}}
    seen = copy.deepcopy(plain_records)
    seen["dropout_proxy"]["0"]["items"]["learner"]["weight"] = "other"
    state = copy.deepcopy(seen)
    state["uniform"]["0"]["items"]["random_state"]["torch"] = "1"
    too_much = copy.deepcopy(seen)
    too_much["uniform"]["0"]["items"]["learner"]["weight"] = "other"
    line = ["--mutations", "--runs", ",".join(names)]
    given |= {"None": plain_records, COMPANIONS_LAST: seen}
    for records, expected in ((seen, 0), (state, 0), (plain_records, 1), (too_much, 1), ({}, 1)):
        given[STRAY_NUMBER] = records
        assert command.main(line) == expected


def test_names_that_are_no_runs_are_refused(capsys):
    with pytest.raises(SystemExit, match="2"):
        command.main(["--base", "HEAD", "--runs", "uniform,unifrom"])
    assert "no runs of the matrix: unifrom" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        command.main(["--base", ""])
    assert "BASE=<commit>" in capsys.readouterr().err


# ---- The trees ----


def test_the_tree_of_a_commit_is_there_and_then_gone(tmp_path, monkeypatch):
    repository = tmp_path / "repository"
    (repository / "jest_hf").mkdir(parents=True)
    (repository / "model_cards").mkdir()
    (repository / "jest_hf" / "__init__.py").write_text("old = True\n")
    (repository / "model_cards" / "learner.md").write_text("# A model\n")
    monkeypatch.setattr(trees, "ROOT", repository)
    who = ["-c", "user.name=a", "-c", "user.email=a@example.com"]
    for line in (["init", "-q"], ["add", "-A"], [*who, "commit", "-q", "-m", "old"]):
        trees.git(*line)
    (repository / "jest_hf" / "__init__.py").write_text("new = True\n")
    with pytest.raises(RuntimeError, match="in the middle"), trees.base_tree("HEAD", tmp_path) as tree:
        assert (tree / "jest_hf" / "__init__.py").read_text() == "old = True\n"
        assert (tree / "jest_hf" / "model_cards" / "learner.md").exists()
        raise RuntimeError("in the middle")
    assert not tree.exists() and len(trees.git("worktree", "list").splitlines()) == 1
    new = trees.copy_package(repository, tmp_path / "new")
    assert (new / "jest_hf" / "__init__.py").read_text() == "new = True\n"
    with pytest.raises(subprocess.CalledProcessError):
        with trees.base_tree("0000000", tmp_path):
            pass


def test_a_package_from_elsewhere_is_refused(tmp_path, monkeypatch):
    import jest_hf

    runner.check_package(Path(jest_hf.__file__).parents[1])
    stranger = types.ModuleType("jest_hf.stranger")
    stranger.__file__ = str(tmp_path / "stranger.py")
    monkeypatch.setitem(sys.modules, "jest_hf.stranger", stranger)
    with pytest.raises(ImportError, match="jest_hf.stranger was imported from"):
        runner.check_package(Path(jest_hf.__file__).parents[1])


# ---- Mutations ----


def test_companions_are_stepped_behind_the_learner():
    calls = []

    class Companions:
        def step(self, rows):
            calls.append(f"companions {rows}")
            return {"proxy_loss": 0.5}

    class Trainer:
        """With companions that `place` holds, or with a method of its own."""

        online_models = ["proxy"]

        def __init__(self, place):
            self.statistics = types.SimpleNamespace(add=lambda losses: calls.append(losses) if losses else None)
            setattr(self, place, types.SimpleNamespace(companions=Companions()))

        def training_step(self):
            holder = getattr(self, "parts", None) or getattr(self, "plan", None)
            self.statistics.add(holder.companions.step("rows") if holder else self.train_beside("rows"))
            return self.learn()

        def train_beside(self, rows):
            self.statistics.add(Companions().step(rows))

        def learn(self):
            calls.append("learner")
            return "loss"

    for place in ("parts", "plan", "nowhere"):
        calls.clear()
        plain_trainer, mutated = Trainer(place), type("Mutated", (CompanionsLast, Trainer), {})(place)
        assert [mutated.training_step() for _ in range(2)] == ["loss", "loss"]
        assert calls == ["learner", "companions rows", {"proxy_loss": 0.5}] * 2
        calls.clear()
        assert plain_trainer.training_step() == "loss"
        assert calls == ["companions rows", {"proxy_loss": 0.5}, "learner"]
    with pytest.raises(AttributeError, match="add the method"):
        stepped_by(types.SimpleNamespace(online_models=["proxy"]))


@pytest.fixture(scope="module")
def dropout_run(tmp_path_factory):
    """The record of a run with a proxy and dropout, of each mutation and of none, and of none once more."""
    records = {}
    with pytest.MonkeyPatch.context() as patch:
        for number, mutation in enumerate((None, *MUTATIONS, None)):
            patch.chdir(tmp_path_factory.mktemp(str(number)))
            items = runner.train(RUNS["dropout_proxy"], "dropout_proxy", mutation)
            records.setdefault(mutation, []).append({"0": {"items": items}})
    return records


def test_a_run_repeats_bit_by_bit_and_its_record_is_whole(dropout_run):
    first, second = dropout_run[None]
    assert compare("dropout_proxy", first, second, 1) == []


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_with_dropout_the_order_of_random_numbers_is_seen(dropout_run, mutation):
    (mutated,), plain_record = dropout_run[mutation], dropout_run[None][0]
    items = items_of(compare("dropout_proxy", plain_record, mutated, 1))
    assert {"learner", "companions", "logs"} <= set(items)
