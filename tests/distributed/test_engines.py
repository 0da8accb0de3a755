# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""DDP and DeepSpeed ZeRO-1, 2 and 3 for real, on CPUs: the same selections and the same weights everywhere.

Starting processes is what takes time, so each launch trains several times, and many tests look at one launch. What a
killed job has left is resumed in the launch of the same preset.
"""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel
from transformers import AutoModel, CLIPModel

from jest_hf import JESTTrainer
from tests.distributed.engine_runs import (
    CLIP_ENGINES,
    ENGINES,
    KILLED,
    STAGES,
    STEPS,
    TOLERANCE,
    VIEWS,
    WORLD_SIZE,
    Runs,
)
from tests.distributed.launching import preset_of, start, tail
from tests.distributed.train_script import sums_of_weights, train


pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return Runs(tmp_path_factory.mktemp("engines"))


@pytest.fixture(scope="module")
def ddp(runs):
    runs.launch("ddp")


@pytest.fixture(scope="module")
def zero2(runs):
    runs.launch("zero2")


@pytest.fixture(scope="module")
def zero3(runs):
    runs.launch("zero3")


@pytest.fixture(params=list(ENGINES))
def engine(request):
    """Name of an engine that has been launched."""
    request.getfixturevalue(ENGINES[request.param][0])
    return request.param


def assert_same_weights(model, expected):
    expected = expected.state_dict()
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(weight, expected[name], **TOLERANCE, msg=lambda text, name=name: f"{name}: {text}")


def test_the_engine_is_the_one_that_was_asked_for(runs, engine):
    for rank, report in enumerate(runs.reports[engine]):
        assert report["engine"] == ("DistributedDataParallel" if engine == "ddp" else "DeepSpeedEngine")
        assert report["zero_stage"] == STAGES[engine]
        assert (report["num_processes"], report["process_index"]) == (WORLD_SIZE, rank)
        assert (report["reference"], report["reference_stage"]) == ("SiglipModel", None)
        assert report["dtypes"] == ["torch.float32", "torch.float32"]


def test_each_rank_reads_its_own_share(runs, engine):
    first, second = (report["seen"] for report in runs.reports[engine])
    assert len(first) == len(second) == STEPS
    assert {len(ids) for ids in first + second} == {8}
    everything = [example for ids in first + second for example in ids]
    assert len(set(everything)) == len(everything) == 96


def test_selections_and_losses_are_those_of_one_process(runs, engine):
    alone = {entry["step"]: entry["loss"] for entry in runs.alone.state.log_history if "loss" in entry}
    assert {step: set(ids) for step, ids in runs.selections(engine).items()} == {
        step: set(ids) for step, ids in runs.selections("alone").items()
    }
    assert [len(ids) for ids in runs.selections(engine).values()] == [8] * STEPS
    for report in runs.reports[engine]:
        assert report["losses"] == pytest.approx(list(alone.values()), abs=1e-4)


def test_weights_are_those_of_one_process(runs, engine):
    learned = runs.checkpoint(engine)
    assert_same_weights(learned, runs.alone.model)
    before = AutoModel.from_pretrained(runs.folder / "learner").state_dict()
    learning = [name for name in before if not name.endswith("k_proj.bias")]
    assert all((learned.state_dict()[name] - before[name]).abs().max() > 1e-3 for name in learning)


def test_a_checkpoint_is_a_plain_model_with_the_trained_weights(runs, engine):
    model = runs.checkpoint(engine)
    for report in runs.reports[engine]:
        sums = {name: weight.double().sum().item() for name, weight in model.named_parameters()}
        assert report["weights"] == pytest.approx(sums, abs=1e-5)


def test_a_sharded_reference_says_the_same(runs, zero3):
    for report in runs.reports["zero3_sharded"]:
        assert (report["reference"], report["reference_stage"]) == ("DeepSpeedEngine", 3)
    assert runs.selections("zero3_sharded") == runs.selections("zero3")
    assert_same_weights(runs.checkpoint("zero3_sharded"), runs.checkpoint("zero3"))


@pytest.mark.parametrize("engine", sorted(CLIP_ENGINES), indirect=True)
def test_a_scalar_temperature_is_trained_as_by_one_process(runs, engine):
    """CLIP's `logit_scale` has no dimension, which DeepSpeed does not take."""
    name, alone, first = f"{engine}_clip", runs.alone_clip, CLIPModel.from_pretrained(runs.folder / "clip_learner")
    losses = [entry["loss"] for entry in alone.state.log_history if "loss" in entry]
    assert {step: set(ids) for step, ids in runs.selections(name).items()} == {
        step: set(ids) for step, ids in runs.selections("alone_clip").items()
    }
    for report in runs.reports[name]:
        assert (report["engine"], report["zero_stage"]) == ("DeepSpeedEngine", STAGES[engine])
        assert report["reference_stage"] == (3 if engine == "zero3" else None)
        assert report["losses"] == pytest.approx(losses, abs=1e-4)
    for step in (2, 4):
        learned, missing = CLIPModel.from_pretrained(
            runs.folder / name / f"checkpoint-{step}", output_loading_info=True
        )
        assert not any(missing.values()) and learned.logit_scale.shape == ()
        assert (learned.logit_scale - first.logit_scale).abs() > 1e-4
        assert_same_weights(learned, runs.checkpoint("alone_clip", step))


@pytest.mark.parametrize("engine", ["zero2", "zero3"], indirect=True)
def test_a_scalar_temperature_is_loaded_from_checkpoints(runs, engine):
    """When a run is resumed, also with `model_init`, and when the best model is loaded at the end and saved."""
    name = f"{engine}_clip"
    assert_same_weights(runs.checkpoint(f"{name}_resumed", 4), runs.checkpoint(name, 4))
    for kind in (name, f"{name}_resumed"):
        saved, best = CLIPModel.from_pretrained(runs.folder / kind), runs.checkpoint(name, 2)
        assert saved.logit_scale.shape == ()
        assert all(torch.equal(weight, best.state_dict()[key]) for key, weight in saved.state_dict().items())
    assert runs.checkpoint(name, 4).logit_scale != runs.checkpoint(name, 2).logit_scale


@pytest.mark.parametrize("preset", ["ddp", "zero2", "zero3"])
def test_views_are_mixed_in_one_forward_as_in_one_process(runs, request, preset):
    """Each rank draws which of its examples are trained on at the view; one process that does as they do is equal."""
    request.getfixturevalue(preset)
    name = f"{preset}_views"
    ranks = [report["learned"] for report in runs.reports[name]]
    assert {len(ids) for learned in ranks for ids in learned} == {4}

    class Following(JESTTrainer):
        """First the half of each rank that was seen at the view, then the other halves."""

        def learn(self, model, sub_batch, *more):
            learned = [of_rank[self.state.global_step] for of_rank in ranks]
            order = [example for ids in learned for example in ids[:2]]
            order += [example for ids in learned for example in ids[2:]]
            places = sub_batch["example_id"].tolist()
            rows = torch.tensor(
                [places.index(example) for example in order]
            )  # a ValueError, if it is not the same one
            return super().learn(model, {key: value[rows] for key, value in sub_batch.items()}, *more)

    alone = runs.train_alone(Following, f"alone_{name}", **VIEWS)
    assert {step: set(ids) for step, ids in runs.selections(name).items()} == {
        step: set(ids) for step, ids in runs.selections(f"alone_{name}").items()
    }
    assert_same_weights(runs.checkpoint(name), alone.model)
    full = runs.checkpoint(preset).state_dict()
    assert any((weight - full[key]).abs().max() > 1e-3 for key, weight in alone.model.state_dict().items())
    for report in runs.reports[name]:
        assert report["engine"] == ("DistributedDataParallel" if preset == "ddp" else "DeepSpeedEngine")
        assert report["zero_stage"] == STAGES[preset]


@pytest.mark.parametrize("preset", ["ddp", "zero2", "zero3"])
def test_models_beside_the_learner_are_those_of_one_process(runs, request, preset):
    request.getfixturevalue(preset)
    name, alone = f"{preset}_beside", runs.alone_beside
    assert {step: set(ids) for step, ids in runs.selections(name).items()} == {
        step: set(ids) for step, ids in runs.selections("alone_beside").items()
    }
    assert_same_weights(runs.checkpoint(name, step=4), alone.model)
    first, second = runs.reports[name]
    assert first["beside"] == second["beside"]  # bit by bit: nothing but these ranks keeps them together
    expected = [sums_of_weights(one.model) for one in alone.online_models]
    for found, sums in zip(first["beside"], expected, strict=True):
        assert found == pytest.approx(sums, abs=1e-3)
    # And a resumed run ends as they do.
    for report in runs.reports[f"{name}_resumed"]:
        for found, sums in zip(report["beside"], first["beside"], strict=True):
            assert found == pytest.approx(sums, abs=1e-5)


@pytest.mark.parametrize("preset", ["ddp", "zero2", "zero3"])
def test_bfloat16(runs, request, preset):
    request.getfixturevalue(preset)
    # DDP keeps the weights in float32. A replica beside DeepSpeed keeps its temperature, its first parameter, so.
    learner = "torch.float32" if preset == "ddp" else "torch.bfloat16"
    for report, in_fp32 in zip(runs.reports[f"{preset}_bf16"], runs.reports[preset], strict=True):
        assert report["dtypes"] == [learner, "torch.float32"]
        assert report["losses"] == pytest.approx(in_fp32["losses"][:2], rel=0.1)
    assert str(runs.checkpoint(f"{preset}_bf16", step=2).dtype) == learner


@pytest.mark.parametrize("preset", ["zero2", "zero3"])
def test_lora_with_the_backbone_as_reference(runs, request, ddp, preset):
    request.getfixturevalue(preset)
    report, expected = (runs.reports[f"{name}_lora"][0] for name in (preset, "ddp"))
    assert (report["engine"], report["reference"]) == ("DeepSpeedEngine", "PeftModel")
    assert {step: set(ids) for step, ids in runs.selections(f"{preset}_lora").items()} == {
        step: set(ids) for step, ids in runs.selections("ddp_lora").items()
    }
    assert report["losses"] == pytest.approx(expected["losses"], rel=1e-4)
    assert report["weights"] == pytest.approx(expected["weights"], abs=1e-3)
    saved, first = (
        PeftModel.from_pretrained(AutoModel.from_pretrained(runs.folder / "learner"), folder)
        for folder in (runs.folder / f"{preset}_lora" / "checkpoint-2", runs.folder / "ddp_lora" / "checkpoint-2")
    )
    assert_same_weights(saved, first)


@pytest.mark.parametrize("engine", ["zero1", "zero3"], indirect=True)
def test_a_resumed_run_ends_as_an_uninterrupted_one(runs, engine):
    assert_resumed(runs, engine, f"{engine}_resumed", runs.reports[f"{engine}_resumed"], checkpoint=2)


@pytest.mark.parametrize(("preset", "dies_after", "last_checkpoint"), [(key, *steps) for key, steps in KILLED.items()])
def test_a_killed_rank_ends_the_job_and_the_job_can_go_on(runs, request, preset, dies_after, last_checkpoint):
    request.getfixturevalue(preset)
    name, output = f"{preset}_killed", runs.killed[preset]
    assert output.returncode != 0
    assert "Signal 9 (SIGKILL) received" in tail(output)
    # The other rank did not go on by itself.
    assert not list((runs.folder / f"{name}_reports").glob("rank*.json"))
    assert_resumed(runs, preset, name, runs.reports[name], last_checkpoint)
    assert runs.selections(name) == runs.selections(preset)


def test_a_killed_process_alone_goes_on_as_if_nothing_had_happened(runs):
    settings = {"use_cpu": True, "ddp_backend": None, "per_device_train_batch_size": 8}
    folder = runs.folder / "single_reports"
    killed = start(preset_of("single", 1), folder, [runs.run("single", dies_after=5, **settings)])
    assert killed.returncode != 0 and "SIGKILL" in tail(killed)
    assert not list(folder.glob("rank*.json"))
    train(**runs.run("single", resume_from=str(runs.folder / "single" / "checkpoint-4"), **settings))
    expected = runs.alone.model.state_dict()
    assert runs.selections("single") == runs.selections("alone")
    for name, weight in runs.checkpoint("single").state_dict().items():
        assert torch.equal(weight, expected[name]), name


def assert_resumed(runs, engine, name, resumed, checkpoint):
    for report, uninterrupted in zip(resumed, runs.reports[engine], strict=True):
        assert report["seen"] == uninterrupted["seen"][checkpoint:]
        assert report["losses"] == pytest.approx(uninterrupted["losses"], abs=1e-5)
    assert_same_weights(runs.checkpoint(name), runs.checkpoint(engine))
