"""What is installed: the client alone, and with the extra `serve` everything, from a wheel that is built here."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from maskserve.server import REQUIRED
from model.data.shapes import Shapes

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
UV = Path(sys.executable).with_name("uv")
SECONDS = 120
UNREACHABLE = re.compile(
    r"Failed to fetch|network was disabled|error sending request|dns error", re.IGNORECASE
)


def uv(*words: object) -> None:
    """Run uv. Skip the test where that needs a package index and there is none."""
    done = subprocess.run(
        [UV, *map(str, words)], cwd=ROOT, capture_output=True, text=True, check=False, timeout=600
    )
    if done.returncode and UNREACHABLE.search(done.stderr):
        pytest.skip(f"no package index can be reached: {done.stderr.strip().splitlines()[0]}")
    assert done.returncode == 0, done.stderr


def run(*command: object, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """A command as a user types it, outside the checkout."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if name != "PYTHONPATH" and not name.startswith("MASKSERVE_")
    }
    return subprocess.run(
        list(map(str, command)), cwd=cwd, env=environment | variables, capture_output=True, text=True,
        check=False, timeout=SECONDS,
    )  # fmt: skip


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not UV.exists():
        pytest.skip("uv is not in this environment")
    folder = tmp_path_factory.mktemp("dist")
    uv("build", "--quiet", "--wheel", "--out-dir", folder)
    [built] = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def client_only(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`bin` of an environment after `pip install maskserve`."""
    environment = tmp_path_factory.mktemp("client") / "environment"
    uv("venv", "--quiet", "--python", sys.executable, environment)
    python = environment / "bin" / "python"
    uv("pip", "install", "--quiet", "--python", python, "--constraint", "requirements.lock", wheel)
    return python.parent


@pytest.fixture(scope="module")
def with_server(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`bin` of an environment after `pip install maskserve[serve]`; the libraries are this environment's own."""
    environment = tmp_path_factory.mktemp("server") / "environment"
    uv("venv", "--quiet", "--python", sys.executable, environment)
    python = environment / "bin" / "python"
    uv("pip", "install", "--quiet", "--python", python, "--no-deps", wheel)
    [packages] = environment.glob("lib/python*/site-packages")
    libraries = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "libraries.pth").write_text("\n".join(libraries))
    return python.parent


def test_the_wheel_claims_no_other_name_than_maskserve(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    metadata = f"maskserve-{PROJECT['project']['version']}.dist-info"
    assert {name.partition("/")[0] for name in names} == {"maskserve", metadata}
    # All code of the checkout is in it, under the names that it has there.
    server = {name.removeprefix("maskserve/_server/") for name in names if "/_server/" in name}
    modules = {
        path.relative_to(ROOT).as_posix() for top in ("app", "model") for path in ROOT.glob(f"{top}/**/*.py")
    }
    assert modules <= server
    assert {
        "model/weights/nuclei.safetensors",
        "model/weights/shapes.safetensors",
        "app/page/index.html",
        "app/page/examples/nuclei/stained.png",
        "app/page/examples/shapes/000012.jpg",
    } <= server
    if sys.platform == "linux" and platform.machine() == "x86_64":
        assert {"model/kernels/bilinear_avx2.so", "model/kernels/winograd_float32_avx2.so"} <= server


def test_the_client_alone_asks_a_service(client_only: Path, server: Any, tmp_path: Path) -> None:
    script = f"""
import importlib.util, json, sys
from maskserve import Client
with Client({server.url!r}) as client:
    result = client.segment({str(ROOT / "examples/shapes/images/000012.jpg")!r}, score_threshold=0.06, max_instances=3)
masks = [int(instance.mask.sum()) for instance in result.instances]
areas = [instance.area for instance in result.instances]
found = [name for name in ("app", "model", "torch", "fastapi") if importlib.util.find_spec(name)]
print(json.dumps([masks, areas, found]))
"""
    done = run(client_only / "python", "-c", script, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    masks, areas, found = json.loads(done.stdout)
    assert len(masks) == 3
    assert masks == areas
    assert found == []


@pytest.mark.parametrize("command", [["maskserve", "serve"], ["python", "-m", "maskserve"]])
def test_without_the_extra_the_command_says_how_to_get_it(
    client_only: Path, tmp_path: Path, command: list[str]
) -> None:
    done = run(client_only / command[0], *command[1:], cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"maskserve: .*pip install '.\[serve\]' in the checkout\n", done.stderr)


def test_without_the_extra_the_engine_says_how_to_get_it(client_only: Path, tmp_path: Path) -> None:
    done = run(client_only / "python", "-c", "import maskserve.engine", cwd=tmp_path)
    assert done.stderr.splitlines()[-1].endswith("pip install '.[serve]' in the checkout")


def test_what_is_looked_for_is_in_the_extra() -> None:
    extra = {re.split(r"[<>=;]", line)[0] for line in PROJECT["project"]["optional-dependencies"]["serve"]}
    assert set(REQUIRED) <= extra


def test_the_installed_command_serves(
    with_server: Path, tmp_path: Path, start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outside the checkout, with a bundled model, the kernels and the page's files from the wheel."""
    import httpx

    served = run(with_server / "maskserve", "--version", cwd=tmp_path)
    assert served.stdout.split() == ["maskserve", PROJECT["project"]["version"]]
    monkeypatch.delenv("PYTHONPATH", raising=False)
    command = {"python": with_server / "python", "program": ["-m", "maskserve", "serve"], "cwd": tmp_path}
    server = start(model="shapes", **command).wait_until_ready()
    image = (ROOT / "examples/shapes/images/000012.jpg").read_bytes()
    found = httpx.post(f"{server.url}/segment", content=image, timeout=60).json()["instances"]
    assert {"heart", "pentagon"} <= {instance["category"] for instance in found}
    assert httpx.get(f"{server.url}/page/examples/shapes/000012.jpg").content == image
    assert "maskserve" in httpx.get(f"{server.url}/").text


def test_the_installed_engine_runs_where_a_client_is_wanted_without_a_server(
    with_server: Path, tmp_path: Path
) -> None:
    script = f"""
from maskserve.engine import Engine, Options, decode, paste
image = decode(open({str(ROOT / "examples/shapes/images/000012.jpg")!r}, "rb").read())
[found] = Engine.load("shapes").segment([image], [Options(score_threshold=0.7)])
import model
print(len(paste(found.probabilities, found.boxes, found.size)), model.__file__)
"""
    done = run(with_server / "python", "-c", script, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    masks, file = done.stdout.split()
    assert int(masks) >= 2
    assert Path(file).is_relative_to(with_server.parent)


def test_a_foreign_module_called_model_is_not_mistaken_for_the_engines(
    with_server: Path, tmp_path: Path
) -> None:
    (tmp_path / "model.py").write_text("mine = True")
    done = run(with_server / "python", "-c", "import model, maskserve.engine", cwd=tmp_path)
    assert "a module called 'model' is loaded already" in done.stderr.splitlines()[-1]


def test_processes_that_the_installed_command_starts_find_the_code(with_server: Path, tmp_path: Path) -> None:
    """Training reads images in workers of its own."""
    Shapes(seed=3, length=2, sides=(64, 96)).export(tmp_path / "scenes")
    done = run(
        with_server / "maskserve", "train", "--data", "scenes", "--out", "out", "--steps", "1", "--batch-size", "1",
        "--workers", "1", "--sizes", "64", "--rois", "8", "--channels", "16",
        "--architecture", "mobilenet_v3_small",
        cwd=tmp_path, OMP_WAIT_POLICY="passive",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "model.safetensors").exists()
