"""`maskserve weights` as a person or a script meets it."""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import asdict
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import numpy as np
import pytest
from safetensors.numpy import save_file
from typer.testing import CliRunner

from app.cli import weights as cli_weights
from model.zoo import catalogue as weights
from model.zoo import download
from model.zoo.catalogue import Bundled, Weights

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from typer.testing import Result

# Ends in no question mark.
CONTENT = bytes(range(250)) * 1600
SHA256 = hashlib.sha256(CONTENT).hexdigest()
FILE = f"net_coco-{SHA256[:8]}.pth"
BUNDLED = [
    Bundled("stars", "stars in the sky", "sky", SHA256),
    Bundled("shapes", "drawn shapes", "shapes", SHA256),
]


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[str]:
    """The address of a server that has the file."""
    root = tmp_path / "mirror"
    root.mkdir()
    (root / FILE).write_bytes(CONTENT)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(root))) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.fixture
def bundled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of what comes with maskserve: a catalogue with one model `net`, and no bundled files yet."""
    folder = tmp_path / "bundled"
    folder.mkdir()
    entry = Weights("net", f"http://weights.invalid/{FILE}", len(CONTENT), SHA256, 1, "COCO", 37.9, 34.6)
    (folder / "catalogue.json").write_text(
        json.dumps({"bundled": [asdict(own) for own in BUNDLED], "weights": [asdict(entry)]})
    )
    monkeypatch.setattr(weights, "bundled_folder", lambda: folder)
    return folder


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "HTTP_PROXY",
        "http_proxy",
        "ALL_PROXY",
        "all_proxy",
        "MASKSERVE_WEIGHTS_DIR",
        "FORCE_COLOR",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "120")


@pytest.fixture
def folder(tmp_path: Path, bundled: Path) -> Path:
    place = tmp_path / "weights"
    place.mkdir()
    return place


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli_weights.weights, [str(argument) for argument in arguments])


def listed(folder: Path, name: str) -> dict[str, object]:
    rows = json.loads(run("list", "--json", "--folder", folder).stdout)["weights"]
    return next(row for row in rows if row["name"] == name)


# list


def test_list_shows_names_ap_size_state_and_folder(folder: Path) -> None:
    (folder / FILE).write_bytes(CONTENT)
    result = run("list", "--folder", folder)
    line = next(line for line in result.stdout.splitlines() if line.startswith("net"))
    assert line.split() == ["net", "COCO", "37.9", "34.6", "–", "0", "MB", "verified"]
    assert f"Folder: {folder}" in result.stdout
    assert result.exit_code == 0
    names = [line.split()[:2] for line in result.stdout.splitlines()[1:4]]
    assert names == [["stars", "sky"], ["shapes", "shapes"], ["net", "COCO"]]


def test_list_says_how_to_get_what_is_missing(folder: Path) -> None:
    assert "maskserve weights fetch NAME" in run("list", "--folder", folder).stdout


@pytest.mark.parametrize(
    ("name", "content", "state", "received"),
    [
        pytest.param(None, b"", "missing", 0, id="missing"),
        pytest.param(FILE, CONTENT, "verified", len(CONTENT), id="verified"),
        pytest.param(FILE, CONTENT[:-1] + b"?", "damaged", len(CONTENT), id="damaged"),
        pytest.param(f"{FILE}.part", CONTENT[:100_000], "partial", 100_000, id="partial"),
    ],
)
def test_list_as_json_has_the_state(
    folder: Path, name: str | None, content: bytes, state: str, received: int
) -> None:
    if name is not None:
        (folder / name).write_bytes(content)
    row = listed(folder, "net")
    assert (row["state"], row["received"]) == (state, received)
    assert row["path"] == str(folder / FILE)


def test_list_shows_how_far_a_partial_download_came(folder: Path) -> None:
    (folder / f"{FILE}.part").write_bytes(CONTENT[:100_000])
    assert "partial, 25%" in run("list", "--folder", folder).stdout


def test_list_reads_the_ap_of_the_bundled_model_from_its_file(bundled: Path, folder: Path) -> None:
    metadata = {"maskserve": json.dumps({"ap": {"box": 0.912, "mask": 0.875}})}
    save_file({"weight": np.zeros(3, np.float32)}, bundled / "shapes.safetensors", metadata)
    row = listed(folder, "shapes")
    assert (row["state"], row["box_ap"], row["mask_ap"]) == (
        "bundled",
        pytest.approx(91.2),
        pytest.approx(87.5),
    )


def test_list_notices_a_bundled_model_that_was_cut_short(bundled: Path, folder: Path) -> None:
    file = bundled / "shapes.safetensors"
    save_file({"weight": np.zeros(3, np.float32)}, file, {"maskserve": json.dumps({"ap": {}})})
    file.write_bytes(file.read_bytes()[:-1])
    assert listed(folder, "shapes")["state"] == "damaged"


# fetch


def test_fetch_prints_the_path_alone_on_stdout(folder: Path, mirror: str) -> None:
    result = run("fetch", "net", "--folder", folder, "--mirror", mirror)
    assert (result.exit_code, result.stdout) == (0, f"{folder / FILE}\n")
    assert (folder / FILE).read_bytes() == CONTENT


def test_fetch_prints_few_lines_without_a_terminal(folder: Path, mirror: str) -> None:
    lines = run("fetch", "net", "--folder", folder, "--mirror", mirror).stderr.splitlines()
    assert lines[0] == "net: 0 MB of 0 MB (0%)"
    assert lines[-1] == "net: 0 MB of 0 MB (100%)"
    assert len(lines) <= 11


def test_fetch_draws_a_bar_on_a_terminal(folder: Path, mirror: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Rich takes stderr for a terminal then.
    monkeypatch.setenv("FORCE_COLOR", "1")
    result = run("fetch", "net", "--folder", folder, "--mirror", mirror)
    assert "400.0/400.0 kB" in result.stderr
    assert result.stdout == f"{folder / FILE}\n"


def test_fetch_makes_the_folder_of_the_environment(
    folder: Path, mirror: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MASKSERVE_WEIGHTS_DIR", str(folder / "new"))
    run("fetch", "net", "--mirror", mirror)
    assert (folder / "new" / FILE).read_bytes() == CONTENT


def test_empty_variable_means_the_default_folder(bundled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As a compose file with ${DIR:-} makes it.
    monkeypatch.setenv("MASKSERVE_WEIGHTS_DIR", "")
    assert f"Folder: {weights.default_folder()}" in run("list").stdout


def test_tilde_is_the_home_folder_where_no_shell_expands_it(
    bundled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MASKSERVE_WEIGHTS_DIR", "~/mine")
    assert f"Folder: {tmp_path / 'mine'}" in run("list").stdout


def test_fetch_of_the_bundled_model_says_that_there_is_nothing_to_fetch(bundled: Path, folder: Path) -> None:
    result = run("fetch", "shapes", "--folder", folder)
    assert result.exit_code == 0
    assert result.stdout == f"{bundled / 'shapes.safetensors'}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["fetch", "nett"], id="unknown name"),
        pytest.param(["fetch", "net", "--mirror", "{mirror}/nowhere"], id="not on the server"),
        pytest.param(["fetch", "net", "--mirror", "ftp://127.0.0.1"], id="no such protocol"),
        pytest.param(["verify", "nett"], id="unknown name to verify"),
    ],
)
def test_error_is_one_line_on_stderr_and_exit_code_1(folder: Path, mirror: str, arguments: list[str]) -> None:
    given = [argument.format(mirror=mirror) for argument in arguments]
    result = run(*given, "--folder", folder)
    assert (result.exit_code, result.stdout) == (1, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")


def test_interrupted_fetch_says_that_it_can_continue(
    folder: Path, mirror: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(download, "download", stop)
    result = run("fetch", "net", "--folder", folder)
    assert (result.exit_code, result.stderr) == (
        130,
        "interrupted; the same command continues from here\n",
    )


# verify


def test_verify_accepts_a_complete_file(folder: Path) -> None:
    (folder / FILE).write_bytes(CONTENT)
    result = run("verify", "--folder", folder)
    assert result.exit_code == 0
    assert f"net: verified, sha256 {SHA256}" in result.stdout


def test_verify_exits_with_1_for_a_damaged_file_and_says_how_to_replace_it(folder: Path) -> None:
    (folder / FILE).write_bytes(b"damaged")
    result = run("verify", "--folder", folder)
    assert result.exit_code == 1
    assert f"{folder / FILE} is damaged" in result.stderr
    assert "`maskserve weights fetch net` replaces it" in result.stderr


def test_verify_of_all_ignores_what_was_never_fetched(folder: Path) -> None:
    assert run("verify", "--folder", folder).exit_code == 0


def test_verify_of_one_fails_if_it_is_not_here(folder: Path) -> None:
    result = run("verify", "net", "--folder", folder)
    assert (result.exit_code, result.stderr) == (1, f"net: {folder / FILE} is not there\n")


def test_verify_compares_the_bundled_model_with_what_was_committed(bundled: Path, folder: Path) -> None:
    file = bundled / "shapes.safetensors"
    file.write_bytes(CONTENT)
    result = run("verify", "shapes", "--folder", folder)
    assert (result.exit_code, result.stdout) == (0, f"shapes: verified, sha256 {SHA256}\n")
    save_file({"weight": np.zeros(3, np.float32)}, file, {"maskserve": json.dumps({"ap": {}})})
    # A whole file, but another.
    for command in (["verify", "shapes"], ["verify"]):
        result = run(*command, "--folder", folder)
        assert result.exit_code == 1
        assert f"shapes: damaged, sha256 {hashlib.sha256(file.read_bytes()).hexdigest()}" in result.stderr


def test_the_catalogue_has_the_committed_models_sha256() -> None:
    bundled = weights.bundled()
    assert list(bundled) == ["nuclei", "shapes"]
    for entry in bundled.values():
        assert hashlib.sha256(entry.path.read_bytes()).hexdigest() == entry.sha256


# help


@pytest.mark.parametrize("command", ["list", "fetch", "verify"])
def test_help_names_the_folder_and_its_variable(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    assert "--folder" in result.stdout
    assert "MASKSERVE_WEIGHTS_DIR" in result.stdout
