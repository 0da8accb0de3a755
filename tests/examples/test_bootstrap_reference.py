# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The bootstrapping chain: what its stages make, that none is done twice or with other settings, what is published."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from pathlib import Path

import datasets
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModel

from jest_hf import JESTTrainer
from tests.helpers import random_rows, tiny_siglip, tiny_siglip_processor
from tests.hub.conftest import client, hub, served  # noqa: F401


ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "examples" / "recipes").glob("bootstrap*.yaml"))


@pytest.fixture(scope="module")
def example():
    return load_example()


def load_example():
    sys.path.insert(0, str(ROOT / "examples"))
    try:
        return importlib.import_module("bootstrap_reference")
    finally:
        sys.path.remove(str(ROOT / "examples"))


def write_recipe(folder: Path, **changes) -> list[str]:
    """A chain of seconds on a pool of 60 rows, two of them broken; the arguments that start it."""
    folder.mkdir(parents=True, exist_ok=True)
    pool = random_rows(60)
    pool[3]["image"], pool[7]["text"] = {"bytes": b"broken", "path": None}, ""
    for name, rows in (("pool", pool), ("seed", random_rows(16, seed=1)), ("validation", random_rows(12, seed=2))):
        datasets.Dataset.from_list(rows).to_parquet(folder / f"{name}.parquet")
    if not (folder / "start").exists():
        tiny_siglip(0, max_length=64).save_pretrained(folder / "start")
        tiny_siglip_processor(max_length=64).save_pretrained(folder / "start")
    recipe = {
        "output_dir": str(folder / "out"),
        "pool": {"spec": str(folder / "pool.parquet")},
        "seed_dataset": {"spec": str(folder / "seed.parquet")},
        "validation": {"spec": str(folder / "validation.parquet")},
        "model": {"learner": str(folder / "start")},
        "filters": {"min_words": 2, "top_alignment": 0.5, "duplicate_distance": 0},
        "training": {
            "per_device_train_batch_size": 8,
            "max_steps": 4,
            "save_steps": 2,
            "learning_rate": 1e-3,
            "use_cpu": True,
            "disable_tqdm": True,
        },
        "learner": {"filter_ratio": 0.5, "n_chunks": 2, "cache_reference": True},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe | changes))
    return ["--config", str(folder / "recipe.yaml")]


def record(folder: Path, stage: str) -> dict:
    return json.loads((folder / "out" / stage / "_stage.json").read_text())


def weights(folder: Path, stage: str) -> dict[str, torch.Tensor]:
    return load_file(folder / "out" / stage / "model.safetensors")


def same(left, right) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.fixture(scope="module")
def finished(example, tmp_path_factory):
    """The folder of a chain of two rounds, done without interruption."""
    folder = tmp_path_factory.mktemp("chain")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
        example.main(write_recipe(folder, rounds=2))
    return folder


@pytest.fixture
def chain(finished, tmp_path, monkeypatch):
    """A copy of it, in which to break things."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", finished / "cache")
    shutil.copytree(finished, tmp_path / "chain")
    # In other places: data and models are known by what is in them.
    return tmp_path / "chain", write_recipe(tmp_path / "chain", rounds=2)


def refuse_to_train(self, *args, **kwargs):
    raise AssertionError(f"{self.args.output_dir} was trained again")


# ---- What comes out ----


def test_every_stage_leaves_what_the_next_one_needs(finished):
    curated = record(finished, "curated")["result"]
    left = {one["name"]: one["rows_left"] for one in curated["filters"]}
    assert list(left) == ["readable", "min_words", "top_alignment", "duplicate_distance"]
    assert (curated["pool"], left["readable"], left["top_alignment"]) == (60, 58, 29)
    rows = datasets.load_from_disk(str(finished / "out" / "curated" / "data"))
    assert len(rows) == curated["rows"] == left["duplicate_distance"]
    assert {"image", "text", "pool_row", "alignment"} == set(rows.column_names)
    pool = datasets.load_dataset("parquet", data_files=str(finished / "pool.parquet"), split="train")
    assert rows["text"] == [pool["text"][row] for row in rows["pool_row"]]

    counts = {"aligner": (32, 32), "reference": (32, 32), "learner": (32, 64), "learner-2": (32, 64)}
    for stage, (trained, seen) in counts.items():
        result = record(finished, stage)["result"]
        assert (result["examples_trained"], result["examples_seen"]) == (trained, seen)
        assert result["flops"] > 0 and 0 <= result["eval_R@5"] <= 1
        assert type(AutoModel.from_pretrained(finished / "out" / stage)).__name__ == "SiglipModel"
        assert (finished / "out" / stage / "README.md").exists()
    assert record(finished, "measures")["result"]["flops"] > 0
    assert not same(weights(finished, "reference"), weights(finished, "learner"))


def test_each_learner_has_the_reference_before_it(finished):
    digests = {stage: record(finished, stage)["settings"]["reference"] for stage in ("learner", "learner-2")}
    assert record(finished, "reference")["settings"]["reference"] is None
    assert digests["learner"] != digests["learner-2"]
    manifests = {
        stage: json.loads((finished / "out" / stage / "reference_cache" / "manifest.json").read_text())["reference"]
        for stage in digests
    }
    example = load_example()
    for stage, before in (("learner", "reference"), ("learner-2", "learner")):
        identity = example.identify_reference(str(finished / "out" / before))
        assert manifests[stage]["weights"] == identity["weights"]


def test_the_learner_can_start_from_the_reference(example, chain, monkeypatch):
    folder, words = chain
    shutil.rmtree(folder / "out" / "learner")
    shutil.rmtree(folder / "out" / "learner-2")
    starts = []
    train = JESTTrainer.train
    monkeypatch.setattr(
        JESTTrainer,
        "train",
        lambda self, **options: (
            starts.append({name: one.clone() for name, one in self.model.state_dict().items()})
            or train(self, **options)
        ),
    )
    example.main([*words, "learner_starts_from_reference=true", "rounds=1"])
    assert len(starts) == 1 and same(starts[0], weights(folder, "reference"))


def test_a_named_aligner_and_a_curated_set_that_exists(example, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    words = write_recipe(tmp_path, seed_dataset=None, aligner=str(tmp_path / "start"))
    example.main([*words, "training.max_steps=1"])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "curated", "learner", "measures", "reference",
    ]  # fmt: skip
    words = write_recipe(tmp_path / "given", seed_dataset=None)
    given = f"curated_dataset={{spec: {tmp_path / 'given' / 'seed.parquet'}}}"
    example.main([*words, given, "training.max_steps=1"])
    assert sorted(path.name for path in (tmp_path / "given" / "out").iterdir()) == ["learner", "reference"]


# ---- Again ----


def test_what_is_finished_is_not_done_again(example, chain, monkeypatch, capsys):
    folder, words = chain
    monkeypatch.setattr(JESTTrainer, "train", refuse_to_train)
    monkeypatch.setattr(example, "measure_alignment", refuse_to_train)
    example.main([*words, "training.logging_steps=7"])  # which changes nothing that comes out
    assert "learner-2" in capsys.readouterr().out  # the table
    shutil.rmtree(folder / "out" / "learner-2")
    with pytest.raises(AssertionError, match="learner-2 was trained again"):
        example.main(words)


@pytest.mark.parametrize("stage", ["aligner", "learner"])
def test_an_interrupted_training_goes_on_from_its_checkpoint(example, chain, monkeypatch, stage):
    folder, words = chain
    expected = {name: weights(folder, name) for name in ("reference", "learner")}
    trained = ["aligner", "reference", "learner"][0 if stage == "aligner" else 2 :]
    for name in (*trained, "learner-2", *(["measures", "curated"] if stage == "aligner" else [])):
        shutil.rmtree(folder / "out" / name)
    step = JESTTrainer.training_step

    def killed(self, *args, **kwargs):
        if self.state.global_step == 3 and self.args.output_dir.endswith(stage):
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(JESTTrainer, "training_step", killed)
        with pytest.raises(KeyboardInterrupt):
            example.main([*words, "rounds=1"])
    assert record(folder, stage)["result"] is None and (folder / "out" / stage / "checkpoint-2").exists()

    first_steps = {}
    monkeypatch.setattr(
        JESTTrainer,
        "training_step",
        lambda self, *args, **kwargs: (
            first_steps.setdefault(Path(self.args.output_dir).name, self.state.global_step)
            and None
            or step(self, *args, **kwargs)
        ),
    )
    example.main([*words, "rounds=1"])
    assert first_steps == {name: 2 if name == stage else 0 for name in trained}
    assert all(same(weights(folder, name), state) for name, state in expected.items())


def test_an_interrupted_measurement_goes_on_with_the_next_part(example, chain, monkeypatch):
    folder, words = chain
    for stage in ("measures", "curated"):
        shutil.rmtree(folder / "out" / stage)
    monkeypatch.setattr(example, "ROWS_IN_PART", 25)
    measure, calls = example.measure_alignment, []

    def killed_at_the_third(rows, *args, **kwargs):
        calls.append(len(rows))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return measure(rows, *args, **kwargs)

    monkeypatch.setattr(example, "measure_alignment", killed_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        example.main(words)
    assert record(folder, "measures")["result"] is None
    monkeypatch.setattr(JESTTrainer, "train", refuse_to_train)  # the same curated set: nothing is trained anew
    example.main(words)
    assert calls == [25, 25, 10, 10]


@pytest.mark.parametrize(
    ("change", "stage", "difference"),
    [
        ("aligner_training.seed=3", "aligner", r"training.seed was 'not set' and is 3"),
        ("filters.top_alignment=0.4", "curated", r"filters.top_alignment was 0.5 and is 0.4"),
        ("training.learning_rate=0.01", "aligner", r"training.learning_rate was 0.001 and is 0.01"),
        ("learner.filter_ratio=0.75", "learner", r"training.filter_ratio was 0.5 and is 0.75"),
        ("learner.scoring_view=patch:16", "learner", r"training.scoring_view was 'not set' and is 'patch:16'"),
        ("learner_starts_from_reference=true", "learner", r"starts_from_reference was False and is True"),
        ("pool.max_rows=50", "measures", r"pool.n_rows was 60 and is 50"),
    ],
)
def test_a_changed_setting_does_not_reuse_what_another_made(example, chain, monkeypatch, change, stage, difference):
    folder, words = chain
    monkeypatch.setattr(JESTTrainer, "train", refuse_to_train)
    before = record(folder, stage)
    with pytest.raises(
        ValueError, match=rf"{stage} was made with other settings \(.*{difference}\); choose another output"
    ):
        example.main([*words, change])
    assert record(folder, stage) == before


def test_a_changed_row_of_the_pool_is_noticed(example, chain, monkeypatch):
    folder, words = chain
    rows = datasets.load_dataset("parquet", data_files=str(folder / "pool.parquet"), split="train").to_list()
    rows[20]["text"] = "a white star and a black square"
    datasets.Dataset.from_list(rows).to_parquet(folder / "pool.parquet")
    monkeypatch.setattr(JESTTrainer, "train", refuse_to_train)
    with pytest.raises(ValueError, match=r"measures was made with other settings \(pool.captions was"):
        example.main(words)


def test_an_interrupted_stage_is_not_continued_with_other_settings(example, chain):
    folder, words = chain
    made = record(folder, "learner")
    made["settings"]["processes"] = 9
    (folder / "out" / "learner" / "_stage.json").write_text(json.dumps(made | {"result": None}))
    with pytest.raises(ValueError, match="learner was made with other settings .processes was 9 and is 1"):
        example.main(words)


# ---- Recipes ----


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipes_hold_settings_that_exist(example, recipe):
    parsed = example.parse(["--config", str(recipe)])
    assert parsed.output_dir.startswith("jest-out")  # which git ignores
    for section in (parsed.aligner_training, parsed.reference, parsed.learner):
        settings = {**parsed.training, **section, "output_dir": parsed.output_dir, "use_cpu": True}
        assert example.JESTConfig(**settings)
    assert example.CurationFilters(**parsed.filters)
    assert f"--config examples/recipes/{recipe.name}" in recipe.read_text()


def test_flexi_is_the_same_chain_with_a_cheaper_view():
    plain, flexi = (yaml.safe_load(path.read_text()) for path in RECIPES)
    added = {"scoring_view": "patch:16", "low_resolution_fraction": 0.5}
    assert flexi == {**plain, "output_dir": flexi["output_dir"], "learner": {**plain["learner"], **added}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("learner.filter_ration=0.5", "do not exist in learner: filter_ration"),
        ("filters.min_word=2", "do not exist in filters: min_word"),
        ("model.width=2", "do not exist in model: width"),
        ("curated=3", "do not exist in the recipe: curated"),
        ("aligner=some/model", "sets seed_dataset and aligner of curated_dataset"),
        ("seed_dataset=null", "sets none of curated_dataset, aligner and seed_dataset; set one"),
        ("rounds=0", "rounds=0 must be at least 1"),
    ],
)
def test_a_wrong_recipe_is_refused(example, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        example.parse([*write_recipe(tmp_path), change])


# ---- On the Hub ----


def run_chain(words):
    """In a fresh process: what was published where."""
    return {stage.folder.name: stage.published for stage in load_example().main(words).stages}


def publish(words):
    """In a fresh process: run the chain, and use what it has published."""
    published = run_chain(words)
    rows = datasets.load_dataset("alice/boot-curated", split="train")
    return {"published": published, "rows": len(rows), "columns": rows.column_names}


def test_every_stage_is_published(hub, client, tmp_path):  # noqa: F811
    words = [*write_recipe(tmp_path, hub_name="alice/boot"), "learner.cache_reference=false"]
    done = client(publish, words).value
    repos = {"aligner": "alice/boot-aligner", "reference": "alice/boot-reference", "learner": "alice/boot-learner"}
    for stage, repo in repos.items():
        files = hub.repo(repo).head.files
        assert {"model.safetensors", "config.json", "README.md", "processor_config.json"} <= set(files)
        assert not [path for path in files if path.startswith(("_", "checkpoint-"))]
        assert done["published"][stage] == (repo, hub.repo(repo).head.oid)
    assert done["published"]["measures"] is None
    assert done["rows"] == record(tmp_path, "curated")["result"]["rows"]
    # The learner's reference is what was published, and its card says which commit.
    reference, commit = done["published"]["reference"]
    card = hub.repo("alice/boot-learner").head.files["README.md"].data.decode()
    assert f"{reference}@{commit}" in card
    assert "Measured on validation.parquet" in card
    curated = hub.repo("alice/boot-curated", "datasets").head.files["README.md"].data.decode()
    assert "top_alignment" in curated and "alice/boot-aligner" in curated and "dataset_info" in curated
    assert str(tmp_path) not in card + curated

    # Again: nothing is pushed twice.
    asked = len(hub.asked("POST"))
    assert client(publish, words).value == done
    assert not [request for request in hub.asked("POST")[asked:] if "/commit/" in request.path]


def test_a_failed_push_is_made_up_for_at_the_next_start(hub, client, tmp_path):  # noqa: F811
    words = [*write_recipe(tmp_path, hub_name="alice/boot"), "learner.cache_reference=false"]
    hub.fail("POST", "/api/models/alice/boot-reference/commit/", status=403, times=9)
    hub.fail("POST", "/api/datasets/alice/boot-curated/commit/", status=403, times=9)
    outcome = client(run_chain, words)
    assert outcome.log.count("is finished but not published") == 2
    assert outcome.value["reference"] is None and outcome.value["curated"] is None
    assert outcome.value["learner"] == ("alice/boot-learner", hub.repo("alice/boot-learner").head.oid)
    before = weights(tmp_path, "learner")
    hub.faults.clear()
    done = client(publish, words).value["published"]
    assert done["reference"] == ("alice/boot-reference", hub.repo("alice/boot-reference").head.oid)
    files = hub.repo("alice/boot-reference").head.files
    assert {"model.safetensors", "README.md"} <= set(files)
    assert not [path for path in files if path.startswith(("_", "checkpoint-"))]
    assert same(weights(tmp_path, "learner"), before)
