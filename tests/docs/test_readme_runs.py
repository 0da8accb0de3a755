# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Every block of README.md in order, as in a new clone: none fails, and none gets a warning about its own settings.

The blocks run on the CPU, on small stand-ins: the Hub of the tests serves small models and data sets under the ids
that README.md names, and `data/` has small parquet files. `SMALLER` is all that is replaced in blocks and recipes.
`accelerate launch` itself runs for the block with several processes; the scripts of the others run in a fresh process.
"""

from __future__ import annotations

import ast
import io
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml
from accelerate.commands.launch import launch_command_parser
from transformers import AutoModel, SiglipModel

from jest_hf import JESTConfig, cli
from jest_hf.models import build_siglip
from tests.docs.pages import ROOT, blocks_of
from tests.docs.test_python_blocks import Replace
from tests.docs.test_shell_blocks import commands_of
from tests.helpers import random_rows, tiny_siglip_processor
from tests.hub.conftest import client, hub, served  # noqa: F401


pytestmark = pytest.mark.long

# By option, in Python, in flags and in recipes; and bf16=True, of a GPU, by use_cpu=True. Nothing else is replaced.
SMALLER = {
    "max_steps": 2,
    "num_train_epochs": 1,
    "reference_steps": 2,
    "compare_uniform_steps": 2,
    "compare_learnability_steps": 2,
    "eval_steps": 1,
    "save_steps": 2,
    "dataloader_num_workers": 1,
    "per_device_train_batch_size": 32,
    "scoring_batch_size": 80,
    "learner_size": "micro",
    "image_size": 32,
    "patch_size": 8,
    "num_processes": 2,
}
# Models of the Hub by id, and their sizes here. The larger costs about as many times the smaller one as the real ones
# do, so that a warning of the price would be seen.
MODELS = {"google/siglip2-base-patch16-224": "micro", "google/siglip2-so400m-patch14-224": "tiny"}
# Column of the captions and rows of each split, of data sets of the Hub by id; and rows of local files.
DATA = {
    "my/noisy-pairs": ("text", {"train": 320}),
    "my/clean-pairs": ("text", {"test": 16}),
    "jxie/flickr8k": ("caption_0", {"train": 160, "validation": 16, "test": 16}),
}
FILES = {"data/web/0.parquet": 160, "data/curated.parquet": 64, "data/test.parquet": 16}
SCENES = {"curated": 160, "web": 320, "validation": 32, "test": 32}  # rows of the built-in data
# Warnings of other libraries, of every training on a machine like this one; no setting of a block brings them about.
OF_OTHERS = (
    "'pin_memory' argument is set as true but no accelerator is found",
    "os_token_id must be `None` or an integer within the vocabulary",  # transformers, of the defaults of SigLIP
    "`is_gradient_checkpointing` is deprecated",  # peft
    "find_unused_parameters=True was specified in DDP constructor",  # the Trainer's default
    "mtime may not be reliable on this filesystem",  # transformers, of checkpoints in the same second
    "'jest_hf.cli' found in sys.modules",  # the process of the tests has imported it
)

README = list(blocks_of((ROOT / "README.md").read_text(), "README.md"))


# ---- Stand-ins ----


def pairs(n: int, column: str, seed: int) -> datasets.Dataset:
    rows = random_rows(n, seed=seed)
    return datasets.Dataset.from_list([{"image": row["image"], column: row["text"]} for row in rows])


def parquet(rows: datasets.Dataset) -> bytes:
    buffer = io.BytesIO()
    rows.to_parquet(buffer)
    return buffer.getvalue()


@pytest.fixture
def clone(hub, tmp_path) -> Path:  # noqa: F811
    """A folder with what the blocks need of a clone, and a Hub with the models and data that they name."""
    for seed, (name, size) in enumerate(MODELS.items()):
        processor = tiny_siglip_processor(image_size=32, max_length=64)
        model = build_siglip(size, processor.tokenizer, image_size=32, patch_size=8, seed=seed)
        for saved in (model, processor):
            saved.save_pretrained(tmp_path / "saved" / name)
        files = {path.name: path.read_bytes() for path in (tmp_path / "saved" / name).iterdir()}
        hub.put(name, files | {"README.md": b"---\nlicense: apache-2.0\n---\n"})
    for seed, (name, (column, splits)) in enumerate(DATA.items()):
        tables = {
            f"data/{split}-00000-of-00001.parquet": parquet(pairs(n, column, seed)) for split, n in splits.items()
        }
        hub.put(name, tables, kind="datasets")
    folder = tmp_path / "clone"
    for name, n in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(parquet(pairs(n, "text", n)))
    shutil.copytree(ROOT / "examples", folder / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "jest_hf" / "configs", folder / "jest_hf" / "configs")
    for recipe in (folder / "examples" / "recipes").iterdir():
        recipe.write_text(yaml.safe_dump(smaller(yaml.safe_load(recipe.read_text()))))
    return folder


def smaller(settings: Any) -> Any:
    """The settings of a recipe with the values of `SMALLER`."""
    if not isinstance(settings, dict):
        return settings
    found = {name: SMALLER.get(name, smaller(value)) for name, value in settings.items()}
    return {"use_cpu" if name == "bf16" else name: value for name, value in found.items()}


def smaller_python(text: str) -> str:
    """Python with the values of `SMALLER`."""
    tree = ast.fix_missing_locations(Replace(SMALLER, {}).visit(ast.parse(text.replace("bf16=True", "use_cpu=True"))))
    return ast.unparse(tree)


def smaller_words(words: list[str]) -> list[str]:
    """The words of a command with the values of `SMALLER`."""
    flags = [word.removeprefix("--") for word in words]
    return [str(SMALLER.get(flag, word)) for flag, word in zip(["", *flags], words, strict=False)]


# ---- What runs in a fresh process ----


def prepare(folder: Path) -> list[str]:
    """Go to the clone; return the list that warnings will be added to."""
    import logging
    import warnings

    from jest_hf.data import scenes

    os.chdir(folder)
    scenes.SPLIT_SIZES.update(SCENES)
    found: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: found.append(f"{record.name}: {record.getMessage()}")
    for name in ("", "transformers", "jest_hf"):
        logging.getLogger(name).addHandler(handler)
    warnings.showwarning = lambda message, category, *where: found.append(f"{category.__name__}: {message}")
    return found


def run_python(folder: Path, text: str) -> list[str]:
    found = prepare(folder)
    exec(compile(text, "README.md", "exec"), {"__name__": "__main__"})
    return found


def run_command(folder: Path, words: list[str]) -> list[str]:
    """Run `accelerate launch` with a script or a module, or `jest-hf`, without the launcher."""
    found = prepare(folder)
    if words[0] == "jest-hf":
        cli.main(words[1:])
        return found
    launched = launch_command_parser().parse_args(words[2:])
    assert launched.config_file is None or Path(launched.config_file).is_file()
    sys.argv = [launched.training_script, *launched.training_script_args]
    if launched.module:
        runpy.run_module(launched.training_script, run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(launched.training_script, run_name="__main__")
    return found


def launch(folder: Path, words: list[str]) -> str:
    """Run `accelerate launch`; return what was printed."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0", *words[2:]]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=folder, env=environment, check=False, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


# ---- Tests ----


def commands() -> list[str]:
    return [command for block in README if block.language == "bash" for command in commands_of(block.text)]


def words_of(command: str) -> list[str]:
    with_flags = re.sub(r"\$\(jest-hf preset (\w+)\)", lambda match: cli.preset_flags(match[1]), command)
    if command.startswith("make "):
        shown = subprocess.run(
            ["make", "--no-print-directory", "-n", *shlex.split(command)[1:]], cwd=ROOT, capture_output=True, text=True
        )
        assert shown.returncode == 0, shown.stderr
        with_flags = shown.stdout.splitlines()[-1]
    return smaller_words(shlex.split(with_flags))


def test_every_block_runs_without_a_warning(clone, client):  # noqa: F811
    python = [block.text for block in README if block.language == "python"]
    (clone / "train.py").write_text(smaller_python(python[0]))  # the reader's own script
    for block in README:
        if block.language == "python":
            check(client(run_python, clone, smaller_python(block.text)).value, str(block))
            continue
        for text in commands_of(block.text):
            words = words_of(text)
            if "train.py" in words:
                check([line for line in client(launch, clone, words).value.splitlines() if "arning" in line], text)
            elif "pytest" not in words:
                check(client(run_command, clone, words).value, text)

    for name in ("out", "jest-out/demo", "jest-out/hub_siglip", "jest-out/parquet", "jest-out/cached", "jest-out/iid"):
        assert isinstance(AutoModel.from_pretrained(clone / name), SiglipModel), name
        assert any("eval_R@5" in entry for entry in history(clone / name)), name
    assert isinstance(AutoModel.from_pretrained(clone / "jest-out" / "bootstrap" / "learner"), SiglipModel)
    card = (clone / "jest-out" / "hub_siglip" / "README.md").read_text()
    assert "license: apache-2.0" in card and f"base_model: {next(iter(MODELS))}" in card
    assert "Measured on jxie/flickr8k (split validation)" in card
    assert "| its reference |" in (clone / "jest-out" / "parquet" / "README.md").read_text()
    adapter = json.loads((clone / "jest-out" / "lora" / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == next(iter(MODELS))  # and no folder of this machine


def history(folder: Path) -> list[dict[str, float]]:
    """The log of a run, from a checkpoint in its folder."""
    states = sorted(folder.glob("checkpoint-*/trainer_state.json"))
    return json.loads(states[-1].read_text())["log_history"]


def test_the_numbers_that_the_first_block_names():
    block = next(block.text for block in README if block.language == "python")
    assert "the super-batch has 1,280" in block and "per_device_train_batch_size=256" in block
    assert JESTConfig(output_dir="out", per_device_train_batch_size=256, filter_ratio=0.8).super_batch_size == 1280


def check(warned: list[str], what: str) -> None:
    own = [line for line in warned if not any(words in line for words in OF_OTHERS)]
    assert own == [], f"{what}: {own}"
