# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The report on a run: its pictures are those of the ledger, and its page is safe in a real browser."""

from __future__ import annotations

import html
import http.server
import io
import json
import re
import shutil
import subprocess
import threading
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jest_hf.cli import main
from jest_hf.curation import run_report
from jest_hf.data import load_source
from jest_hf.report import SelectionLedger, read_rejected, read_selections
from tests.helpers import random_rows
from tests.trainers import make_trainer


N_ROWS, STEPS = 80, 4
HOSTILE = '</figure><script>document.title = "taken"; throw "error"</script><img src="http://127.0.0.1:{port}/x"> red'


class Requests(http.server.BaseHTTPRequestHandler):
    """Answers nothing, and writes down what was requested."""

    def do_GET(self):
        self.server.paths.append(self.path)
        self.send_error(404)

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def outside():
    """A server on this machine, which stands for the network: the requests it gets, and its port."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Requests)
    server.paths = []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def trained(tmp_path_factory, outside):
    """A run on rows with hostile captions, sources, labels, and a near duplicate; and the file of its data."""
    folder = tmp_path_factory.mktemp("report")
    rows = random_rows(N_ROWS)
    for number, row in enumerate(rows):
        row |= {"text": HOSTILE.format(port=outside.server_port), "noise": ["clean", "$<b>_"][number % 2]}
        row["label"] = number % 4
        row["image"] = row["image"] if number % 10 else rows[0]["image"]
    features = datasets.Features(
        image=datasets.Image(),
        text=datasets.Value("string"),
        noise=datasets.Value("string"),
        label=datasets.ClassLabel(names=["<i>one", "two", "three", "four"]),
    )
    datasets.Dataset.from_list(rows, features=features).to_parquet(folder / "data.parquet")
    data = load_source(str(folder / "data.parquet"))
    settings = {"save_strategy": "steps", "save_steps": STEPS, "eval_strategy": "steps", "eval_steps": 2}
    trainer = make_trainer(
        folder / "run",
        rows=data,
        options={"eval_dataset": data.select(range(12))},
        max_steps=STEPS,
        source_column="noise",
        record_selection=True,
        **settings,
    )
    trainer.train()
    return folder / "run", folder / "data.parquet"


@pytest.fixture(scope="module")
def report(trained):
    return run_report(trained[0], load_source(str(trained[1])))


def galleries(report):
    return {gallery.title: gallery for gallery in report.galleries}


def numbers(gallery):
    return [int(re.match(r"row (\d+)", picture.title)[1]) for picture in gallery.pictures]


def run_state(folder):
    return json.loads(next(folder.glob("checkpoint-*/trainer_state.json")).read_text())


def test_figures_are_those_of_the_run(report):
    assert list(report.figures) == ["Curves", "Scores", "Sources", "How often rows were selected"]
    curves = report.figures["Curves"].axes
    assert [axes.get_ylabel() for axes in curves if axes.get_ylabel()] == ["loss", "quality", "learnability"]
    assert {"examples trained on", "FLOPs spent", "seconds"} <= {axes.get_xlabel() for axes in curves}
    history = run_state(report.folder)["log_history"]
    logged = [entry for entry in history if "loss" in entry]
    losses = curves[0].get_lines()[0]
    assert losses.get_xdata().tolist() == [entry["examples_trained"] for entry in logged] == [8, 16, 24, 32]
    assert losses.get_ydata().tolist() == [entry["loss"] for entry in logged]
    seconds = [entry["elapsed_seconds"] for entry in logged]
    assert seconds == sorted(seconds) and seconds[0] > 0
    shares = np.array([line.get_ydata() for line in report.figures["Sources"].axes[0].get_lines()])
    np.testing.assert_allclose(shares.sum(axis=0), 1)


def test_pictures_are_the_rows_of_the_ledger(trained, report):
    table = read_selections(trained[0] / "selections.parquet").to_pylist()
    shown = galleries(report)
    for period, step in (("early", 1), ("late", STEPS)):
        for part, read in (("Selected", read_selections), ("Rejected", read_rejected)):
            rows = read(trained[0] / "selections.parquet").to_pylist()
            scores = {row["example_id"]: f"score {row['score']:.3g}" for row in rows if row["step"] == step}
            gallery = shown[f"{part}, {period}"]
            assert len(gallery.pictures) == min(12, len(scores))
            assert all(
                picture.note == scores[n] for picture, n in zip(gallery.pictures, numbers(gallery), strict=True)
            )
            values = [float(picture.note.removeprefix("score ")) for picture in gallery.pictures]
            assert values == sorted(values, reverse=True)
    ids = [row["example_id"] for row in table]
    often = shown["Selected most often"]
    assert [picture.note for picture in often.pictures] == [f"{ids.count(n)} times" for n in numbers(often)]
    assert ids.count(numbers(often)[0]) == max(map(ids.count, ids))
    never = shown["Never selected"]
    assert never.pictures and not set(numbers(never)) & set(ids)
    assert f"the {N_ROWS - len(set(ids))} rows" in never.about
    data = load_source(str(trained[1]))
    for picture, number in zip(never.pictures, numbers(never), strict=True):
        pixels = np.asarray(Image.open(io.BytesIO(picture.jpeg))).astype(int)
        own = np.asarray(data[number]["image"].convert("RGB")).astype(int)
        assert pixels.shape == own.shape and np.abs(pixels - own).mean() < 25  # a JPEG of it


def test_near_duplicates_and_classes(trained, report):
    pictures = galleries(report)["Near duplicates among them"].pictures
    found = numbers(galleries(report)["Near duplicates among them"])
    copies = set(range(0, N_ROWS, 10)) & set(
        read_selections(trained[0] / "selections.parquet")["example_id"].to_pylist()
    )
    assert len(copies) > 1 and set(found) == copies  # the same picture, in these rows
    assert [picture.note for picture in pictures[1::2]] == ["0 bits apart"] * (len(copies) - 1)
    table, sources, settings = report.tables
    attributes = run_state(trained[0])["stateful_callbacks"]["RunStatistics"]["attributes"]
    assert [(row[0], row[1], row[2]) for row in sources.rows] == [
        (name, str(seen), str(selected)) for name, (selected, seen) in attributes["sources"].items()
    ]
    assert ("criterion", "learnability") in settings.rows
    assert {row[0] for row in table.rows} == {"<i>one", "two", "three", "four"}
    assert sum(int(row[1]) for row in table.rows) == N_ROWS and sum(int(row[3]) for row in table.rows) == STEPS * 8


def test_without_data_there_are_no_pictures_and_the_page_says_so(trained):
    found = run_report(trained[0])
    assert any("--dataset" in note for note in found.notes) and "--dataset" in found.html()
    assert all(picture.jpeg is None for gallery in found.galleries for picture in gallery.pictures)
    assert '<img alt="row' not in found.html() and list(found.figures) == [
        "Curves",
        "Scores",
        "Sources",
        "How often rows were selected",
    ]


def test_the_command_writes_one_small_page(trained, tmp_path, capsys):
    page = tmp_path / "page.html"
    main(["report", str(trained[0]), "--dataset", str(trained[1]), "--output", str(page)])
    assert str(page) in capsys.readouterr().out
    text = page.read_text()
    assert len(text) < 10e6 and text.startswith("<!DOCTYPE html>")
    assert set(re.findall(r'(?:src|href)="([^",:]*)', text)) == {"data"}
    assert "<script" not in text and "</figure><script" in html.unescape(text)
    assert "<i>one" not in text and "&lt;i&gt;one" in text


# ---- In a browser ----


def visited(page: Path, folder: Path) -> tuple[str, str]:
    """Open a page in a headless Chromium: the document as it is then, and what the browser has logged."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium on this machine: `apt-get install chromium`")
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--enable-logging=stderr"]
    flags += ["--virtual-time-budget=3000", f"--user-data-dir={folder / 'profile'}", "--window-size=1200,3000"]
    flags += [f"--screenshot={folder / 'shot.png'}"] if page.name == "page.html" else []
    done = subprocess.run([program, *flags, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=120)
    return done.stdout, done.stderr


def test_the_page_in_a_browser_runs_no_script_and_requests_nothing(report, tmp_path, outside):
    outside.paths.clear()
    page = tmp_path / "page.html"
    page.write_text(report.html())
    document, log = visited(page, tmp_path)
    assert "CONSOLE" not in log  # no error, and nothing that the policy had to stop
    assert outside.paths == []
    assert "<title>run: what was selected</title>" in document and "<script" not in document
    assert "&lt;script&gt;document.title" in document  # the caption, as text
    assert document.count("<img") == report.html().count("<img") > 60

    # The same page with its captions as HTML, and without its policy: what is looked for above is then found.
    page = tmp_path / "hostile.html"
    page.write_text(re.sub(r"<meta http-equiv[^>]*>", "", html.unescape(report.html())))
    document, log = visited(page, tmp_path)
    assert "CONSOLE" in log and "<title>taken</title>" in document and "/x" in outside.paths

    # And with its policy: the browser stops it all the same.
    outside.paths.clear()
    page.write_text(html.unescape(report.html().replace("&#x27;", "'")))
    document, log = visited(page, tmp_path)
    assert "<title>taken</title>" not in document and outside.paths == []


# ---- Bad input: one sentence each ----


def refused(*arguments) -> str:
    with pytest.raises(SystemExit) as left:
        main(["report", *map(str, arguments), "--output", f"{arguments[0]}.html"])
    message = str(left.value)
    assert message.startswith("jest-hf report: ") and "\n" not in message
    return message


def test_folders_that_are_no_runs(tmp_path):
    assert "is not a folder; pass the output_dir" in refused(tmp_path / "nothing")
    (tmp_path / "run").mkdir()
    assert "has no selections.parquet; train with record_selection=True" in refused(tmp_path / "run")
    (tmp_path / "run" / "selections.parquet").mkdir()
    assert "has no selections yet" in refused(tmp_path / "run")


def test_damaged_and_foreign_runs(trained, tmp_path):
    run = Path(shutil.copytree(trained[0], tmp_path / "run"))
    part = run / "selections.parquet" / "part-000001.parquet"
    whole = part.read_bytes()
    part.write_bytes(whole[:-100])
    assert "part-000001.parquet is damaged" in refused(run)
    pq.write_table(pa.table({"step": [1], "sample": ["a"]}), part)
    assert "is no ledger that this version reads" in refused(run)
    pq.write_table(pa.table({"sample": ["a"]}), part)
    assert "no column 'step'" in refused(run)
    part.write_bytes(whole)
    state = next(run.glob("checkpoint-*/trainer_state.json"))
    state.write_text(state.read_text()[:50])
    assert "trainer_state.json is damaged" in refused(run)
    state.unlink()
    assert any("No trainer_state.json" in note for note in run_report(run).notes)


def test_data_of_another_run(trained, tmp_path):
    run, data = trained
    assert "has 50 rows, and the run was trained on 80" in refused(run, "--dataset", data, "--max_train_rows", 50)
    rows = load_source(str(data))
    rows.select(range(N_ROWS - 1, -1, -1)).to_parquet(tmp_path / "other.parquet")
    message = refused(run, "--dataset", tmp_path / "other.parquet")
    assert "has as many rows as the data of the run (80), and others" in message and "--dataset_where" in message
    assert "--caption_column nothing" in refused(run, "--dataset", data, "--caption_column", "nothing")
    assert "--label_column nothing" in refused(run, "--dataset", data, "--label_column", "nothing")
    assert "does not exist" in refused(run, "--dataset", tmp_path / "nothing.parquet")


def test_a_folder_of_the_page_that_does_not_exist(trained):
    with pytest.raises(SystemExit, match="--output /nowhere/page.html: the folder of the page does not exist"):
        main(["report", str(trained[0]), "--output", "/nowhere/page.html"])


def test_rows_of_a_stream_are_found_by_their_keys(tmp_path):
    rows = datasets.Dataset.from_list([{**row, "__key__": f"k{n}"} for n, row in enumerate(random_rows(80))])
    trainer = make_trainer(
        tmp_path / "run", rows=rows.to_iterable_dataset(), record_selection=True, save_strategy="steps", save_steps=3
    )
    trainer.train()
    backwards = rows.select(range(79, -1, -1))
    found = galleries(run_report(tmp_path / "run", backwards))["Selected most often"]
    for picture, number in zip(found.pictures, numbers(found), strict=True):
        assert picture.title == f"row {number} (k{number})" and picture.caption == rows[number]["text"]
    with pytest.raises(ValueError, match="trained on a stream"):
        run_report(tmp_path / "run", rows.remove_columns("__key__"))


def test_ledgers_of_earlier_versions(tmp_path):
    columns = {"step": [1, 1, 2, 2], "rank": [0] * 4, "order": [0, 1] * 2, "example_id": [3, 4, 3, 5]}
    pq.write_table(pa.table(columns), tmp_path / "selections.parquet")
    report = run_report(tmp_path, random_rows(6))
    assert any("no scores" in note for note in report.notes) and list(report.figures) == [
        "How often rows were selected"
    ]
    assert numbers(galleries(report)["Selected most often"]) == [3, 4, 5]
    assert numbers(galleries(report)["Never selected"]) == [0, 1, 2]
    assert galleries(report).keys() >= {"Selected, early", "Selected, late"} and report.html()


def test_broken_images_are_said(tmp_path):
    ledger = SelectionLedger(tmp_path / "selections.parquet")
    ledger.record(1, [0, 1], scores=[0.5, 0.25])
    ledger.close()
    report = run_report(tmp_path, [{"image": b"broken", "text": ["one", "two"]}, *random_rows(1)])
    broken, whole = galleries(report)["Selected, early"].pictures
    assert broken.jpeg is None and "cannot be read" in broken.note and broken.caption == "one | two"
    assert whole.jpeg is not None


def test_a_broken_first_row_and_a_named_caption_column(tmp_path):
    ledger = SelectionLedger(tmp_path / "selections.parquet")
    ledger.record(1, [0, 1], scores=[0.5, 0.25])
    ledger.close()
    broken, whole = galleries(run_report(tmp_path, [None, *random_rows(1)], caption_column="text"))[
        "Selected, early"
    ].pictures
    assert broken.jpeg is None and "cannot be read" in broken.note and not broken.caption
    assert whole.jpeg is not None and whole.caption == random_rows(1)[0]["text"]
    with pytest.raises(ValueError, match="--caption_column nothing is not a column of --dataset"):
        run_report(tmp_path, [None, *random_rows(1)], caption_column="nothing")
