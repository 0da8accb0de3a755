# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Workflow, hooks, templates, citation and changelog have the shape that their readers need."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

import jest_hf


ROOT = Path(__file__).parents[2]
GITHUB = ROOT / ".github"
FORMS = sorted(path for path in (GITHUB / "ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml")
TARGETS = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split()


def read(path: Path) -> dict:
    return yaml.safe_load(path.read_text())


@pytest.fixture(scope="module")
def workflow() -> dict:
    return read(GITHUB / "workflows" / "ci.yml")


def test_the_workflow_runs_on_each_change(workflow):
    events = workflow[True]  # YAML 1.1 reads `on` as true; GitHub does not
    assert set(events) == {"push", "pull_request"}
    assert workflow["permissions"] == {"contents": "read"}


def test_jobs_have_what_github_asks_for(workflow):
    assert set(workflow["jobs"]) == {"lint", "test", "lowest", "wheel", "docs"}
    for name, job in workflow["jobs"].items():
        assert job["runs-on"] == "ubuntu-latest" and 0 < job["timeout-minutes"] <= 60, name
        assert job["steps"][0]["uses"].startswith("actions/checkout@"), name
        for step in job["steps"]:
            assert ("uses" in step) != ("run" in step), step
            assert re.fullmatch(r"[\w-]+/[\w-]+@v\d+", step.get("uses", "actions/x@v1")), step
            assert step.keys() <= {"name", "uses", "with", "run", "env", "working-directory"}, step


def commands(job: dict) -> str:
    return "\n".join(step.get("run", "") for step in job["steps"])


def test_jobs_run_what_a_contributor_runs(workflow):
    jobs = workflow["jobs"]
    for name, target in (("lint", "make lint"), ("test", "make test"), ("docs", "make docs")):
        assert target in commands(jobs[name])
    used = {target for job in jobs.values() for target in re.findall(r"^make (\S+)", commands(job), re.MULTILINE)}
    assert used <= set(TARGETS)
    assert "pytest" in commands(jobs["lowest"]) and "--resolution lowest-direct" in commands(jobs["lowest"])


def test_the_supported_pythons_are_tested(workflow):
    versions = workflow["jobs"]["test"]["strategy"]["matrix"]["python-version"]
    assert versions == ["3.10", "3.11", "3.12", "3.13"]  # strings: as a number, 3.10 is 3.1
    lowest = re.search(r'^requires-python = ">=(.*)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    assert versions[0] == lowest
    setup = [step["with"]["python-version"] for step in workflow["jobs"]["lowest"]["steps"] if "with" in step]
    assert setup == [lowest]


@pytest.mark.parametrize("form", FORMS, ids=lambda path: path.stem)
def test_issue_forms_are_forms(form):
    content = read(form)
    assert {"name", "description", "body"} <= content.keys() <= {"name", "description", "body", "labels", "title"}
    inputs = [field for field in content["body"] if field["type"] != "markdown"]
    assert inputs
    for field in content["body"]:
        assert field["type"] in ("markdown", "textarea", "input", "dropdown", "checkboxes")
        assert "value" in field["attributes"] if field["type"] == "markdown" else field["attributes"]["label"]
        assert field["type"] not in ("dropdown", "checkboxes") or field["attributes"]["options"]
    identifiers = [field["id"] for field in inputs]
    assert len(set(identifiers)) == len(identifiers)


def test_there_are_templates():
    assert {path.stem for path in FORMS} == {"bug_report", "feature_request"}
    assert isinstance(read(GITHUB / "ISSUE_TEMPLATE" / "config.yml")["blank_issues_enabled"], bool)
    text = (GITHUB / "PULL_REQUEST_TEMPLATE.md").read_text()
    assert text.count("- [ ] ") >= 4
    assert read(GITHUB / "dependabot.yml")["version"] == 2


def pinned() -> set[str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return {line.partition("==")[0].lower() for line in lines if "==" in line}


def test_hooks_run_the_pinned_tools():
    hooks = [hook for repo in read(ROOT / ".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]]
    assert [hook["id"] for hook in hooks] == ["ruff-check", "ruff-format", "lint"]
    lint = re.search(r"^lint: .*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]
    for hook in hooks:
        assert hook["language"] == "system"  # nothing is installed at a version of the hook's own
        program, command = hook["entry"].split()[:2]
        if program == "make":
            assert command in TARGETS
        else:
            folder, _, tool = program.rpartition("/")
            assert folder == ".venv/bin" and tool in pinned()
            assert f"$(BIN)/{tool} {command}" in lint


def test_the_citation_names_this_version_and_the_paper():
    citation = read(ROOT / "CITATION.cff")
    assert citation["cff-version"] == "1.2.0"
    required = {"cff-version", "message", "title", "authors"}
    optional = {"type", "version", "license", "keywords", "references", "date-released", "abstract", "url", "doi"}
    assert required <= citation.keys() <= required | optional | {"repository-code", "preferred-citation"}
    assert citation["version"] == jest_hf.__version__
    assert f'license = "{citation["license"]}"' in (ROOT / "pyproject.toml").read_text()
    assert all("name" in author or "family-names" in author for author in citation["authors"])
    (paper,) = citation["references"]
    assert {"type", "title", "authors"} <= paper.keys()
    assert paper["url"].endswith(paper["identifiers"][0]["value"].removeprefix("arXiv:"))
    assert paper["title"] in (ROOT / "docs" / "method.md").read_text().replace("\n", " ")


def test_the_changelog_has_the_form_of_keep_a_changelog():
    text = (ROOT / "CHANGELOG.md").read_text()
    versions = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert versions[0] == "Unreleased"
    for version in versions[1:]:
        assert re.fullmatch(r"\d+\.\d+\.\d+\S* - \d{4}-\d\d-\d\d", version), version
    assert jest_hf.__version__ in [version.partition(" - ")[0] for version in versions]
    kinds = ("Added", "Changed", "Deprecated", "Removed", "Fixed", "Security")
    assert set(re.findall(r"^### (.*)$", text, re.MULTILINE)) <= set(kinds)
