"""The catalogue, the folder, and what counts as verified."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from dataclasses import asdict
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
from torchvision.models import get_model_weights

from model.zoo import catalogue as weights
from model.zoo.catalogue import Weights
from model.zoo.errors import DamagedWeightsError, FolderError, MissingWeightsError, UnknownWeightsError

if TYPE_CHECKING:
    from collections.abc import Iterator

CONTENTS = {"small": b"a small network", "large": b"a large network", "other": b"trained on other data"}
MASK_AP = {"small": 30.0, "large": 40.0, "other": 90.0}


def sha256_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Weights]:
    """A catalogue of three tiny files in place of the real one: two for COCO, and the best for other data."""
    made = {}
    for name, content in CONTENTS.items():
        sha256 = sha256_of(content)
        url = f"http://weights.invalid/{name}-{sha256[:8]}.pth"
        dataset = "other" if name == "other" else "COCO"
        made[name] = Weights(name, url, len(content), sha256, 1, dataset, 50.0, MASK_AP[name])
    bundled = tmp_path / "bundled"
    bundled.mkdir()
    document = {"weights": [asdict(entry) for entry in made.values()]}
    (bundled / "catalogue.json").write_text(json.dumps(document))
    monkeypatch.setattr(weights, "bundled_folder", lambda: bundled)
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "weights"
    place.mkdir()
    return place


def put(entry: Weights, folder: Path, content: bytes | None = None) -> None:
    entry.path(folder).write_bytes(CONTENTS[entry.name] if content is None else content)


# The catalogue


@pytest.mark.parametrize("entry", weights.catalogue(), ids=lambda entry: entry.name)
def test_catalogue_says_what_the_installed_torchvision_says(entry: Weights) -> None:
    official = get_model_weights(entry.name).COCO_V1
    assert entry.url == official.url
    assert entry.parameters == official.meta["num_params"]
    ours = {"box_map": entry.box_ap, "mask_map": entry.mask_ap, "kp_map": entry.keypoint_ap}
    assert {kind: ap for kind, ap in ours.items() if ap is not None} == official.meta["_metrics"][
        "COCO-val2017"
    ]
    assert entry.size / 2**20 == pytest.approx(official.meta["_file_size"], abs=0.005)


@pytest.mark.parametrize("entry", weights.catalogue(), ids=lambda entry: entry.name)
def test_sha256_begins_with_the_hash_in_the_official_file_name(entry: Weights) -> None:
    in_name = entry.file.removesuffix(".pth").rpartition("-")[2]
    assert (len(in_name), len(entry.sha256)) == (8, 64)
    assert entry.sha256.startswith(in_name)


def test_catalogue_has_the_best_first(entries: dict[str, Weights]) -> None:
    assert weights.catalogue() == (entries["other"], entries["large"], entries["small"])


def test_path_is_the_official_file_name_in_the_folder(folder: Path) -> None:
    path = weights.path("maskrcnn_resnet50_fpn", folder)
    assert path == folder / "maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth"


def test_misspelt_name_is_told_the_name_that_was_meant() -> None:
    with pytest.raises(UnknownWeightsError, match="did you mean maskrcnn_resnet50_fpn_v2"):
        weights.find("maskrcnn_resnet50_fpn_v3")


def test_unknown_name_is_told_all_names() -> None:
    with pytest.raises(
        UnknownWeightsError, match=r"there are maskrcnn_resnet50_fpn_v2, maskrcnn_resnet50_fpn"
    ):
        weights.find("yolo")


# The folder


def test_checkout_keeps_its_weights_in_its_own_folder() -> None:
    assert weights.default_folder({}) == Path(__file__).resolve().parents[3] / "weights"


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        pytest.param({"XDG_CACHE_HOME": "/var/cache/me"}, Path("/var/cache/me/maskserve/weights"), id="set"),
        pytest.param({}, Path.home() / ".cache/maskserve/weights", id="unset"),
        pytest.param({"XDG_CACHE_HOME": ""}, Path.home() / ".cache/maskserve/weights", id="empty"),
        pytest.param({"XDG_CACHE_HOME": "here"}, Path.home() / ".cache/maskserve/weights", id="relative"),
    ],
)
def test_installed_package_keeps_weights_in_the_cache_folder(
    environment: dict[str, str], expected: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "PACKAGE", tmp_path / "site-packages" / "model")
    assert weights.default_folder(environment) == expected


def test_installed_package_has_its_catalogue_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "PACKAGE", tmp_path / "site-packages" / "model")
    assert weights.bundled_folder() == tmp_path / "site-packages" / "model" / "weights"


# Verifying


def test_verify_returns_the_full_sha256(folder: Path) -> None:
    file = folder / "file"
    file.write_bytes(b"content")
    assert weights.verify(file, sha256_of(b"content")[:8]) == sha256_of(b"content")


def test_one_changed_bit_is_damage_that_names_both_hashes(folder: Path) -> None:
    file = folder / "file"
    file.write_bytes(b"contens")
    with pytest.raises(DamagedWeightsError) as raised:
        weights.verify(file, sha256_of(b"content"))
    assert sha256_of(b"content")[:16] in str(raised.value)
    assert sha256_of(b"contens")[:16] in str(raised.value)


def test_damage_that_keeps_size_and_time_is_found(folder: Path, entries: dict[str, Weights]) -> None:
    put(entries["small"], folder)
    assert weights.state(entries["small"], folder) == "verified"
    before = entries["small"].path(folder).stat()
    put(entries["small"], folder, b"a smell network")
    os.utime(entries["small"].path(folder), ns=(before.st_atime_ns, before.st_mtime_ns))
    assert weights.state(entries["small"], folder) == "damaged"


def test_file_that_is_not_there_is_missing(folder: Path) -> None:
    with pytest.raises(MissingWeightsError, match="is not there"):
        weights.verify(folder / "file", "00")


def test_file_that_cannot_be_read_is_one_clear_error(folder: Path) -> None:
    with pytest.raises(FolderError, match="cannot be read"):
        weights.verify(folder, "00")


def test_part_of_a_download_is_partial(folder: Path, entries: dict[str, Weights]) -> None:
    path = entries["small"].path(folder)
    path.with_name(f"{path.name}.part").write_bytes(b"a sm")
    assert weights.state(entries["small"], folder) == "partial"


def test_folder_that_does_not_exist_has_nothing(tmp_path: Path, entries: dict[str, Weights]) -> None:
    assert weights.state(entries["small"], tmp_path / "nowhere") == "missing"
    assert weights.available(tmp_path / "nowhere") == ()


def test_available_are_the_verified_ones_best_first(folder: Path, entries: dict[str, Weights]) -> None:
    put(entries["small"], folder)
    put(entries["large"], folder)
    put(entries["other"], folder, b"damaged")
    assert weights.available(folder) == (entries["large"], entries["small"])


def test_best_is_the_highest_mask_ap_on_coco(folder: Path, entries: dict[str, Weights]) -> None:
    for entry in entries.values():
        put(entry, folder)
    assert weights.best(folder) == entries["large"]


def test_best_passes_over_a_damaged_file(folder: Path, entries: dict[str, Weights]) -> None:
    put(entries["small"], folder)
    put(entries["large"], folder, b"damaged")
    assert weights.best(folder) == entries["small"]


def test_best_of_an_empty_folder_is_none(folder: Path, entries: dict[str, Weights]) -> None:
    assert weights.best(folder) is None


# Fetching


@pytest.fixture
def mirror(tmp_path: Path, entries: dict[str, Weights]) -> Iterator[str]:
    """The address of a server that has the large model's file under its official name."""
    root = tmp_path / "mirror"
    (root / "models").mkdir(parents=True)
    put(entries["large"], root / "models")

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(root))) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/models"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("end", ["", "/"])
def test_fetch_takes_the_official_file_name_from_a_mirror(
    end: str, mirror: str, folder: Path, entries: dict[str, Weights]
) -> None:
    with httpx.Client(trust_env=False) as client:
        path = weights.fetch("large", folder, base_url=mirror + end, client=client)
    assert path == entries["large"].path(folder)
    assert path.read_bytes() == CONTENTS["large"]
    assert weights.available(folder) == (entries["large"],)


def test_fetch_of_an_unknown_name_touches_nothing(tmp_path: Path, entries: dict[str, Weights]) -> None:
    with pytest.raises(UnknownWeightsError):
        weights.fetch("huge", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_fetch_of_what_is_there_needs_no_network(folder: Path, entries: dict[str, Weights]) -> None:
    put(entries["small"], folder)
    assert weights.fetch("small", folder) == entries["small"].path(folder)


# The documentation


@pytest.mark.parametrize("entry", weights.catalogue(), ids=lambda entry: entry.name)
def test_documentation_names_every_download(entry: Weights) -> None:
    page = (Path(__file__).resolve().parents[3] / "docs" / "weights.md").read_text(encoding="utf-8")
    size = f"{entry.size / 1e6:.0f} MB"
    (row,) = [line for line in page.splitlines() if line.startswith(f"| `{entry.name}` | ") and size in line]
    precisions = [entry.box_ap, entry.mask_ap, entry.keypoint_ap]
    assert row.split(" | ")[1:5] == [*("–" if ap is None else str(ap) for ap in precisions), size]
    assert f"| `{entry.name}` | <{entry.url}> |" in page
