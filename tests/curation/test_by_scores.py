# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Curated data sets: the right rows, as they were, with their scores; or a list of the rows; and nothing lost."""

from __future__ import annotations

import re
import tarfile

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jest_hf.cli import main
from jest_hf.curation import Rule, curate_dataset, open_scores
from jest_hf.curation.choose import repeats, scores_by
from jest_hf.data import load_source, select_subset
from jest_hf.data.subset import write_subset
from jest_hf.report import SelectionLedger
from tests.curation.scored import BROKEN, pairs, score
from tests.helpers import tiny_siglip, tiny_siglip_processor


UIDS = [f"{7 * number % 50:032x}" for number in range(50)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Scores of 50 pairs, and the pairs as a file."""
    path = tmp_path_factory.mktemp("scored")
    pairs().to_parquet(path / "pairs.parquet")
    rows = load_source(str(path / "pairs.parquet"))
    score(path / "scores", rows, source={"spec": str(path / "pairs.parquet")})
    return path


def run_of(path, selected):
    """The folder of a run that selected rows, by step."""
    ledger = SelectionLedger(path / "selections.parquet")
    for step, ids in enumerate(selected, 1):
        ledger.record(step, ids)
    ledger.flush()
    return path


def best(folder, share, name="learnability"):
    values = score_values(folder)[name]
    readable = np.flatnonzero(~np.isnan(values))
    return sorted(readable[np.argsort(-values[readable])][: round(share * len(readable))].tolist())


def score_values(folder):
    return open_scores(folder / "scores").scores()


def loaded(path, tmp_path):
    return datasets.load_dataset(str(path), split="train", cache_dir=str(tmp_path / "cache"))


# ---- Rules ----


def test_a_share_of_the_readable_rows_is_kept():
    scores = np.array([1.0, np.nan, 3.0, 2.0, 2.0])
    assert Rule(keep=0.5).choose(scores).tolist() == [2, 3]  # of equal scores the first
    assert Rule(keep=1.0).choose(scores).tolist() == [0, 2, 3, 4]
    assert Rule(above=1.0).choose(scores).tolist() == [2, 3, 4]
    assert Rule().choose(np.array([0.0, 2.0, np.nan])).tolist() == [1]
    assert Rule(keep=0.5, per="source").choose(scores, ["a", "a", None, "a", None]).tolist() == [2, 3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": 0.0}, "keep=0.0 must be above 0 and at most 1"),
        ({"keep": 1.5}, "keep=1.5 must be above 0 and at most 1"),
        ({"keep": float("nan")}, "keep=nan must be above 0"),
        ({"keep": 0.2, "above": 0.0}, "keep=0.2 and above=0.0 are two rules"),
        ({"above": 0.0, "per": "source"}, "per='source' keeps a share of each source; pass the share as keep"),
    ],
)
def test_rules_that_cannot_work_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Rule(**options)


def test_a_rule_that_keeps_nothing_is_refused():
    scores = np.array([0.5, np.nan, 0.25])
    with pytest.raises(ValueError, match=r"no row has a score above 2.0; the highest is 0.5; lower the threshold"):
        Rule(above=2.0).choose(scores)
    with pytest.raises(ValueError, match="keep=0.01 leaves none of 2 readable rows"):
        Rule(keep=0.01).choose(scores)


def test_a_criterion_ranks_by_the_losses_that_it_needs():
    losses = {"learner_loss": np.array([3.0, 1.0], np.float32), "reference_loss": np.array([1.0, 2.0], np.float32)}
    assert scores_by("hard_learner", losses).tolist() == [3, 1]
    assert scores_by("easy_reference", losses).tolist() == [-1, -2]
    assert scores_by("learnability", losses).tolist() == [2, -1]
    with pytest.raises(ValueError, match="needs the learner's losses, and these scores have reference_loss"):
        scores_by("learnability", {"reference_loss": losses["reference_loss"]})
    with pytest.raises(ValueError, match="criterion='easy' is not known; choose one of learnability"):
        scores_by("easy", losses)


def test_passes_over_the_kept_rows_are_told():
    assert repeats(200, 1000, None, None) is None
    assert "0.4 passes over the 200 kept rows" in repeats(200, 1000, 10, 8)
    many = repeats(100, 1000, 100, 10)
    assert "10.0 passes over the 100 kept rows, and 1.0 passes over all 1,000" in many
    assert "a share of 0.25 makes 4 passes" in many  # 250 rows, 1000 examples
    assert "all rows make the fewest passes" in repeats(100, 200, 100, 10)
    for steps, batch_size in ((10, None), (None, 8), (0, 8)):
        with pytest.raises(ValueError, match="must be at least 1: pass steps and batch_size"):
            repeats(1, 1, steps, batch_size)


# ---- Rows as they were ----


def test_rows_are_copied_as_they_are(folder, tmp_path):
    before = load_source(str(folder / "pairs.parquet")).cast_column("image", datasets.Image(decode=False))
    curated = curate_dataset(folder / "scores", tmp_path / "out", keep=0.3, steps=10, batch_size=8)
    assert curated.kept.tolist() == best(folder, 0.3) and len(curated.kept) == 15
    rows = loaded(tmp_path / "out", tmp_path)
    assert rows.features["image"] == datasets.Image()
    assert rows["pool_row"][:] == curated.kept.tolist()
    undecoded, values = rows.cast_column("image", datasets.Image(decode=False)), score_values(folder)
    for row in undecoded:
        assert before[row["pool_row"]].items() <= row.items()
        assert row["learnability"] == values["learnability"][row["pool_row"]]
    assert BROKEN not in rows["pool_row"][:]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "10 steps of 8 rows are 5.3 passes over the 15 kept rows" in card
    assert re.search(r"\| learnability +\| keep = 0.3 +\| 15 ", card) and "pairs.parquet" in card
    assert str(folder) not in card
    assert re.search(r"\| learner +\| SiglipModel, sha256 of its weights [0-9a-f]{64} ", card)
    run_blocks(card, tmp_path / "out")


def run_blocks(card, folder):
    for code in re.findall(r"```python\n(.*?)```", card, re.DOTALL):
        exec(compile(code.replace("Path.cwd()", repr(str(folder))), "README.md", "exec"), {"__name__": "__main__"})


def test_images_that_the_data_only_name_are_copied(tmp_path):
    (tmp_path / "images").mkdir()
    named = []
    for number, row in enumerate(pairs(20).cast_column("image", datasets.Image(decode=False))):
        path = tmp_path / "images" / f"{number}.png"
        path.write_bytes((row["image"] or {"bytes": b"no image"})["bytes"])
        named.append({"image": str(path), "text": row["text"]})
    rows = datasets.Dataset.from_list(named).cast_column("image", datasets.Image())
    score(tmp_path / "scores", rows)
    curate_dataset(tmp_path / "scores", tmp_path / "out", dataset=rows, keep=0.5)
    for row in loaded(tmp_path / "out", tmp_path).cast_column("image", datasets.Image(decode=False)):
        assert row["image"]["bytes"] == (tmp_path / "images" / f"{row['pool_row']}.png").read_bytes()


def test_a_webdataset_has_the_files_as_they_were(folder, tmp_path):
    before = load_source(str(folder / "pairs.parquet")).cast_column("image", datasets.Image(decode=False))
    curated = curate_dataset(folder / "scores", tmp_path / "out", keep=0.3, format="webdataset")
    with tarfile.open(tmp_path / "out" / "data" / "train-00000.tar") as archive:
        names = archive.getnames()
        assert names[:3] == [f"{curated.kept[0]:09d}.{suffix}" for suffix in ("png", "txt", "json")]
        for row in curated.kept.tolist():
            assert archive.extractfile(f"{row:09d}.png").read() == before[row]["image"]["bytes"]
    rows = loaded(tmp_path / "out", tmp_path)
    assert rows["txt"][:] == [before[row]["text"] for row in curated.kept.tolist()]
    assert {"pool_row", "learnability", "source"} <= set(rows[0]["json"])


def test_a_curated_webdataset_can_be_curated_again(folder, tmp_path):
    """Its keys and the fields of its .json stay; a name that is taken gets a number."""
    curate_dataset(folder / "scores", tmp_path / "one", keep=0.5, format="webdataset")
    rows = load_source(str(tmp_path / "one" / "data" / "*.tar"))
    score(tmp_path / "scores", rows, image_column="png", caption_column="txt")
    curate_dataset(tmp_path / "scores", tmp_path / "two", dataset=rows, keep=0.5, format="webdataset")
    again = load_source(str(tmp_path / "two" / "data" / "*.tar"))
    fields = {row["__key__"]: row for row in rows}
    for row in again:
        known = fields[row["__key__"]]
        assert row["txt"] == known["txt"] and row["json"]["source"] == known["json"]["source"]
    flat = load_source(str(folder / "pairs.parquet")).rename_column("source", "learnability")
    score(tmp_path / "flat", flat)
    curate_dataset(tmp_path / "flat", tmp_path / "three", dataset=flat, keep=0.5)
    assert {"learnability", "learnability_2"} <= set(loaded(tmp_path / "three", tmp_path).column_names)


def test_large_data_are_written_in_parts(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("jest_hf.curation.writers.BATCH_ROWS", 4)
    monkeypatch.setattr("jest_hf.curation.writers.SHARD_BYTES", 2500)
    for kind in ("parquet", "webdataset"):
        curated = curate_dataset(folder / "scores", tmp_path / kind, keep=0.5, format=kind)
        files = sorted(path.name for path in (tmp_path / kind / "data").iterdir())
        assert len(files) > 2
        if kind == "parquet":
            assert files[-1] == f"train-{len(files) - 1:05d}-of-{len(files):05d}.parquet"
        assert len(loaded(tmp_path / kind, tmp_path)) == len(curated.kept)


# ---- Shares per source, lists, runs ----


def test_a_share_of_each_source(folder, tmp_path):
    rows = load_source(str(folder / "pairs.parquet"))
    curated = curate_dataset(folder / "scores", list_path=tmp_path / "kept.parquet", keep=0.4, per="source")
    kept = [rows[row]["source"] for row in curated.kept.tolist()]
    assert (kept.count("a"), kept.count("b")) == (round(0.4 * 39), round(0.4 * 10))


def test_a_list_of_rows_is_a_subset_for_others(folder, tmp_path):
    path = tmp_path / "lists" / "kept.parquet"
    curated = curate_dataset(folder / "scores", list_path=path, keep=0.3)
    assert curated.files == (path,) and sorted(path.parent.iterdir()) == [path]
    rows = load_source(str(folder / "pairs.parquet"), subset=path)
    whole = load_source(str(folder / "pairs.parquet"))
    assert rows["text"][:] == [whole[row]["text"] for row in curated.kept.tolist()]
    flags = [
        "--dataset",
        str(folder / "pairs.parquet"),
        "--subset",
        str(path),
        "--output_dir",
        str(tmp_path / "again"),
    ]
    for part in (tiny_siglip(0), tiny_siglip_processor()):
        part.save_pretrained(tmp_path / "learner")
    main(["score", "--learner", str(tmp_path / "learner"), *flags, "--batch_size", "8", "--disable_tqdm"])
    write_subset(tmp_path / "one.parquet", {"row": [1]}, n_rows=50)
    with pytest.raises(ValueError, match="lists 1 of 50 rows, .* and the data set has 49; name the data set"):
        select_subset(whole.select(range(49)), tmp_path / "one.parquet")


def test_a_list_of_other_data_is_noticed_by_their_names(folder, tmp_path):
    rows = load_source(str(folder / "pairs.parquet")).add_column("uid", UIDS)
    score(tmp_path / "scores", rows)
    curated = curate_dataset(tmp_path / "scores", list_path=tmp_path / "kept.parquet", dataset=rows, keep=0.3)
    assert len(select_subset(rows, tmp_path / "kept.parquet")) == 15
    with pytest.raises(ValueError, match="the values of 'uid' differ"):
        select_subset(rows.select(range(49, -1, -1)), tmp_path / "kept.parquet")
    found = np.load(tmp_path / "kept.npy")
    assert found.dtype == np.dtype("u8,u8") and curated.files[1] == tmp_path / "kept.npy"
    assert found.tolist() == sorted((0, int(UIDS[row], 16)) for row in curated.kept.tolist())
    short = rows.remove_columns(["uid"]).add_column("uid", ["x1"] * 50)
    with pytest.raises(ValueError, match="uid 'x1' is no hexadecimal number of 32 digits"):
        curate_dataset(tmp_path / "scores", list_path=tmp_path / "no.parquet", dataset=short, keep=0.3)
    assert not list(tmp_path.glob("*no*"))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"rows": [1, 2]}, "has no column 'row'"),
        ({"row": ["a"]}, "has no column 'row'"),
        ({"row": []}, "has no column 'row'|no rows"),
        ({"row": [0, 50]}, "up to row 50, and the data set has 50"),
        ({"row": [-1]}, "the data set has 50"),
        ({"row": [3, 3]}, "the data set has 50"),
    ],
)
def test_a_list_that_is_none_is_refused(tmp_path, columns, message):
    pq.write_table(pa.table(columns), tmp_path / "list.parquet")
    with pytest.raises(ValueError, match=message):
        select_subset(pairs(), tmp_path / "list.parquet")


def test_no_list_at_all(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist; make it with `jest-hf curate --list"):
        select_subset(pairs(), tmp_path / "list.parquet")
    (tmp_path / "list.parquet").write_text("row")
    with pytest.raises(ValueError, match="is not a Parquet file"):
        select_subset(pairs(), tmp_path / "list.parquet")


def test_the_union_of_what_a_run_selected(folder, tmp_path):
    run = run_of(tmp_path / "run", [[3, 4], [4, 20], [4, 3]])
    source = {"spec": str(folder / "pairs.parquet")}
    curate_dataset(run, tmp_path / "union", source=source)
    rows = loaded(tmp_path / "union", tmp_path)
    assert (rows["pool_row"][:], rows["times_selected"][:]) == ([3, 4, 20], [2, 3, 1])
    often = curate_dataset(run, list_path=tmp_path / "often.parquet", source=source, above=1)
    assert often.kept.tolist() == [3, 4]
    share = curate_dataset(run, list_path=tmp_path / "share.parquet", source=source, keep=0.02)
    assert share.kept.tolist() == [4]
    curate_dataset(folder / "scores", tmp_path / "both", keep=0.3, run=run)
    times = {row["pool_row"]: row["times_selected"] for row in loaded(tmp_path / "both", tmp_path)}
    assert times == {row: {3: 2, 4: 3, 20: 1}.get(row, 0) for row in best(folder, 0.3)}


def test_a_run_on_a_stream_knows_rows_by_their_own_ids(tmp_path):
    rows = pairs(30).add_column("example_id", [100 + number for number in range(30)])
    run = run_of(tmp_path / "run", [[103, 120]])
    with pytest.raises(ValueError, match="example_id=103, which this data set of 30 rows does not have; .* by_key"):
        curate_dataset(run, list_path=tmp_path / "kept.parquet", dataset=rows)
    curated = curate_dataset(run, list_path=tmp_path / "kept.parquet", dataset=rows, by_key=True)
    assert curated.kept.tolist() == [3, 20]


# ---- What is refused, and that nothing is lost ----


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, ValueError, "scores need a rule; pass one, e.g. keep=0.2"),
        ({"keep": 1.5}, ValueError, "keep=1.5"),
        ({"keep": 0.3, "format": "csv"}, ValueError, "format='csv' is not known; choose one of parquet, webdataset"),
        ({"keep": 0.3, "per": "origin"}, ValueError, "per='origin' is not a column .* source"),
        ({"keep": 0.3, "output_dir": None}, ValueError, "there is nothing to write; pass output_dir, push_to_hub or"),
        ({"keep": 0.3, "list_path": "kept.csv"}, ValueError, "give it a name that ends in .parquet"),
        ({"keep": 0.3, "steps": 10}, ValueError, "pass steps and batch_size"),
        ({"keep": 0.3, "criterion": "easy"}, ValueError, "criterion='easy' is not known"),
        ({"keep": 0.3, "dataset": pairs(40)}, ValueError, "not of this data set: data.n_rows was 50"),
        (
            {"keep": 0.3, "dataset": pairs().rename_column("text", "words")},
            ValueError,
            "not of this data set: data.cap",
        ),
        ({"keep": 0.3, "run": "nowhere"}, FileNotFoundError, "nowhere has no ledger"),
        ({"keep": 0.3, "scores": "nowhere"}, FileNotFoundError, "nowhere has neither scores .* nor a ledger"),
    ],
)
def test_options_that_cannot_work_are_refused(folder, tmp_path, options, error, message):
    given = {"scores": folder / "scores", "output_dir": tmp_path / "out", **options}
    with pytest.raises(error, match=message):
        curate_dataset(given.pop("scores"), given.pop("output_dir"), **given)
    assert not list(tmp_path.iterdir())


def test_rows_in_a_list_are_refused(folder, tmp_path):
    with pytest.raises(TypeError, match="dataset is a list, .* datasets.Dataset.from_list"):
        curate_dataset(folder / "scores", tmp_path / "out", keep=0.3, dataset=list(pairs()))


def test_a_folder_that_exists_is_kept(folder, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="out' exists; name another folder"):
        curate_dataset(folder / "scores", tmp_path / "out", keep=0.3)
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"
    (tmp_path / "kept.parquet").write_text("mine")
    with pytest.raises(FileExistsError, match="kept.parquet exists"):
        curate_dataset(folder / "scores", list_path=tmp_path / "kept.parquet", keep=0.3)


def test_a_ledger_that_cannot_be_used(folder, tmp_path):
    source = {"spec": str(folder / "pairs.parquet")}
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "selections.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(ValueError, match="selections.parquet.* is damaged"):
        curate_dataset(tmp_path / "damaged", tmp_path / "out", source=source)
    empty = run_of(tmp_path / "empty", [])
    with pytest.raises(ValueError, match="is empty: the run has not selected anything yet"):
        curate_dataset(empty, tmp_path / "out", source=source)
    run = run_of(tmp_path / "run", [[50]])
    with pytest.raises(ValueError, match="example_id=50, which this data set of 50 rows does not have"):
        curate_dataset(run, tmp_path / "out", source=source)
    with pytest.raises(ValueError, match="does not name its data set; pass the data set as dataset"):
        curate_dataset(run, tmp_path / "out")
    with pytest.raises(ValueError, match="is a run already"):
        curate_dataset(run, tmp_path / "out", source=source, run=run)
    assert not (tmp_path / "out").exists()


def test_a_write_that_fails_leaves_nothing(folder, tmp_path, monkeypatch):
    def failing(*arguments):
        raise OSError(28, "no space left")

    with monkeypatch.context() as patched:
        patched.setattr("jest_hf.curation.by_scores.write_card", failing)
        with pytest.raises(OSError, match="no space"):
            curate_dataset(folder / "scores", tmp_path / "out", keep=0.3)
    assert not list(tmp_path.iterdir())
    (tmp_path / ".out.unfinished").mkdir()  # of a process that was killed
    curate_dataset(folder / "scores", tmp_path / "out", keep=0.3)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_command_says_what_was_kept(folder, tmp_path, capsys):
    out, listed = str(tmp_path / "out"), str(tmp_path / "kept.parquet")
    flags = ["--keep", "0.3", "--output", out, "--list", listed, "--steps", "10", "--batch_size", "8"]
    main(["curate", str(folder / "scores"), *flags])
    said = capsys.readouterr().out
    assert f"{out}, {listed}: 15 of 50 rows (30.0%; 1 broken)" in said and "5.3 passes over the 15 kept" in said
    with pytest.raises(SystemExit, match="--subset need --dataset"):
        main(["curate", str(folder / "scores"), "--keep", "0.3", "--output", out, "--dataset_split", "train"])
