# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Making a reference cache: what is in it, and that no interruption can be seen in it."""

from __future__ import annotations

import errno
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import torch
from safetensors.torch import load_file

from jest_hf import JESTDataCollator
from jest_hf.models import DualEncoder
from jest_hf.reference import open_cache, store
from jest_hf.report import forward_flops
from tests.distributed.processes import run
from tests.helpers import (
    random_rows,
    tiny_clip,
    tiny_clip_processor,
    tiny_siglip,
    tiny_siglip2,
    tiny_siglip2_processor,
    tiny_siglip_processor,
)
from tests.reference.caching import contents, make_cache, reference_model


FAMILIES = {
    "siglip": (tiny_siglip, tiny_siglip_processor),
    "siglip2": (tiny_siglip2, tiny_siglip2_processor),
    "clip": (tiny_clip, tiny_clip_processor),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_row_i_is_example_i(tmp_path, family):
    """As if each were embedded in its super-batch, whatever inputs the learner of that run has."""
    build, make_processor = FAMILIES[family]
    rows, processor, model = random_rows(11), make_processor(), reference_model(build=build)
    collator = JESTDataCollator(tiny_clip_processor(24), processor)
    cache = make_cache(tmp_path, rows, model=model, processor=processor, collator=collator)
    view = DualEncoder(model.config, processor, "ref_")
    live = view.score(model, collator([{**row, "example_id": i} for i, row in enumerate(rows)]), 4)
    cached = cache.take(torch.arange(11))
    assert cached.image.dtype == cached.text.dtype == torch.float32
    torch.testing.assert_close(cached.image, live.image)
    torch.testing.assert_close(cached.text, live.text)
    assert (cached.logit_scale, cached.logit_bias) == (live.logit_scale, live.logit_bias)
    assert cache.loss == ("softmax" if family == "clip" else "sigmoid")
    assert (cache.logit_bias is None) == (family == "clip")
    assert cache.n_rows == 11 and cache.width == live.image.shape[1]
    shuffled = torch.tensor([7, 0, 10, 7, 3])
    assert torch.equal(cache.take(shuffled).image, cached.image[shuffled])


def test_fp16_is_the_same_rounded(tmp_path):
    whole, half = make_cache(tmp_path / "32"), make_cache(tmp_path / "16", dtype="float16")
    rows = torch.arange(23)
    assert torch.equal(half.take(rows).image, whole.take(rows).image.half().float())
    assert torch.equal(half.take(rows).text, whole.take(rows).text.half().float())
    assert half.take(rows).image.dtype == torch.float32
    assert half.logit_scale == whole.logit_scale


@pytest.mark.parametrize("family", FAMILIES)
def test_embeddings_that_were_normalised_in_bfloat16_are_cached(tmp_path, family):
    """Their norms are not quite 1, and the check of a shard allows for that."""
    build, make_processor = FAMILIES[family]
    with torch.autocast("cpu", torch.bfloat16):
        cache = make_cache(
            tmp_path, model=reference_model(build=build), processor=make_processor(), precision="bf16", dtype="float16"
        )
    cache.verify()
    norms = cache.take(torch.arange(23)).image.norm(dim=1)
    assert norms.allclose(torch.ones(23), atol=0.01)


def test_all_captions_of_a_row_are_kept(tmp_path):
    """The image once, each usable caption in its place: whichever is drawn, its embedding is there."""
    rows = random_rows(9)
    rows[2]["text"] = ["a red star", "", "a blue star", "a green circle"]
    rows[7]["text"] = ["a star", "a circle"]
    cache = make_cache(tmp_path, rows, shard_rows=4)
    images, texts = {}, {}
    for number in range(3):
        single = [{**row, "text": [row["text"]] if isinstance(row["text"], str) else row["text"]} for row in rows]
        usable = [[caption for caption in row["text"] if caption] for row in single]
        chosen = [
            {**row, "text": captions[min(number, len(captions) - 1)]}
            for row, captions in zip(single, usable, strict=True)
        ]
        one = make_cache(tmp_path / str(number), chosen, shard_rows=4).take(torch.arange(9))
        images[number], texts[number] = one.image, one.text
    for row, count in ((2, 3), (7, 2), (0, 1)):
        for number in range(count):
            found = cache.take(torch.tensor([row]), torch.tensor([number]))
            torch.testing.assert_close(found.text[0], texts[number][row])
            torch.testing.assert_close(found.image[0], images[0][row])
    with pytest.raises(ValueError, match="row 7 has 2 captions .* has its caption number 2"):
        cache.take(torch.tensor([0, 7]), torch.tensor([0, 2]))
    with pytest.raises(ValueError, match=r"row 2 has 3 captions .* has no caption_number to tell which"):
        cache.take(torch.tensor([0, 2]))
    cache.take(torch.tensor([0, 1, 8]))


def test_a_broken_row_keeps_its_place_and_is_marked(tmp_path):
    rows = random_rows(13)
    whole = make_cache(tmp_path / "whole", rows).take(torch.arange(13))
    rows[2] = {**rows[2], "image": None}
    rows[3] = {**rows[3], "text": None}
    for index in range(5, 10):  # a whole shard
        rows[index] = {**rows[index], "image": b"no image"}
    cache = make_cache(tmp_path / "broken", rows)
    valid = cache.readable(torch.arange(13))
    assert valid.tolist() == [index in (0, 1, 4, 10, 11, 12) for index in range(13)]
    found = cache.take(torch.arange(13))
    torch.testing.assert_close(found.image[valid], whole.image[valid])
    torch.testing.assert_close(found.text[valid], whole.text[valid])
    assert not found.image[~valid].any() and not found.text[~valid].any()


def test_flops_count_every_image_and_caption_once(tmp_path):
    rows = random_rows(9)
    rows[2]["text"] = ["a red star", "a blue star"]
    rows[4]["image"] = None
    forward = forward_flops(tiny_siglip(1), text_length=8)
    assert make_cache(tmp_path, rows).flops == 8 * forward["image"] + 9 * forward["text"]


def test_the_folder_is_what_the_manifest_says(tmp_path):
    cache = make_cache(tmp_path)
    names = [f"shard-0000{k}.safetensors" for k in range(5)]
    assert sorted(contents(tmp_path)) == ["manifest.json", *names]
    assert [shard["name"] for shard in cache.manifest["shards"]] == names
    assert [shard["sha256"] for shard in cache.manifest["shards"]] == [contents(tmp_path)[name] for name in names]
    assert [len(load_file(tmp_path / name)["image"]) for name in names] == [5, 5, 5, 5, 3]


@pytest.mark.parametrize("changes", [{"num_workers": 1}, {"disable_tqdm": False}])
def test_workers_and_progress_change_no_byte(tmp_path, changes):
    make_cache(tmp_path / "one")
    make_cache(tmp_path / "other", **changes)
    assert contents(tmp_path / "one") == contents(tmp_path / "other")


def test_a_second_call_computes_and_writes_nothing(tmp_path):
    make_cache(tmp_path)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    model = reference_model()
    forwards = []
    model.register_forward_hook(lambda *_: forwards.append(1))
    make_cache(tmp_path, model=model, batch_size=3)  # how batches were cut is of no importance any more
    assert len(forwards) == 1  # the one that asks for the width and the temperature
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def make_and_be_killed(folder: str, victim: str, when: str) -> None:
    """Make a cache, and be killed at the file `victim`: before it has its name, or right after."""
    replace = os.replace

    def killing(source, target):
        if when == "before" and Path(target).name == victim:
            Path(source).write_bytes(Path(source).read_bytes()[:-7])  # as if in the middle of writing
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)
        if Path(target).name == victim:
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = killing
    make_cache(folder)


@pytest.mark.parametrize(
    "victim, when",
    [
        ("unfinished.json", "before"),
        ("unfinished.json", "after"),
        ("shard-00000.safetensors", "before"),
        ("shard-00003.safetensors", "before"),
        ("shard-00003.safetensors", "after"),
        ("shard-00004.safetensors", "after"),
        ("manifest.json", "before"),
        ("manifest.json", "after"),
    ],
)
def test_killed_while_caching_and_started_again_gives_the_same_bytes(tmp_path, victim, when):
    """A real SIGKILL of a real process."""
    make_cache(tmp_path / "whole")
    killed = tmp_path / "killed"
    with pytest.raises(AssertionError, match="died without a word"):
        run(1, make_and_be_killed, str(killed), victim, when)
    if (victim, when) != ("manifest.json", "after"):
        with pytest.raises(FileNotFoundError, match="cache-reference"):
            open_cache(killed)
    finished = {path.name: path.stat().st_mtime_ns for path in killed.glob("shard-*")}
    model = reference_model()
    forwards = []
    model.register_forward_hook(lambda *_: forwards.append(1))
    make_cache(killed, model=model)
    assert contents(killed) == contents(tmp_path / "whole")
    assert finished.items() <= {path.name: path.stat().st_mtime_ns for path in killed.iterdir()}.items()
    batches = [3, 3, 3, 3, 2]
    assert len(forwards) == 1 + sum(batches[len(finished) :])


def test_a_begun_cache_is_not_finished_with_other_settings(tmp_path):
    with pytest.raises(AssertionError, match="died without a word"):
        run(1, make_and_be_killed, str(tmp_path), "shard-00002.safetensors", "before")
    for changes, difference in (
        ({"batch_size": 3}, "storage.batch_size was 2, and in this run it is 3"),
        ({"shard_rows": 6}, "storage.shard_rows was 5, and in this run it is 6"),
        ({"dtype": "float16"}, "storage.dtype was 'float32', and in this run it is 'float16'"),
        ({"precision": "bf16"}, "storage.precision was 'no', and in this run it is 'bf16'"),
        ({"model": reference_model(2)}, "reference.weights was "),
    ):
        with pytest.raises(
            ValueError, match=f"does not match this run: {difference}.*; choose another folder, or delete"
        ):
            make_cache(tmp_path, **changes)
    make_cache(tmp_path)


def test_a_lost_shard_is_made_again(tmp_path):
    make_cache(tmp_path)
    before = contents(tmp_path)
    (tmp_path / "shard-00001.safetensors").unlink()
    truncated = tmp_path / "shard-00003.safetensors"
    truncated.write_bytes(truncated.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"shard-00001.safetensors is missing"):
        open_cache(tmp_path)
    make_cache(tmp_path)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("full_at", ["unfinished.json", "shard-00002.safetensors", "manifest.json"])
def test_a_full_disk_leaves_no_broken_cache(tmp_path, monkeypatch, full_at):
    """As the kernel reports it: in the middle of a write. What was finished is used when there is room again."""
    make_cache(tmp_path / "whole")

    class Full:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, data):
            self.file.write(data[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def open_on_a_full_disk(path, mode):
        return Full(open(path, mode)) if full_at in Path(path).name else open(path, mode)

    with monkeypatch.context() as patch:
        patch.setattr("jest_hf.files.open", open_on_a_full_disk, raising=False)
        with pytest.raises(OSError, match=rf"{full_at} could not be written \(No space left on device\); make room"):
            make_cache(tmp_path / "full")
    assert not list((tmp_path / "full").glob(".*"))
    with pytest.raises(FileNotFoundError, match="cache-reference"):
        open_cache(tmp_path / "full")
    make_cache(tmp_path / "full")
    assert contents(tmp_path / "full") == contents(tmp_path / "whole")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the kernel has no /dev/full")
def test_the_kernels_own_full_disk(tmp_path, monkeypatch):
    monkeypatch.setattr("jest_hf.files.open", lambda path, mode: open("/dev/full", "wb"), raising=False)
    with pytest.raises(OSError, match="No space left on device"):
        store.write_atomically(tmp_path / "manifest.json", b"{}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("changes", [{"dtype": "bfloat16"}, {"shard_rows": 0}, {"batch_size": 0}])
def test_wrong_settings_are_named(tmp_path, changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        make_cache(tmp_path, **changes)


def test_a_cache_of_something_else_is_replaced_with_replace(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    monkeypatch.setattr(logging.getLogger("jest_hf"), "propagate", True)
    other = reference_model(2)
    make_cache(tmp_path / "other", model=other, shard_rows=7)
    make_cache(tmp_path / "cache", shard_rows=4)
    (tmp_path / "cache" / "README.md").write_text("a card")
    make_cache(tmp_path / "cache", model=other, shard_rows=7, replace=True)
    assert "does not match this run (reference.weights was" in caplog.text
    assert (tmp_path / "cache" / "README.md").read_text() == "a card"
    (tmp_path / "cache" / "README.md").unlink()
    assert contents(tmp_path / "cache") == contents(tmp_path / "other")
    caplog.clear()
    make_cache(tmp_path / "cache", model=other, shard_rows=7, replace=True)
    assert not caplog.text


def test_a_folder_of_unknown_shards_is_left_alone(tmp_path):
    make_cache(tmp_path)
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(ValueError, match="its shards have no manifest; choose another folder"):
        make_cache(tmp_path)


def test_a_data_set_and_a_list_of_its_rows_have_one_cache(tmp_path):
    make_cache(tmp_path)
    make_cache(tmp_path, datasets.Dataset.from_list(random_rows(23)))


def test_a_second_command_in_the_same_folder_is_refused(tmp_path):
    """It is another process, since a lock belongs to a process."""
    script = (
        "import sys, time; from pathlib import Path; from jest_hf.data.files import claim_folder;"
        "from jest_hf.distributed import Ranks; claim_folder(Path(sys.argv[1]), Ranks()); print('taken', flush=True);"
        "time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "cache")], stdout=subprocess.PIPE)
    try:
        assert other.stdout.readline() == b"taken\n"
        with pytest.raises(ValueError, match="another process is writing in .*cache; wait for its end"):
            make_cache(tmp_path / "cache", random_rows(9))
    finally:
        other.kill()
        other.wait()
    (tmp_path / "cache" / ".shard-00000.safetensors.ab12.tmp").write_bytes(b"half")  # as a killed process leaves it
    make_cache(tmp_path / "cache", random_rows(9))
    assert not list((tmp_path / "cache").glob(".*"))
