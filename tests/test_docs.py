"""Every page of the repository: links lead somewhere, and the files that it names exist."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path
    for path in [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/*.md"),
        *ROOT.glob("*/*.md"),
        *ROOT.glob("deploy/**/*.md"),
    ]
    if ".venv" not in path.parts
)
TOPS = (
    "app",
    "bench",
    "deploy",
    "docs",
    "examples",
    "maskserve",
    "model",
    "tests",
    "weights",
    ".github",
    ".ci",
)
PATH = re.compile(rf"`((?:{'|'.join(map(re.escape, TOPS))})/[\w./-]*)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
# What comes to be when something runs.
MADE = {"maskserve/_server/", "maskserve/weights", "weights/"}


def without_code(text: str) -> str:
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.+)$", without_code(page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(without_code(page.read_text(encoding="utf-8"))):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        path, _, anchor = target.partition("#")
        found = page if not path else page.parent / path
        assert found.exists(), f"{target} in {page.name}"
        assert found.resolve().is_relative_to(ROOT), f"{target} in {page.name} leaves the repository"
        if anchor:
            assert anchor in anchors(found), f"{target} in {page.name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_files_that_a_page_names_exist(page: Path) -> None:
    named = set(PATH.findall(page.read_text(encoding="utf-8"))) - MADE
    missing = {path for path in named if not (ROOT / path).exists()}
    assert not missing


def test_the_map_has_every_package() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    packages = {
        f"{path.parent.relative_to(ROOT).as_posix()}/"
        for top in ("app", "model")
        for path in (ROOT / top).glob("*/__init__.py")
    }
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "maskserve").glob("[!_]*.py")}
    missing = {name for name in packages | modules if f"`{name}`" not in text}
    assert not missing


def test_code_names_no_page_outside_the_repository() -> None:
    files = subprocess.run(
        ["git", "grep", "-lE", r"\b(DESIGN|LAYOUT|STYLE)\.md"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.split()
    assert set(files) <= {"tests/test_docs.py"}


def test_the_citation_names_the_version_of_the_package() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert citation["version"] == project["version"]
    # The fonts have a licence of their own.
    assert citation["license"] in project["license"].split(" AND ")


def test_the_workflow_runs_what_ci_runs() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    steps = workflow["jobs"]["test"]["steps"]
    assert steps[-1] == {"run": ".ci/run"}
    assert (ROOT / ".ci/run").read_text().splitlines()[-1] == "exec make test"


@pytest.mark.parametrize(
    ("file", "schema"),
    [
        (".github/workflows/ci.yml", "vendor.github-workflows"),
        ("CITATION.cff", "vendor.citation-file-format"),
    ],
)
def test_files_that_others_read_match_their_schemas(file: str, schema: str) -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, str(ROOT / file)]
    assert subprocess.run(command, check=False).returncode == 0
