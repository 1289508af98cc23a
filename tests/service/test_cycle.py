"""The whole cycle: a labelled folder of two categories → train → evaluate → serve → POST /segment."""

from __future__ import annotations

import hashlib
import json
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest
from PIL import Image, ImageDraw
from typer.testing import CliRunner

from app.cli.main import cli
from app.commands.network import NetworkOptions
from app.commands.source import Source
from app.commands.train import run_training
from model.data.figures import Figures
from model.masks.paste import Rle, decode
from tests.app.commands.training import COMMAND, tiny_networks

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.service.conftest import Server

NAMES = {3: "box", 7: "disc"}
QUICK = {"batch_size": 2, "workers": 0, "sizes": ["64"], "warmup": 1, "precision": "float32", "rois": 16}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four pictures in COCO's format: boxes as polygons, discs as uncompressed RLE."""
    path = tmp_path_factory.mktemp("cycle") / "data"
    (path / "images").mkdir(parents=True)
    images, annotations = [], []
    for number in range(1, 5):
        picture = Image.new("RGB", (80, 64), "white")
        draw = ImageDraw.Draw(picture)
        x, y = 4 + 3 * number, 30 - 4 * number
        draw.rectangle((x, y, x + 19, y + 19), fill="navy")
        square = [x, y, x + 20, y, x + 20, y + 20, x, y + 20]
        mask = Image.new("1", (80, 64))
        ImageDraw.Draw(mask).ellipse((50, 30, 74, 54), fill=1)
        draw.bitmap((0, 0), mask, fill="red")
        flat = np.array(mask).ravel("F")
        runs = np.diff(np.concatenate([[0], np.flatnonzero(np.diff(flat)) + 1, [flat.size]])).tolist()
        picture.save(path / "images" / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": 80, "height": 64})
        annotations += [
            {"id": 2 * number, "image_id": number, "category_id": 3, "iscrowd": 0, "area": 400,
             "bbox": [x, y, 20, 20], "segmentation": [square]},
            {"id": 2 * number + 1, "image_id": number, "category_id": 7, "iscrowd": 0, "area": int(flat.sum()),
             "bbox": [50, 30, 25, 25], "segmentation": {"size": [64, 80], "counts": runs}},
        ]  # fmt: skip
    categories = [{"id": number, "name": name} for number, name in NAMES.items()]
    document = {"images": images, "annotations": annotations, "categories": categories}
    (path / "instances.json").write_text(json.dumps(document))
    return path


@pytest.mark.parametrize(
    ("network", "steps"),
    [
        pytest.param(NetworkOptions("small", input=(64, 96)), 4, id="small"),
        pytest.param(NetworkOptions("vgg16", channels=32, input=(64, 96)), 1, id="VGG-16"),
        pytest.param(NetworkOptions("resnet18-c4", input=(64, 96)), 1, id="ResNet-18-C4"),
    ],
)
def test_labelled_folder_becomes_answers(
    folder: Path, tmp_path: Path, start: Callable[..., Server], network: NetworkOptions, steps: int
) -> None:
    # A C4 runs the last stage for each proposal, and a VGG-16 takes five times as long as a ResNet-18.
    thin = network.architecture != "small"
    run = tmp_path / "run"
    options: dict[str, Any] = {**QUICK, "steps": steps, "validate_every": steps}
    source = Source(str(folder), validation=str(folder))
    with tiny_networks() if thin else nullcontext():
        assert run_training(source, run, network, "cpu", options) == 0
    (run / "checkpoint.pt").unlink()
    best = run / "best.safetensors"
    # The model card.
    assert "box, disc" in (run / "best.md").read_text()
    assert (run / "samples" / f"{steps:06d}.jpg").exists()

    # The command as it is typed; once is enough.
    if network.architecture == "small":
        evaluated = CliRunner().invoke(cli, ["evaluate", str(best), "--data", str(folder), "--json"])
        assert evaluated.exit_code == 0, evaluated.stderr
        document = json.loads(evaluated.stdout)
        assert (document["images"], document["objects"]) == (4, 8)
        assert set(document["mask"]["per_category"]) == {"box", "disc"}

    program = ("-m", COMMAND, "serve") if thin else ("-m", "app.cli", "serve")
    server = start(model=best, program=program).wait_until_ready()
    known = httpx.get(f"{server.url}/model").json()
    assert known["categories"] == [{"id": 3, "name": "box"}, {"id": 7, "name": "disc"}]
    assert known["sha256"] == hashlib.sha256(best.read_bytes()).hexdigest()
    assert known["ap_source"] == f"measured on {folder}"
    answer = httpx.post(
        f"{server.url}/segment?score_threshold=0",
        content=(folder / "images" / "2.png").read_bytes(),
        headers={"Content-Type": "image/png"},
        timeout=60,
    )
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert found["image"] == {"width": 80, "height": 64}
    assert found["instances"]
    for instance in found["instances"]:
        assert NAMES[instance["category_id"]] == instance["category"]
        assert decode(Rle.from_coco(instance["segmentation"])).shape == (64, 80)


def test_drawn_people_become_keypoints(tmp_path: Path, start: Callable[..., Server]) -> None:
    data, run = tmp_path / "people", tmp_path / "run"
    Figures(seed=5, length=4, sides=(96, 128)).export(data)
    source, network = Source(str(data), validation=str(data)), NetworkOptions("small", input=(64, 96))
    with tiny_networks():
        assert run_training(source, run, network, "cpu", {**QUICK, "steps": 2}) == 0
        evaluated = CliRunner().invoke(
            cli, ["evaluate", str(run / "model.safetensors"), "--data", str(data), "--json"]
        )
    assert evaluated.exit_code == 0, evaluated.stderr
    document = json.loads(evaluated.stdout)
    assert {"box", "mask", "keypoints"} <= document.keys()
    assert document["keypoints"]["figures"]["AP"] >= 0
    assert "L_kp" in (run / "log.jsonl").read_text()
    assert "A Mask and Keypoint R-CNN of 17 keypoints" in (run / "model.md").read_text()

    server = start(model=run / "model.safetensors", program=("-m", COMMAND, "serve")).wait_until_ready()
    (category,) = httpx.get(f"{server.url}/model").json()["categories"]
    assert (category["name"], category["keypoints"][0], category["skeleton"][0]) == (
        "person",
        "nose",
        [16, 14],
    )
    image = (data / "images" / "000001.jpg").read_bytes()
    answer = httpx.post(f"{server.url}/segment?score_threshold=0", content=image, timeout=60).json()
    width, height = answer["image"]["width"], answer["image"]["height"]
    assert answer["instances"]
    for instance in answer["instances"]:
        assert "segmentation" in instance
        assert len(instance["keypoint_scores"]) == 17
        places = np.array(instance["keypoints"]).reshape(17, 3)
        # Within the box, which lies within the image.
        assert (places[:, :2] >= -1).all()
        assert (places[:, :2] <= [width + 1, height + 1]).all()
