# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""`jest-hf` with bad input: one sentence in flags, no traceback, nothing lost; and the words of every flag's help."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jest_hf.cli import COMMANDS, main
from jest_hf.flags import Parser
from tests.curation.scored import pairs, score
from tests.helpers import tiny_siglip, tiny_siglip_processor
from tests.reference.caching import make_cache
from tests.trainers import make_trainer


EXAMPLES = Path(__file__).parents[1] / "examples"


# ---- Bad input ----


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run, scores, a reference, a cache and their data, each as a user has it."""
    folder = tmp_path_factory.mktemp("made")
    rows = pairs()
    rows.to_parquet(folder / "pairs.parquet")
    rows.select(range(40)).to_parquet(folder / "fewer.parquet")
    other = rows.remove_columns("text").add_column("text", [f"another {k}" for k in range(50)])
    other.to_parquet(folder / "other.parquet")
    datasets.Dataset.from_dict({"url": ["https://a/0.jpg"] * 3, "text": list("abc")}).to_parquet(
        folder / "urls.parquet"
    )
    score(folder / "scores", rows, source={"spec": str(folder / "pairs.parquet")})
    trainer = make_trainer(folder / "run", rows=rows, max_steps=2, record_selection=True, save_strategy="steps")
    trainer.train()
    trainer.save_state()
    make_cache(folder / "cache", rows=list(rows))
    for name, part in (("model", tiny_siglip(1)), ("model", tiny_siglip_processor())):
        part.save_pretrained(folder / name)
    (folder / "empty").mkdir()
    (folder / "full").mkdir()
    (folder / "full" / "mine.txt").write_text("keep me")
    (folder / "half.parquet").write_bytes((folder / "pairs.parquet").read_bytes()[:900])
    (folder / "text.csv").write_text("text\nno picture\n")
    with contextlib.suppress(FileNotFoundError):
        (folder / "kept.parquet").unlink()
    damage(folder)
    return folder


def damage(folder: Path) -> None:
    """Copies of the run and of the scores, each with another fault."""
    for name in ("none", "torn", "old", "state"):
        shutil.copytree(folder / "run", folder / f"run-{name}")
    shutil.rmtree(folder / "run-none" / "selections.parquet")
    part = next((folder / "run-torn" / "selections.parquet").glob("part-*"))
    part.write_bytes(part.read_bytes()[:-20])
    part = next((folder / "run-old" / "selections.parquet").glob("part-*"))
    pq.write_table(pa.table({"batch": [1, 2], "what": [3, 4]}), part)
    (folder / "run-state" / "trainer_state.json").write_text("{")
    for name in ("format", "torn", "json", "unfinished"):
        shutil.copytree(folder / "scores", folder / f"scores-{name}")
    manifest = json.loads((folder / "scores" / "scores.json").read_text())
    (folder / "scores-format" / "scores.json").write_text(json.dumps({**manifest, "format": 99}))
    (folder / "scores-json" / "scores.json").write_text("{")
    (folder / "scores-unfinished" / "scores.json").rename(folder / "scores-unfinished" / "unfinished-scores.json")
    shard = next((folder / "scores-torn").glob("scores-0*.parquet"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 0xFF
    shard.write_bytes(content)


def tree(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


READ = "--output_dir {out}/x --dataset"
SCORE = "--learner {made}/model " + READ
CACHE = "--ref_model {made}/model " + READ
IMAGES = "--model {made}/model " + READ
# By command: the words after it, and what the sentence must have. {made} has the files above; {out} is empty.
FAULTS = {
    "report": [
        ("{made}/nothing", "nothing is not a folder; pass the output_dir"),
        ("{made}/run-none", "run-none has no selections.parquet; train with record_selection=True"),
        ("{made}/run-torn", "part-000001.parquet is damaged"),
        ("{made}/run-old", "is no ledger that this version reads|no column 'step'"),
        ("{made}/run-state", "trainer_state.json is damaged"),
        ("{made}/run --dataset {made}/fewer.parquet", "--dataset has 40 rows, and the run was trained on 50"),
        ("{made}/run --dataset {made}/other.parquet", "--dataset has as many rows as the data of the run"),
        ("{made}/run --dataset {made}/nothing.parquet", "--dataset .*nothing.parquet does not exist; check the path"),
        ("{made}/run --dataset {made}/half.parquet", "--dataset .*half.parquet cannot be loaded .*; check the files"),
        ("{made}/run --dataset {made}/pairs.parquet --image_column imag", "--image_column imag is not a column"),
        ("{made}/run --output {made}/nowhere/page.html", "--output .*: the folder of the page does not exist"),
        ("{made}/run --out page.html", "--out does not exist .did you mean --output"),
    ],
    "curate": [
        ("{made}/scores --output {out}/x", "scores need a rule; pass one, e.g. --keep 0.2 or --above 0."),
        ("{made}/scores --keep 0 --output {out}/x", "--keep 0.0 must be above 0 and at most 1"),
        ("{made}/scores --keep 1.5 --output {out}/x", "--keep 1.5 must be above 0 and at most 1"),
        ("{made}/scores --keep half --output {out}/x", "--keep half is not a number"),
        ("{made}/scores --keep 0.2 --above 1 --output {out}/x", "--keep 0.2 .*--above 1|--above"),
        ("{made}/scores --keep 0.2", "there is nothing to write; pass --output, --push_to_hub or --list."),
        ("{made}/scores --keep 0.2 --output {made}/full", "--output .*full exists; name another folder, or delete it"),
        ("{made}/scores --keep 0.2 --list {made}/pairs.parquet", "pairs.parquet exists; name another list"),
        ("{made}/scores --keep 0.2 --list kept.txt", "--list kept.txt is a Parquet file; give it a name that ends in"),
        ("{made}/scores --keep 0.2 --criterion easy --output {out}/x", "--criterion easy is not known"),
        ("{made}/scores --keep 0.2 --format parket --output {out}/x", "--format parket .*did you mean parquet"),
        ("{made}/scores --keep 0.2 --per sauce --output {out}/x", "--per sauce is not a column"),
        ("{made}/scores --keep 0.2 --run {made}/run-none --output {out}/x", "run-none has no ledger .* output folder"),
        ("{made}/scores --keep 0.2 --run {made}/run-torn --output {out}/x", "part-000001.parquet is damaged"),
        ("{made}/scores --keep 0.2 --dataset {made}/other.parquet --output {out}/x", "are not of this data set"),
        ("{made}/scores --keep 0.2 --dataset_split train --output {out}/x", "--dataset_split, .* need --dataset"),
        ("{made}/scores-format --keep 0.2 --output {out}/x", "have format 99, and this version of jest_hf reads"),
        ("{made}/scores-json --keep 0.2 --output {out}/x", "scores.json"),
        ("{made}/scores-torn --keep 0.2 --output {out}/x", "is damaged: its sha256 is not that in scores.json"),
        ("{made}/scores-unfinished --keep 0.2 --output {out}/x", "has unfinished scores; run `jest-hf score"),
        ("{made}/empty --keep 0.2 --output {out}/x", "has neither scores .scores.json. nor a ledger"),
        ("{made}/run-none --output {out}/x", "has neither scores"),
        ("{made}/run-torn --dataset {made}/pairs.parquet --output {out}/x", "is damaged"),
        ("{made}/run-old --dataset {made}/pairs.parquet --output {out}/x", "is no ledger that this version reads"),
        ("{made}/run --output {out}/x", "does not name its data set; pass the data set as dataset .--dataset."),
        ("{made}/run --dataset {made}/fewer.parquet --output {out}/x", "which this data set of 40 rows does not have"),
    ],
    "score": [
        ("--output_dir {out}/x", "learner|ref_model"),
        (SCORE + " {made}/nothing.parquet", "--dataset .*nothing.parquet does not exist"),
        ("--learner {made}/nothing " + READ + " {made}/pairs.parquet", "--learner .*nothing"),
        ("--learner {made}/empty " + READ + " {made}/pairs.parquet", "--learner .*empty"),
        (SCORE + " {made}/urls.parquet", "--dataset .*urls.parquet has no images"),
        (SCORE + " {made}/text.csv", "--image_column image is not a column"),
        (SCORE + " {made}/pairs.parquet --caption_column txet", "--caption_column txet"),
        (SCORE + " {made}/pairs.parquet --draws 0", "--draws 0"),
        (SCORE + " {made}/pairs.parquet --batch_size 0", "--batch_size 0"),
        (SCORE + " {made}/pairs.parquet --max_length 999", "--max_length 999 exceeds"),
        (SCORE + " {made}/pairs.parquet --max_train_rows 0", "--max_train_rows 0 must be"),
        (SCORE + " {made}/pairs.parquet --dataset_split trian", "--dataset_split trian is not "
         "a split .*did you mean train"),
        (SCORE + " {made}/pairs.parquet --subset {made}/no.parquet", "--subset .*no.parquet "
         "does not exist"),
        (SCORE + " {made}/pairs.parquet --subset {made}/text.csv", "is not a Parquet file"),
        ("--learner {made}/model --dataset {made}/pairs.parquet --output_dir {made}/scores", "choose another folder"),
        ("--learner {made}/model --dataset {made}/pairs.parquet --output_dir {made}/text.csv", "text.csv is a file"),
        ("--reference_cache {made}/empty --output_dir {out}/x", "--?reference_cache.*|.*empty"),
    ],
    "cache-reference": [
        (READ + " {made}/pairs.parquet", "--ref_model must be given"),
        ("--ref_model {made}/nothing " + READ + " {made}/pairs.parquet", "--ref_model .*nothing"),
        ("--ref_model {made}/empty " + READ + " {made}/pairs.parquet", "--ref_model .*empty"),
        (CACHE + " {made}/nothing.parquet", "--dataset .*nothing.parquet does not exist"),
        (CACHE + " {made}/urls.parquet", "has no images, only their addresses"),
        (CACHE + " {made}/pairs.parquet --image_column imag", "--image_column imag is not"),
        (CACHE + " {made}/pairs.parquet --batch_size 0", "--batch_size 0"),
        (CACHE + " {made}/pairs.parquet --dtype flot16", "did you mean float16"),
        ("--ref_model {made}/model --dataset {made}/other.parquet --output_dir {made}/cache", "cache"),
    ],
    "cache-images": [
        ("--model {made}/nothing " + READ + " {made}/pairs.parquet", "--model .*nothing is neither"),
        (IMAGES + " {made}/nothing.parquet", "--dataset .*nothing.parquet does not exist"),
        (IMAGES + " {made}/pairs.parquet --scoring_view image:abc", "--scoring_view image:abc: view"),
        (IMAGES + " {made}/pairs.parquet --scoring_view patch:16", "--scoring_view patch:16"),
        (IMAGES + " {made}/pairs.parquet --image_column imag", "--image_column imag is not"),
    ],
    "estimate": [
        ("--filter_ratio 1.5", r"--filter_ratio 1.5 must be in \[0, 1\)"),
        ("--selection jont", "--selection jont is not known .did you mean joint"),
        ("--learner_size tinny", "--learner_size tinny is not known .did you mean tiny"),
        ("--learner {made}/empty", "--learner .*empty has no configuration"),
        ("--config {made}/nothing.yaml", "--config .*nothing.yaml does not exist"),
        ("--config {made}/text.csv", "--config .*text.csv holds no settings"),
        ("--max_steps ten", "--max_steps ten is not a whole number"),
    ],
    "preset": [("zero9", "zero9 is not known .did you mean zero")],
    "scor": [("", "scor is not known .did you mean score")],
}  # fmt: skip
CASES = [pytest.param(name, *case, id=f"{name} {case[0]}") for name, cases in FAULTS.items() for case in cases]


@pytest.mark.parametrize(("command", "words", "expected"), CASES)
def test_bad_input_is_one_sentence_and_nothing_is_lost(made, tmp_path, monkeypatch, command, words, expected):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "out").mkdir()
    before = tree(made)
    arguments = [word.format(made=made, out=tmp_path / "out") for word in words.split()]
    written = io.StringIO()
    with contextlib.redirect_stderr(written), pytest.raises(SystemExit) as left:
        main([command, *arguments])
    said = left.value.code if isinstance(left.value.code, str) else written.getvalue().strip()
    assert said.startswith("jest-hf") and "\n" not in said, said
    assert re.search(expected, said), said
    assert not re.search(r"(?<![\w/.-])(max_rows|dataset_split|list_path|image_column|ref_model)=", said), said
    assert tree(made) == before


# ---- Words ----


def parsers() -> dict[str, Parser]:
    made = {}
    for name, (module, _) in COMMANDS.items():
        made[name] = Parser(prog=name)
        importlib.import_module(module).add_arguments(made[name])
    sys.path.insert(0, str(EXAMPLES))
    try:
        for name in ("run_jest", "run_labelled"):
            made[name] = importlib.import_module(name).flags()
    finally:
        sys.path.remove(str(EXAMPLES))
    return made


def wrong_words(action: argparse.Action, text: str) -> list[str]:
    """What is wrong with the help of a flag, which is read without the flags around it."""
    found = []
    if not re.match(r"[A-Z`]|output_dir", text) or not text.endswith("."):
        found.append("no sentence")
    if re.match(r"(Its|Of|It|Their|They|This|That|These|As|The same|Same|Ditto|See|Whether or not)\b", text):
        found.append("refers to what stands elsewhere")
    if re.search(r"\b(its|their) (own )?split\b", text):
        found.append("names no object")
    if re.search(r"\(default|\bdefaults? to\b|; default", text, re.IGNORECASE):
        found.append("another form of the default")
    is_switch = action.nargs == 0 or getattr(action, "shown_default", action.default) is False
    if action.option_strings and not action.required and not is_switch and "Default: " not in text:
        found.append("no default")
    return found


@pytest.mark.parametrize("name", [*COMMANDS, "run_jest", "run_labelled"])
def test_every_help_can_be_read_alone(name):
    parser = parsers()[name]
    formatter = parser._get_formatter()
    shown = [one for one in parser._actions if one.help not in (None, argparse.SUPPRESS) and one.dest != "help"]
    assert len(shown) > 5
    wrong = {one.dest: found for one in shown if (found := wrong_words(one, formatter._get_help_string(one)))}
    assert wrong == {}
    assert parser.format_help().count("\n") < (260 if "run" in name or name == "estimate" else 70)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("Its split.", True),
        ("Of an online reference; by default twice the learner's.", True),
        ("The same for the reference. Default: none.", True),
        ("split of --dataset. Default: none.", True),
        ("Split of --dataset.", True),
        ("Split of --dataset; defaults to train. Default: train.", True),
        ("Split of --dataset, e.g. train. Default: the only split.", False),
    ],
)
def test_words_that_say_nothing_are_found(text, wrong):
    action = argparse.ArgumentParser().add_argument("--split")
    assert bool(wrong_words(action, text)) == wrong


def test_every_flag_of_a_script_is_in_a_group():
    made = parsers()
    for name in ("run_jest", "run_labelled"):
        kind = importlib.import_module(name).ScriptArguments
        hidden = {one.dest for one in made[name]._actions if one.help == argparse.SUPPRESS}
        assert not hidden & set(kind.__dataclass_fields__), name


def test_choices_are_those_of_the_library():
    from jest_hf.curation.writers import WRITERS
    from jest_hf.losses import LOSSES
    from jest_hf.reference.cache import SHARD_ROWS
    from jest_hf.reference.shards import DTYPES
    from jest_hf.selection import CRITERIA

    known = {"criterion": CRITERIA, "format": WRITERS, "loss": LOSSES, "dtype": DTYPES}
    for name in ("curate", "score", "cache-reference"):
        for action in parsers()[name]._actions:
            if action.choices is not None:
                assert list(action.choices) == list(known[action.dest]), (name, action.dest)
            assert action.dest != "shard_rows" or action.default == SHARD_ROWS


@pytest.mark.parametrize("words", [["--help"], *([name, "--help"] for name in COMMANDS if name != "estimate")])
def test_help_waits_for_no_library(words):
    """A wrong flag, too: both come before the imports that take seconds."""
    code = (
        "import sys\nfrom jest_hf.cli import main\n"
        f"try:\n    main({words!r})\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'transformers', 'datasets', 'numpy', 'pyarrow'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "--help" in done.stdout, done.stderr
