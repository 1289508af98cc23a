"""The Dockerfile and what reaches it: linted, complete, and in step with the rest of the repository."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest

from deploy.image.without_cuda import Library
from model.zoo.catalogue import catalogue

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_hadolint_finds_nothing() -> None:
    program = Path(sys.executable).with_name("hadolint")
    result = subprocess.run(
        [program, "--no-color", ROOT / "Dockerfile"], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout) == (0, "")


def test_everything_that_is_copied_passes_dockerignore_and_is_committed() -> None:
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignore  # nothing passes but what is named
    passes = {line[1:] for line in ignore if line.startswith("!")}
    copies = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE)
    sources = {source for copy in copies for source in copy.split()}
    assert sources
    assert sources <= passes
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for source in sources:
        assert re.search(rf"^{re.escape(source)}(/|$)", tracked, re.MULTILINE), source


def test_what_the_package_is_built_from_is_copied() -> None:
    wheel = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {*wheel["only-include"], *wheel["force-include"], PROJECT["project"]["readme"], "LICENSE"}
    needed |= {"hatch_build.py"} if "custom" in wheel["hooks"] else set()
    copied = set(
        re.findall(r"[\w./-]+", " ".join(re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE)))
    )
    assert needed <= copied


def test_what_builds_is_pinned_by_hash() -> None:
    group = PROJECT["dependency-groups"]["build"]
    assert set(PROJECT["build-system"]["requires"]) <= set(group)
    pinned = requirements((ROOT / "requirements-build.lock").read_text())
    assert all(pinned.values())
    names = {re.split(r"[=<>;]", requirement)[0] for requirement in group}
    assert names <= {name.split("==")[0] for name in pinned}


def test_the_label_says_the_version_of_the_package() -> None:
    [labelled] = re.findall(r'image\.version="([^"]+)"', DOCKERFILE)
    assert labelled == PROJECT["project"]["version"]


def test_the_default_model_has_a_name_and_is_the_same_in_every_stage() -> None:
    [model] = set(re.findall(r"^ARG MODEL=(.*)$", DOCKERFILE, re.MULTILINE))
    assert model in {entry.name for entry in catalogue()}


def test_the_service_runs_as_a_numeric_user_who_is_not_root() -> None:
    [user] = re.findall(r"^USER (.+)$", DOCKERFILE, re.MULTILINE)
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)


def test_program_and_health_check_are_started_without_a_shell() -> None:
    # Else process 1 is a shell, which does not pass signals on.
    for instruction in ("ENTRYPOINT", "CMD", r"HEALTHCHECK .*CMD"):
        assert re.search(rf'^{instruction} \["', DOCKERFILE, re.MULTILINE), instruction


def test_every_hash_is_checked_with_and_without_cuda() -> None:
    installs = re.findall(r"uv pip install (.*?);", DOCKERFILE, re.DOTALL)
    [install] = [install for install in installs if "pyproject.toml" in install]
    assert "--require-hashes" in install
    assert "--constraints requirements.lock" in install


def test_without_cuda_every_package_of_nvidia_is_left_out() -> None:
    [pattern] = re.findall(r"cpu\) unneeded='(.+?)' ;;", DOCKERFILE)
    [program] = re.findall(r"^    (sed .+? > overrides.txt);", DOCKERFILE, re.MULTILINE)
    command = f"unneeded='{pattern}'; {program.removesuffix(' > overrides.txt')}"
    overrides = subprocess.run(
        ["sh", "-c", command], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    pinned = {name.split("==")[0] for name in requirements((ROOT / "requirements.lock").read_text())}
    expected = {name for name in pinned if re.match(r"cuda-|nvidia-|triton$", name)}
    assert expected >= {"nvidia-cublas", "cuda-toolkit", "triton"}
    assert {f"{name} ; sys_platform == 'none'" for name in expected} == set(overrides)


def test_a_library_needs_and_has_what_its_file_says() -> None:
    torch = find_spec("torch")
    assert torch is not None
    library = Library(Path(str(torch.origin)).parent / "lib" / "libc10.so")
    assert {"libc.so.6", "libstdc++.so.6"} <= set(library.needed)
    symbols = {symbol.name: symbol for symbol in library.symbols}
    assert re.fullmatch(r"GLIBC_2\.[\d.]+", symbols["malloc"].version)
    assert not symbols["malloc"].defined
    # c10::Error, a class: what describes its type has a size.
    assert symbols["_ZTIN3c105ErrorE"].defined
    assert symbols["_ZTIN3c105ErrorE"].size > 0


def test_a_library_of_another_kind_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "libc10.so"
    file.write_bytes(b"MZ")
    with pytest.raises(ValueError, match="is not a 64-bit little-endian ELF file"):
        Library(file)


def requirements(lock: str) -> dict[str, int]:
    """The pinned requirements of a lock file, and how many hashes each has."""
    found: dict[str, int] = {}
    for line in lock.splitlines():
        if match := re.match(r"[\w.-]+==[^\\]+", line):
            name = match[0].strip()
            found[name] = 0
        elif "--hash=" in line:
            found[name] += 1
    return found


@pytest.mark.parametrize("file", ["Dockerfile", ".dockerignore", "docker-compose.yml"])
def test_each_file_opens_with_what_it_is_for(file: str) -> None:
    lines = (ROOT / file).read_text().splitlines()
    assert all(re.match(r"# \S", line) for line in lines[:2])
