# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""What a push holds, and how long the end of training waits for one."""

from __future__ import annotations

import logging
import time
from concurrent.futures import Future
from types import SimpleNamespace

import pytest
from transformers.trainer import PushInProgress

from jest_hf.hub import uploads
from jest_hf.hub.public_files import public_files
from jest_hf.hub.publisher import Publisher
from tests.helpers import tiny_siglip_processor
from tests.trainers import arguments, make_trainer


PUSHED = {
    "README.md",
    "config.json",
    "model.safetensors",
    "processor_config.json",
    "selection.png",
    "selections.parquet/part-000001.parquet",
    "tokenizer.json",
    "tokenizer_config.json",
    "training_args.bin",
}
KEPT = [
    ".env",
    ".selections.parquet.lock",
    "id_rsa",
    "irreducible_losses.safetensors",
    "notes.txt",
    "secrets.json",
    "trainer_state.json",
    "selections-1.parquet/part-000001.parquet",
    "selections.parquet/_damaged-part-000002.parquet",
    "reference_cache/shard-00000.safetensors",
    "reference_cache/manifest.json",
    "incomplete-checkpoint-2/model.safetensors",
    "checkpoint-2/model.safetensors",
    "runs/host/events.out.tfevents.1",
    "model.safetensors.bak",
]


def put_what_is_not_pushed(folder, but="-"):
    for name in (name for name in KEPT if not name.startswith(but)):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("private")


def test_public_files_of_a_run(tmp_path):
    trainer = make_trainer(tmp_path, record_selection=True)
    trainer.train()
    trainer.save_model()
    trainer.create_model_card()
    put_what_is_not_pushed(tmp_path)
    assert set(public_files(tmp_path, trainer.processing_class)) == PUSHED


def train(folder, **changes):
    from pathlib import Path

    put_what_is_not_pushed(Path(folder), but="reference_cache")
    trainer = make_trainer(
        folder, push_to_hub=True, hub_model_id="alice/run", record_selection=True, cache_reference=True, **changes
    )
    trainer.train()
    trainer.push_to_hub()


@pytest.mark.parametrize("strategy", ["end", "every_save", "checkpoint"])
def test_a_push_holds_no_reference_cache_and_no_other_file(hub, client, tmp_path, strategy):
    settings = {"save_strategy": "steps", "save_steps": 2, "max_steps": 2, "hub_strategy": strategy}
    client(train, str(tmp_path / "out"), **settings)
    pushed = hub.repo("alice/run").head.files
    own = {path for path in pushed if not path.startswith("last-checkpoint/")} - {".gitattributes"}
    assert own == PUSHED
    assert not [path for path, blob in pushed.items() if blob.data == b"private"]
    assert (strategy == "checkpoint") == ("last-checkpoint/jest_manifest.json" in pushed)
    folders = str(tmp_path).encode()
    assert not [path for path in own if folders in pushed[path].data], "the machine's folders"


def test_a_file_of_an_unusual_processor_is_pushed(tmp_path):
    processor = tiny_siglip_processor()
    save = processor.save_pretrained

    def save_more(folder, **options):
        save(folder, **options)
        with open(f"{folder}/codes.unusual", "w") as file:
            file.write("codes")

    processor.save_pretrained = save_more
    processor.save_pretrained(tmp_path)
    assert "codes.unusual" in public_files(tmp_path, processor)
    assert "codes.unusual" not in public_files(tmp_path, None)


@pytest.mark.parametrize("silent", [True, False])
def test_the_end_of_training_waits_as_long_as_the_hub_answers(tmp_path, monkeypatch, caplog, silent):
    monkeypatch.setattr(logging.getLogger("jest_hf"), "propagate", True)
    monkeypatch.setattr(uploads, "PROBE", 0.05)
    monkeypatch.setattr(uploads, "SILENCE", 0.3)
    running, waiting = Future(), Future()
    running.set_running_or_notify_cancel()
    answers = iter(range(20))

    def answer():
        if silent:
            return False
        if next(answers) == 15:  # after more than the silence that is borne
            running.set_result(None)
            waiting.set_result(None)
        return True

    monkeypatch.setattr(uploads, "answers", answer)
    trainer = SimpleNamespace(
        push_in_progress=PushInProgress([running, waiting]),
        is_in_train=True,
        hub_model_id="alice/run",
        processing_class=None,
    )
    start = time.monotonic()
    Publisher(arguments(tmp_path)).finish(trainer, lambda folder: pytest.fail("nothing was pushed in this run"))
    assert 0.3 <= time.monotonic() - start < 5
    said = [record.getMessage() for record in caplog.records]
    if silent:
        assert waiting.cancelled() and trainer.push_in_progress is None
        assert said[0].startswith("The Hub has not answered for 0 s, so the uploads to 'alice/run' are not waited for")
    else:
        assert said == []


def test_a_hub_that_cannot_be_reached_does_not_answer(monkeypatch):
    monkeypatch.setattr(uploads, "hf_api", lambda: SimpleNamespace(endpoint="http://127.0.0.1:9"))
    assert not uploads.answers()
