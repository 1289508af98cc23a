"""The client and `maskserve segment --url` against a real server: nothing is lost, and what stopped goes on."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import signal
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from app.cli.main import cli
from maskserve import AsyncClient, Client, Result, ServiceError

from .conftest import PATIENCE, ROOT, environment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

LOW = 0.06  # the random model's scores lie around 0.1


def photo(seed: int, width: int = 96, height: int = 72) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five images, one of them in a folder within, and a file that is none."""
    (tmp_path / "photos" / "more").mkdir(parents=True)
    for number, name in enumerate(["a.png", "b.jpg", "c.PNG", "d.webp", "more/a.png"]):
        Image.fromarray(photo(number)).save(tmp_path / "photos" / name)
    (tmp_path / "photos" / "notes.txt").write_text("no image")
    return tmp_path / "photos"


def segment(server: Any, *arguments: object) -> Any:
    """`maskserve segment … --url` in this process."""
    words = ["segment", "--url", server.url, "--score-threshold", str(LOW), *map(str, arguments)]
    return CliRunner().invoke(cli, words, env={"COLUMNS": "200"})


def test_a_folder_of_many_images_loses_none_to_a_server_that_sheds_load(
    start: Callable[..., Any], tmp_path: Path
) -> None:
    server = start(max_queue_requests=7).wait_until_ready()
    paths = []
    for number in range(30):
        paths.append(tmp_path / f"{number}.png")
        Image.fromarray(photo(number)).save(paths[-1])
    with Client(server.url, concurrency=10) as client:
        results = list(client.segment_many(paths, score_threshold=LOW, max_instances=3))
        first = client.segment(paths[0], score_threshold=LOW, max_instances=3)
    assert all(isinstance(result, Result) for result in results)
    assert len({result.id for result in results}) == 30
    assert results[0].document["instances"] == first.document["instances"]
    shed = next(
        line
        for line in httpx.get(f"{server.url}/metrics").text.splitlines()
        if line.startswith('maskserve_shed_total{reason="requests"}')
    )
    assert float(shed.split()[-1]) > 0  # else nothing was shown


def test_the_asynchronous_client_gets_the_same_answers(server: Any) -> None:
    images = [photo(number) for number in range(4)]

    async def run() -> list[Any]:
        async with AsyncClient(server.url) as client:
            return [result async for result in client.segment_many(images, score_threshold=LOW)]

    with Client(server.url) as client:
        alone = [client.segment(image, score_threshold=LOW) for image in images]
        with pytest.raises(ServiceError, match="score_threshold must be") as error:
            client.segment(images[0], score_threshold=7)
    assert error.value.type == "urn:maskserve:problem:invalid-parameter"
    assert [result.instances for result in asyncio.run(run())] == [result.instances for result in alone]


@pytest.mark.parametrize("masks", ["rle", "polygon", "png"])
def test_masks_agree_in_every_format(server: Any, masks: str) -> None:
    image = photo(0, 320, 240)
    with Client(server.url) as client:
        plain = client.segment(image, score_threshold=LOW, max_instances=5)
        other = client.segment(image, score_threshold=LOW, max_instances=5, masks=masks)
    for ours, theirs in zip(other.instances, plain.instances, strict=True):
        assert ours.area == theirs.area
        union = (ours.mask | theirs.mask).sum()
        assert (ours.mask & theirs.mask).sum() >= (0.97 if ours.area > 1000 else 0.8) * union


def test_several_images_in_one_call_stream_over_a_real_connection(server: Any) -> None:
    def file(seed: int) -> bytes:
        content = io.BytesIO()
        Image.fromarray(photo(seed)).save(content, "PNG")
        return content.getvalue()

    files = [("image", ("a.png", content)) for content in (file(0), b"none", file(1))]
    with httpx.stream(
        "POST", f"{server.url}/segment?score_threshold={LOW}", files=files, timeout=60
    ) as response:
        assert response.headers["content-type"] == "application/x-ndjson"
        lines = [json.loads(line) for line in response.iter_lines()]
    assert [line["index"] for line in lines] == [0, 1, 2]
    assert [line.get("status") for line in lines] == [None, 415, None]
    alone = httpx.post(f"{server.url}/segment?score_threshold={LOW}", content=file(1), timeout=60).json()
    assert lines[2]["instances"] == alone["instances"]


def test_a_folder_becomes_one_coco_file_and_a_folder_of_pictures(
    server: Any, folder: Path, tmp_path: Path
) -> None:
    out, pictures = tmp_path / "results.json", tmp_path / "pictures"
    result = segment(server, folder, "--out", out, "--overlay-dir", pictures)
    assert result.exit_code == 0, result.stderr
    records = json.loads(out.read_text())
    assert {record["file_name"] for record in records} == {"a.png", "b.jpg", "c.PNG", "d.webp", "more/a.png"}
    assert {record["image_id"] for record in records} == {1, 2, 3, 4, 5}
    drawn = sorted(path.relative_to(pictures).as_posix() for path in pictures.rglob("*.png"))
    assert drawn == ["a.png", "b.png", "c.png", "d.png", "more/a.png"]
    assert not list(tmp_path.glob("*.partial"))
    with Client(server.url) as client, Image.open(pictures / "a.png") as picture:
        answer = client.draw(folder / "a.png", score_threshold=LOW)
        with Image.open(io.BytesIO(answer)) as expected:
            difference = np.abs(np.asarray(picture).astype(int) - np.asarray(expected).astype(int))
    assert (difference > 0).mean() < 0.02  # the service draws before scores and boxes are rounded


def test_no_picture_takes_an_images_place(server: Any, folder: Path) -> None:
    before = (folder / "a.png").read_bytes()
    result = segment(server, folder, "--overlay-dir", folder)
    assert (result.exit_code, "is one of the images, and would be overwritten" in result.stderr) == (2, True)
    assert (folder / "a.png").read_bytes() == before


@contextlib.contextmanager
def bad_service(server: Any, bad: bytes, answer: bytes) -> Iterator[str]:
    """The address of a proxy that gives this answer for one image, and the service's own for all others."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            content = answer if body == bad else httpx.post(server.url + self.path, content=body).content
            self.send_response(200)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Nothing on stderr."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as proxy:
        threading.Thread(target=proxy.serve_forever, args=(0.05,), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{proxy.server_port}"
        finally:
            proxy.shutdown()


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b"<html>", "the answer is no JSON"),
        (b"null", "the answer is no JSON object"),
        (b"{}", "the answer is no result of maskserve"),
        (
            (
                b'{"id":"x","model":"m","image":{"width":96,"height":72},"instances":[{"category_id":1,"category":"c",'
                b'"score":0.5,"bbox":[0,0,9,9],"area":9,"segmentation":{"size":[40000,40000],"counts":"0"}}]}'
            ),
            "the mask of a c cannot be read",
        ),
    ],
)
def test_an_answer_that_is_none_costs_one_image_and_no_traceback(
    server: Any, folder: Path, tmp_path: Path, answer: bytes, says: str
) -> None:
    with bad_service(server, (folder / "b.jpg").read_bytes(), answer) as url:
        words = [
            "segment",
            "--url",
            url,
            folder,
            "--out",
            tmp_path / "out",
            "--overlay-dir",
            tmp_path / "drawn",
        ]
        result = CliRunner().invoke(cli, list(map(str, words)), env={"COLUMNS": "200"})
    assert result.exit_code == 1
    assert f"b.jpg: {says}" in result.stderr
    assert "1 of 5 images have no result" in result.stderr
    assert len(list((tmp_path / "drawn").rglob("*.png"))) == 4


def test_ctrl_c_ends_a_run_that_waits_for_an_answer(folder: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        process = subprocess.Popen(
            [sys.executable, "-m", "maskserve", "segment", "--url", url, folder, "--out", tmp_path / "out"],
            cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        with silent.accept()[0]:
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert "interrupted; the same command" in said


def test_results_stay_where_no_service_answers(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("maskserve.retry.FIRST_PAUSE", 0.001)
    out = tmp_path / "results.json"
    out.write_text("[1]")
    with socket.create_server(("127.0.0.1", 0)) as unused:
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
    result = CliRunner().invoke(cli, ["segment", "--url", url, str(folder), "--out", str(out)])
    assert result.exit_code == 1
    assert f"no service answers at {url}" in result.stderr
    assert out.read_text() == "[1]"


def test_a_run_that_stopped_goes_on_and_tries_again_what_failed(
    server: Any, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "results.json"
    (folder / "e.png").write_bytes(b"broken")
    result = segment(server, folder, "--out", out)
    assert result.exit_code == 1
    assert "e.png: 415" in result.stderr
    assert "1 of 6 images have no result; the same command tries them again" in result.stderr
    before = out.read_text()
    journal = tmp_path / "results.json.partial"
    journal.write_bytes(journal.read_bytes()[:-20])  # as if it had been cut off while it wrote
    Image.fromarray(photo(9)).save(folder / "e.png")
    seen = len(server_requests(server))
    result = segment(server, folder, "--out", out)
    assert result.exit_code == 0, result.stderr
    assert "4 of 6 images have their results already" in result.stderr
    assert len(server_requests(server)) - seen == 2
    records = json.loads(out.read_text())
    assert len({record["image_id"] for record in records}) == 6
    kept = [record for record in records if record["file_name"] not in ("e.png", "more/a.png")]
    assert kept == [record for record in json.loads(before) if record["file_name"] != "more/a.png"]


def server_requests(server: Any) -> list[str]:
    """What /metrics counts as answered images."""
    text = httpx.get(f"{server.url}/metrics").text
    (count,) = [line for line in text.splitlines() if line.startswith("maskserve_instances_count")]
    return ["image"] * int(float(count.split()[-1]))


def test_a_file_that_has_changed_is_asked_for_again(server: Any, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    (folder / "e.png").write_bytes(b"broken")
    assert segment(server, folder, "--out", out).exit_code == 1
    Image.fromarray(photo(77, 100, 50)).save(folder / "a.png")
    (folder / "e.png").unlink()
    result = segment(server, folder, "--out", out)
    assert "4 of 5 images have their results already" in result.stderr
    sizes = {
        tuple(r["segmentation"]["size"]) for r in json.loads(out.read_text()) if r["file_name"] == "a.png"
    }
    assert sizes == {(50, 100)}


def test_a_run_with_other_options_does_not_go_on_from_it(server: Any, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    (folder / "e.png").write_bytes(b"broken")
    assert segment(server, folder, "--out", out).exit_code == 1
    result = segment(server, folder, "--out", out, "--max-instances", 3)
    assert result.exit_code == 2
    assert "other options" in result.stderr


@pytest.mark.parametrize(
    ("form", "begins"), [("coco-dataset", '{"images"'), ("cvat", "<?xml"), ("label-studio", '[{"data"')]
)
def test_other_tools_files(server: Any, folder: Path, tmp_path: Path, form: str, begins: str) -> None:
    out = tmp_path / "file"
    result = segment(server, folder, "--out", out, "--format", form, "--max-instances", 2)
    assert result.exit_code == 0, result.stderr
    assert out.read_text().startswith(begins)
    assert "more/a.png" in out.read_text()


def test_without_out_answers_are_printed(server: Any, folder: Path) -> None:
    result = segment(server, folder / "a.png", folder / "notes.txt", folder / "b.jpg", "--json")
    assert result.exit_code == 1
    assert [json.loads(line)["id"] for line in result.stdout.splitlines()] == [
        str(folder / "a.png"),
        str(folder / "b.jpg"),
    ]
    table = segment(server, folder / "a.png", "--max-instances", 2)
    assert table.exit_code == 0
    assert len(table.stdout.splitlines()) == 4


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--model", "shapes"], 2, "combined with --url"),
        (["--format", "xml", "--out", "x"], 2, "--format must be one of coco"),
        (["--format", "cvat", "--masks", "none", "--keypoints", "none", "--out", "x"], 2, "needs masks"),
        (["--api-key-file", "none.key"], 1, "none.key: No such file"),
        (["--score-threshold", "2"], 1, "422 Invalid parameter"),
    ],
)
def test_what_cannot_be_done_is_said(
    server: Any, folder: Path, arguments: list[str], code: int, says: str
) -> None:
    result = segment(server, folder / "a.png", *arguments)
    assert result.exit_code == code
    assert says in result.stderr
    assert result.stdout == ""


def test_an_empty_folder_is_said(server: Any, tmp_path: Path) -> None:
    result = segment(server, tmp_path)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "no images (JPEG, PNG" in result.stderr
