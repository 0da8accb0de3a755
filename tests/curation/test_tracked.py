# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Pictures and scores of selected and rejected rows in a run's trackers: the real files of TensorBoard where it is
installed, and otherwise what its writer and W&B's module get."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback, WandbCallback

from jest_hf import JESTDataCollator
from jest_hf.curation.pictures import Picture
from jest_hf.curation.run_plots import plot_gallery
from jest_hf.report import read_rejected, read_selections
from tests.helpers import random_rows, tiny_siglip_processor
from tests.trainers import make_trainer


class Writer:
    """What a `SummaryWriter` has of this, written down."""

    def __init__(self):
        self.histograms, self.figures = {}, {}

    def add_histogram(self, name, values, step):
        self.histograms[name, step] = values

    def add_figure(self, name, figure, step):
        self.figures[name, step] = figure

    def add_scalar(self, *what): ...

    def add_text(self, *what): ...

    def flush(self): ...

    def close(self): ...


class Board(TensorBoardCallback):
    def __init__(self):  # without TensorBoard
        self.writer = self.tb_writer = Writer()
        self.logging_dir = self._SummaryWriter = None


class Wandb:
    """The module `wandb`, as far as this needs it."""

    def __init__(self):
        self.logs = []

    def log(self, logs):
        self.logs.append(logs)

    def Histogram(self, values):
        return np.asarray(values)

    def Image(self, image, caption):
        return image.size, caption


class Biases(WandbCallback):
    def __init__(self):
        self._wandb, self._initialized = Wandb(), True
        self.module = self._wandb

    def on_train_begin(self, *args, **kwargs): ...

    def on_train_end(self, *args, **kwargs): ...

    def on_log(self, *args, **kwargs): ...

    def on_save(self, *args, **kwargs): ...


def trained(folder, callbacks, rows=None, collator=None, **settings):
    settings = {"record_selection": True, "max_steps": 4, "eval_strategy": "steps", "eval_steps": 2} | settings
    options = {"callbacks": callbacks, "eval_dataset": random_rows(8, seed=9), "data_collator": collator}
    trainer = make_trainer(folder, rows=rows or random_rows(64), options=options, **settings)
    trainer.train()
    return trainer


def scores_of(folder, reader, first, last):
    rows = [row for row in reader(folder / "selections.parquet").to_pylist() if first <= row["step"] <= last]
    return sorted(row["score"] for row in rows), {row["example_id"] for row in rows}


@pytest.mark.parametrize("saves", [{}, {"save_strategy": "steps", "save_steps": 1}])  # a checkpoint flushes the ledger
def test_each_evaluation_sends_what_came_since_the_last(tmp_path, saves):
    rows = random_rows(64)
    board, biases = Board(), Biases()
    trained(tmp_path, [board, biases], rows, **saves)
    for part, reader in (("selected", read_selections), ("rejected", read_rejected)):
        for step in (2, 4):
            scores, ids = scores_of(tmp_path, reader, step - 1, step)
            assert sorted(board.writer.histograms[f"selection/scores_{part}", step]) == pytest.approx(scores)
            titles = [axes.get_title() for axes in board.writer.figures[f"selection/{part}", step].axes]
            assert any(title.startswith("score ") for title in titles)
            logs = next(
                one for one in biases.module.logs if one["train/global_step"] == step and f"selection/{part}" in one
            )
            assert sorted(logs[f"selection/scores_{part}"]) == pytest.approx(scores)
            shown = logs[f"selection/{part}"]
            assert 0 < len(shown) <= 12
            for size, caption in shown:
                note, text, title = caption.split(" | ")
                example_id = int(title.removeprefix("row "))
                assert size == (16, 16) and example_id in ids and text == rows[example_id]["text"]
                assert float(note.removeprefix("score ")) == pytest.approx(
                    min(scores, key=lambda one: abs(one - float(note.removeprefix("score ")))), rel=0.01
                )
    assert len(board.writer.figures) == len(board.writer.histograms) == 4


def test_a_second_evaluation_set_sends_nothing_twice(tmp_path):
    board = Board()
    sets = {"one": random_rows(8, seed=8), "two": random_rows(8, seed=9)}
    trainer = make_trainer(
        tmp_path,
        rows=random_rows(64),
        options={"callbacks": [board], "eval_dataset": sets},
        **{"record_selection": True, "max_steps": 2, "eval_strategy": "steps", "eval_steps": 2},
    )
    sent = []
    board.writer.add_figure = lambda name, figure, step: sent.append((name, step))
    trainer.train()
    assert sent == [("selection/selected", 2), ("selection/rejected", 2)]


class Silent(TrainerCallback):
    """A tracker that is not known."""


@pytest.mark.parametrize("settings", [{"record_selection": False}, {"eval_strategy": "no"}])
def test_without_a_ledger_or_evaluations_nothing_is_sent(tmp_path, settings):
    board = Board()
    trained(tmp_path, [board, Silent()], **settings)
    assert not board.writer.figures and not board.writer.histograms


def test_a_broken_image_has_a_caption_and_no_picture(tmp_path):
    rows = random_rows(64)
    for row in rows:
        row["image"] = dict(row["image"])
    board = Board()
    trainer = trained(tmp_path, [board], rows, max_steps=2)
    tracked = next(one for one in trainer.callback_handler.callbacks if type(one).__name__ == "TrackedSelection")
    rows[3]["image"] = {"bytes": b"broken", "path": None}
    picture = tracked.pictures.of(3, "score 1")
    assert picture.jpeg is None and "cannot be read" in picture.note
    assert plot_gallery([picture]).axes[0].get_title().startswith("score 1")


def test_a_broken_first_row_and_a_named_caption_column(tmp_path):
    board = Board()
    collator = JESTDataCollator(tiny_siglip_processor(), caption_column="text")
    trainer = trained(tmp_path, [board], [None, *random_rows(63)], max_steps=2, collator=collator)
    assert ("selection/selected", 2) in board.writer.figures
    tracked = next(one for one in trainer.callback_handler.callbacks if type(one).__name__ == "TrackedSelection")
    picture = tracked.pictures.of(0, "score 1")
    assert picture.jpeg is None and "cannot be read" in picture.note and not picture.caption


def test_no_error_of_pictures_or_of_a_tracker_ends_a_run(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    caplog.set_level("WARNING", "jest_hf")
    board, biases = Board(), Biases()

    def fail(*what):
        raise RuntimeError("no such picture")

    monkeypatch.setattr("jest_hf.curation.tracked.Pictures.of", fail)
    monkeypatch.setattr(biases.module, "log", fail)
    trained(tmp_path, [biases, board])
    assert len(board.writer.histograms) == 4 and not board.writer.figures
    said = [record.getMessage() for record in caplog.records if "training goes on" in record.getMessage()]
    assert len(said) == 1 and "RuntimeError: no such picture" in said[0]


def test_a_hostile_caption_is_drawn_as_it_is():
    pictures = [Picture("row 1", r"$\frac{1}$ _x_ \badcommand $$", "score 1", None)] * 7
    figure = plot_gallery(pictures)
    figure.canvas.draw()  # mathematics that cannot be parsed would raise here
    assert len(figure.axes) == 12


def test_the_files_of_tensorboard(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    trained(tmp_path, [], report_to="tensorboard")
    (folder,) = {path.parent for path in tmp_path.rglob("events.out.tfevents.*")}
    read = accumulator.EventAccumulator(str(folder), size_guidance={"images": 0, "histograms": 0})
    read.Reload()
    assert {"selection/selected", "selection/rejected"} <= set(read.Tags()["images"])
    assert {"selection/scores_selected", "selection/scores_rejected"} <= set(read.Tags()["histograms"])
    images = read.Images("selection/selected")
    assert [image.step for image in images] == [2, 4] and images[0].encoded_image_string.startswith(b"\x89PNG")
    scores, _ = scores_of(tmp_path, read_selections, 1, 2)
    histogram = read.Histograms("selection/scores_selected")[0].histogram_value
    assert histogram.num == len(scores) and histogram.min == pytest.approx(scores[0])
