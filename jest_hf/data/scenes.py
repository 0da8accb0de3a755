# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The built-in data set: small pictures of coloured shapes with captions, drawn in memory, without a download.

A scene is a background and one to three objects (size, colour, shape) in a row or in a column. The caption names all
of these, in one of several word orders and with synonyms, as natural language does. Each row is a function of `(seed,
split, index)` only: a smaller data set is a prefix of a larger one, and all machines draw the same rows.

    curated      6,000 clean pairs, to train a reference on
    web         24,000 pairs, 70 % of them noise, to train a learner on
    validation   1,000 clean pairs
    test         1,000 clean pairs

A meaning (a scene without jitter and wording) belongs to exactly one of training (`curated`, `web`), validation and
test, for every seed: no test caption is a training caption in other words.
"""

from __future__ import annotations

import io
import math
import random
import zlib
from dataclasses import dataclass

import datasets
from PIL import Image, ImageDraw


SPLIT_SIZES = {"curated": 6_000, "web": 24_000, "validation": 1_000, "test": 1_000}
_SPLITS = ", ".join(SPLIT_SIZES)
# The best filters keep less than a third of raw web data (arXiv 2304.14108).
WEB_NOISE = {"aligned": 0.30, "shuffled": 0.48, "boilerplate": 0.14, "near-duplicate": 0.08}
IMAGE_SIZE = 32

FEATURES = datasets.Features(
    {
        "image": datasets.Image(),
        "caption": datasets.Value("string"),
        "noise": datasets.Value("string"),
        "group": datasets.Value("int64"),
    }
)

# Each entry holds the words for one attribute value; a caption uses one of them.
SHAPES = (
    ("circle", "disc", "dot"),
    ("square", "box"),
    ("triangle",),
    ("star",),
    ("cross", "plus"),
    ("ring", "hoop"),
    ("diamond", "rhombus"),
    ("crescent", "moon"),
)
COLOURS = (
    (("red", "crimson"), (214, 39, 40)),
    (("green",), (44, 160, 44)),
    (("blue",), (31, 80, 200)),
    (("yellow", "golden"), (240, 205, 30)),
    (("orange",), (245, 130, 20)),
    (("purple", "violet"), (130, 50, 170)),
    (("pink", "rose"), (245, 130, 190)),
    (("cyan", "turquoise"), (40, 200, 210)),
)
SIZES = ((("small", "little", "tiny"), 0.50), (("large", "big", "huge"), 0.92))  # share of half a cell
BACKGROUNDS = ((("white",), (250, 250, 250)), (("black", "dark"), (15, 15, 15)), (("grey", "gray"), (135, 135, 135)))

# Every caption has at most 18 words, and fits into 20 tokens.
BACKDROPS = ("on {b}", "against {b}", "over {b}", "{b} background")
ROW, COLUMN = 0, 1
# Two objects: {0} is the left (upper) one, {1} the right (lower) one.
RELATIONS = {
    ROW: ("{0} left of {1}", "{1} right of {0}", "{0} then {1}"),
    COLUMN: ("{0} above {1}", "{1} below {0}", "{0} on top of {1}", "{1} under {0}"),
}
LISTS = {
    ROW: ("{0} {1} and {2} in a row", "left to right {0} {1} {2}"),
    COLUMN: ("{0} {1} and {2} in a column", "top to bottom {0} {1} {2}"),
}
LEADS = ("", "a picture of ", "here is ")

BOILERPLATE = (
    "image", "untitled", "photo", "click here", "click to enlarge", "no description", "thumbnail", "buy now", "logo",
    "read more", "home page", "loading please wait", "all rights reserved", "share this", "download free", "banner",
    "image {n}", "photo {n}.jpg", "img_{n}.png", "dsc{n}.jpg", "page {n}", "figure {n}", "untitled-{n}", "scan {n}",
    "slide {n} of {n}", "{n} views", "{n} comments", "item no. {n}", "only {n} left in stock", "{n} % off today",
)  # fmt: skip
BOILERPLATE_NUMBERS = 40
FLOODING_SCENES = 60  # near duplicates are copies of this few scenes

_SUPERSAMPLING = 3


@dataclass(frozen=True)
class Thing:
    """One object: indices into `SIZES`, `COLOURS` and `SHAPES`."""

    size: int
    colour: int
    shape: int


@dataclass(frozen=True)
class Scene:
    """The content of a picture, without position jitter: a background, an arrangement and one to three things.

    Example:

    ```python
    >>> from jest_hf.data.scenes import Scene, Thing
    >>> from jest_hf.data.tasks import scene_of
    >>> scene = Scene(background=0, arrangement=0, things=(Thing(size=1, colour=2, shape=3),))
    >>> scene_of(scene.meaning) == scene
    True

    ```
    """

    background: int
    arrangement: int
    things: tuple[Thing, ...]

    @property
    def meaning(self) -> int:
        """The scene as one integer (mixed radix), equal for equal scenes only."""
        code = len(self.things)
        code = code * len(BACKGROUNDS) + self.background
        code = code * 2 + self.arrangement
        for thing in self.things:
            code = code * len(SIZES) + thing.size
            code = code * len(COLOURS) + thing.colour
            code = code * len(SHAPES) + thing.shape
        return code

    @property
    def part(self) -> str:
        """`"training"`, `"validation"` or `"test"`: 80, 10 and 10 % of all meanings, chosen by a hash."""
        bucket = zlib.crc32(self.meaning.to_bytes(8, "little")) % 10
        return {0: "test", 1: "validation"}.get(bucket, "training")


def load_scenes(split: str, n: int | None = None, seed: int = 0) -> datasets.Dataset:
    """Draw one split of the built-in data set.

    Args:
        split (`str`): `"curated"`, `"web"`, `"validation"` or `"test"`.
        n (`int`, *optional*): Number of rows, by default that of `SPLIT_SIZES`. Row i is the same for every `n`.
        seed (`int`, *optional*, defaults to `0`): Seed of all rows.

    Returns:
        `datasets.Dataset` with the columns `image` (32 x 32 RGB PNG), `caption` (`str`), `noise` (`str`: kind of noise
        of the pair, `"aligned"` for a clean pair; to measure selection with, never to train on) and `group` (`int`:
        the meaning, equal for images of equal scenes, for retrieval by group).

    Raises:
        ValueError: For an unknown split, or a number of rows or a seed below zero.

    Example:

    ```python
    >>> from jest_hf.data import load_scenes
    >>> rows = load_scenes("curated", n=2)
    >>> rows.column_names
    ['image', 'caption', 'noise', 'group']
    >>> rows[0]["caption"], rows[0]["noise"]
    ('a small orange diamond below a tiny purple ring on gray', 'aligned')

    ```
    """
    if split not in SPLIT_SIZES:
        raise ValueError(f"split={split!r} is not a split of the built-in scenes; choose one of {_SPLITS}.")
    n = SPLIT_SIZES[split] if n is None else n
    if n < 0 or seed < 0:
        raise ValueError(f"n={n} and seed={seed} must both be at least 0; leave out n for the whole split.")
    rows = [_row(split, index, seed) for index in range(n)]
    columns = {name: [row[name] for row in rows] for name in FEATURES}
    return datasets.Dataset.from_dict(columns, features=FEATURES)


def boilerplate_caption(rng: random.Random) -> str:
    """Draw one of a few hundred captions, as found on the web, that do not describe the picture."""
    return rng.choice(BOILERPLATE).format(n=rng.randint(1, BOILERPLATE_NUMBERS))


def _row(split: str, index: int, seed: int) -> dict[str, object]:
    rng = random.Random(f"{seed}/{split}/{index}")
    part = split if split in ("validation", "test") else "training"
    noise = rng.choices(list(WEB_NOISE), weights=list(WEB_NOISE.values()))[0] if split == "web" else "aligned"
    if noise == "near-duplicate":
        # Scene and caption are the same for many rows; only the jitter differs.
        source = random.Random(f"{seed}/flooding/{rng.randrange(FLOODING_SCENES)}")
        scene = _sample_scene(source, part)
        caption = _describe(scene, source)
    else:
        scene = _sample_scene(rng, part)
        if noise == "boilerplate":
            caption = boilerplate_caption(rng)
        else:
            caption = _describe(_sample_scene(rng, part) if noise == "shuffled" else scene, rng)
    image = {"bytes": _draw(scene, rng), "path": None}
    return {"image": image, "caption": caption, "noise": noise, "group": scene.meaning}


def _sample_scene(rng: random.Random, part: str) -> Scene:
    """Draw scenes until the meaning of one belongs to `part`."""
    while True:
        n_things = rng.choice((1, 2, 2, 2, 2, 2, 2, 2, 3, 3))
        things = tuple(
            Thing(rng.randrange(len(SIZES)), rng.randrange(len(COLOURS)), rng.randrange(len(SHAPES)))
            for _ in range(n_things)
        )
        arrangement = rng.randrange(2) if n_things > 1 else ROW
        scene = Scene(rng.randrange(len(BACKGROUNDS)), arrangement, things)
        if scene.part == part:
            return scene


def _describe(scene: Scene, rng: random.Random) -> str:
    """Draw a caption that describes the whole scene."""
    phrases = [
        f"a {rng.choice(SIZES[t.size][0])} {rng.choice(COLOURS[t.colour][0])} {rng.choice(SHAPES[t.shape])}"
        for t in scene.things
    ]
    if len(phrases) == 1:
        text = phrases[0]
    else:
        text = rng.choice((RELATIONS if len(phrases) == 2 else LISTS)[scene.arrangement]).format(*phrases)
    backdrop = rng.choice(BACKDROPS).format(b=rng.choice(BACKGROUNDS[scene.background][0]))
    if rng.random() < 0.25:
        return f"{backdrop} {text}"
    return f"{rng.choice(LEADS) if len(phrases) < 3 else ''}{text} {backdrop}"


def _draw(scene: Scene, rng: random.Random) -> bytes:
    """Draw the scene as PNG bytes, with random jitter of place, size and colour."""
    side = IMAGE_SIZE * _SUPERSAMPLING
    behind = _jitter(BACKGROUNDS[scene.background][1], rng)
    image = Image.new("RGB", (side, side), behind)
    canvas = ImageDraw.Draw(image)
    cells = max(len(scene.things), 2)  # a single thing is as large as each of two
    half_cell = side / (2 * cells)
    for k, thing in enumerate(scene.things):
        along = side / 2 if len(scene.things) == 1 else (2 * k + 1) * half_cell
        along += rng.uniform(-0.12, 0.12) * half_cell
        across = side / 2 + rng.uniform(-0.12, 0.12) * side
        x, y = (along, across) if scene.arrangement == ROW else (across, along)
        radius = half_cell * SIZES[thing.size][1] * rng.uniform(0.92, 1.08)
        _draw_shape(canvas, SHAPES[thing.shape][0], x, y, radius, _jitter(COLOURS[thing.colour][1], rng), behind)
    buffer = io.BytesIO()
    image.reduce(_SUPERSAMPLING).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def _jitter(colour: tuple[int, int, int], rng: random.Random) -> tuple[int, ...]:
    return tuple(min(max(c + rng.randint(-14, 14), 0), 255) for c in colour)


def _draw_shape(
    canvas: ImageDraw.ImageDraw,
    shape: str,
    x: float,
    y: float,
    r: float,
    colour: tuple[int, ...],
    behind: tuple[int, ...],
) -> None:
    """Draw a shape of half width `r` around `(x, y)`; `behind` is the colour of its holes."""
    if shape == "circle":
        canvas.ellipse(_box(x, y, r), fill=colour)
    elif shape == "square":
        canvas.rectangle(_box(x, y, 0.85 * r), fill=colour)
    elif shape == "triangle":
        canvas.polygon([(x, y - r), (x + r, y + 0.85 * r), (x - r, y + 0.85 * r)], fill=colour)
    elif shape == "star":
        tips = [(math.pi * k / 5 - math.pi / 2, r * (1.1 if k % 2 == 0 else 0.45)) for k in range(10)]
        canvas.polygon([(x + length * math.cos(a), y + length * math.sin(a)) for a, length in tips], fill=colour)
    elif shape == "cross":
        canvas.rectangle((x - r, y - 0.33 * r, x + r, y + 0.33 * r), fill=colour)
        canvas.rectangle((x - 0.33 * r, y - r, x + 0.33 * r, y + r), fill=colour)
    elif shape == "ring":
        canvas.ellipse(_box(x, y, r), fill=colour)
        canvas.ellipse(_box(x, y, 0.55 * r), fill=behind)
    elif shape == "diamond":
        canvas.polygon([(x, y - 1.1 * r), (x + 0.7 * r, y), (x, y + 1.1 * r), (x - 0.7 * r, y)], fill=colour)
    else:  # crescent
        canvas.ellipse(_box(x, y, r), fill=colour)
        canvas.ellipse(_box(x + 0.5 * r, y - 0.15 * r, 0.8 * r), fill=behind)


def _box(x: float, y: float, r: float) -> tuple[float, float, float, float]:
    return (x - r, y - r, x + r, y + r)
