# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""What is installed: every package, the presets and the templates, from the source distribution and from the wheel."""

from __future__ import annotations

import configparser
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from packaging.requirements import Requirement


ROOT = Path(__file__).parents[2]
PRESETS = sorted((ROOT / "jest_hf" / "configs").glob("*.yaml"))
DEEPSPEED = sorted((ROOT / "jest_hf" / "configs").glob("*.json"))
TEMPLATES = sorted((ROOT / "model_cards").glob("*.md"))


@pytest.fixture(scope="module")
def distributions(tmp_path_factory) -> Path:
    """A folder with the sdist, and the wheel that was built from it."""
    source = tmp_path_factory.mktemp("source")
    for folder in ("jest_hf", "model_cards"):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "setup.cfg", "LICENSE", "README.md"):
        shutil.copy(ROOT / file, source)
    built = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", source], capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stdout + built.stderr
    assert not re.search("deprecat", built.stdout + built.stderr, re.IGNORECASE)
    return source / "dist"


def test_setup_lists_every_package():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    listed = setup["options"]["packages"].split()
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "jest_hf").rglob("*.py")}
    assert listed == sorted({".".join(folder.parts) for folder in folders} | {"jest_hf.model_cards"})


def test_sdist_has_what_a_build_needs(distributions):
    with tarfile.open(next(distributions.glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE", "README.md", "pyproject.toml", "setup.cfg", "jest_hf/py.typed"} <= names
    assert {path.relative_to(ROOT).as_posix() for path in PRESETS + DEEPSPEED + TEMPLATES} <= names


def test_wheel_has_every_module(distributions):
    with zipfile.ZipFile(next(distributions.glob("*.whl"))) as archive:
        names = set(archive.namelist())
    assert {path.relative_to(ROOT).as_posix() for path in (ROOT / "jest_hf").rglob("*.py")} <= names
    assert not [name for name in names if name.startswith(("tests", "model_cards"))]
    with zipfile.ZipFile(next(distributions.glob("*.whl"))) as archive:
        commands = archive.read(next(name for name in names if name.endswith("entry_points.txt"))).decode()
    assert "jest-hf = jest_hf.cli:main" in commands


READ = """
import importlib
import importlib.metadata
import pkgutil
from importlib import resources

import jest_hf

assert importlib.metadata.version("jest_hf") == jest_hf.__version__
print(jest_hf.__file__)
for package in ("jest_hf.configs", "jest_hf.model_cards"):
    for file in resources.files(package).iterdir():
        if file.name.endswith((".yaml", ".json", ".md")):
            print(file.name, len(file.read_text()))

for module in ["jest_hf", *(f"jest_hf.{found.name}" for found in pkgutil.iter_modules(jest_hf.__path__))]:
    for name in getattr(importlib.import_module(module), "__all__", ()):
        getattr(importlib.import_module(module), name)

from jest_hf.hub import RunSummary, learner_card

learner_card(RunSummary("SiglipModel", "joint", "sigmoid"))
"""


@pytest.fixture(scope="module")
def clean(distributions, tmp_path_factory) -> Path:
    """
    The scripts of an environment in which the wheel alone is installed, for real, beside the libraries that it needs.

    The libraries are those of the running environment. An editable jest_hf there is out of sight, for Python reads no
    .pth files in a folder that a .pth file names.
    """
    folder = tmp_path_factory.mktemp("clean")
    venv.create(folder, with_pip=False)
    scripts = folder / "bin"
    installed_to = sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})
    Path(installed_to, "libraries.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    install = [sys.executable, "-m", "pip", "--python", scripts / "python", "install", "--no-deps", "--no-index"]
    installed = subprocess.run(
        [*install, "--disable-pip-version-check", next(distributions.glob("*.whl"))],
        capture_output=True,
        text=True,
        check=False,
    )
    assert installed.returncode == 0, installed.stdout + installed.stderr
    return scripts


def test_wheel_works_in_a_clean_environment(clean, tmp_path):
    read = subprocess.run(
        [clean / "python", "-I", "-W", "ignore", "-c", READ], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert read.returncode == 0, read.stderr
    location, *files = read.stdout.splitlines()
    assert location.startswith(str(clean.parent))
    assert sorted(files) == sorted(f"{path.name} {len(path.read_text())}" for path in PRESETS + DEEPSPEED + TEMPLATES)


def test_command_works_in_a_clean_environment(clean, tmp_path):
    def jest_hf(*arguments: str) -> str:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run(
            [clean / "jest-hf", *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "preset" in jest_hf("--help") and "cache-reference" in jest_hf("--help")
    preset = Path(jest_hf("preset", "ddp").split()[1])
    assert preset.is_file() and clean.parent in preset.parents


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_accelerate_reads_the_presets(preset):
    config = load_config_from_file(str(preset))
    written = yaml.safe_load(preset.read_text())
    assert config.num_processes == written["num_processes"]
    assert config.use_cpu is False
    launch_command_parser().parse_args(["--config_file", str(preset), "script.py"])


def test_pins_satisfy_the_requirements(distributions):
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    assert pins[0].name == "torch"
    version_of = {pin.name.lower(): next(iter(pin.specifier)).version for pin in pins}
    with zipfile.ZipFile(next(distributions.glob("*.whl"))) as archive:
        metadata = next(name for name in archive.namelist() if name.endswith("METADATA"))
        wanted = importlib.metadata.PathDistribution(zipfile.Path(archive, metadata.rpartition("/")[0] + "/")).requires
    requirements = [Requirement(text) for text in wanted]
    assert len(requirements) > 15
    for requirement in requirements:
        assert requirement.specifier.contains(version_of[requirement.name.lower()], prereleases=True), requirement
