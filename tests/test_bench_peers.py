"""bench/peers: what its table says, and that a peer which fails is a row of it."""

from __future__ import annotations

import asyncio
import http.server
import json
import re
import shutil
import signal
import sys
import threading
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from pycocotools import mask as coco

from bench.peers import engines, environments, process, servers
from bench.peers.__main__ import attempt
from bench.peers.agreement import Agreement, Answer, compare
from bench.peers.conditions import Conditions
from bench.peers.inputs import threshold_between, write
from bench.peers.machine import flags_in, pinned
from bench.peers.picture import bars
from bench.peers.process import PeerError, Running, reason_in
from bench.peers.registry import ENGINES, PROGRAMS, REQUIREMENTS, SERVERS, Peer, choose
from bench.peers.results import CLIENTS, Result, Turn
from bench.peers.table import tables
from bench.synthetic_weights import synthetic_weights
from bench.wrk import ClosedLoop
from model.data import Category
from model.images.decode import decode, encode_jpeg
from model.network.architecture import Architecture
from model.zoo import model_file

if TYPE_CHECKING:
    from pathlib import Path

PEERS = (*ENGINES, *SERVERS)
OURS = Peer("ours", "maskserve", "float32", "maskserve_engine", "")
OTHER = Peer("other", "Other", "float32", "eager", "torchvision")
LOCK = (REQUIREMENTS.parents[2] / "requirements.lock").read_text()
ALL = Agreement(expected=3, found=3, same=3, box_iou=1.0, mask_iou=0.9996)


def answer(boxes: list[list[float]], labels: list[int], size: tuple[int, int] = (40, 60)) -> Answer:
    """With masks that fill the boxes."""
    masks = np.zeros((len(boxes), *size), dtype=bool)
    for mask, (x, y, right, bottom) in zip(masks, boxes, strict=True):
        mask[int(y) : int(bottom), int(x) : int(right)] = True
    corners = np.array(boxes, dtype=float).reshape(-1, 4)
    return Answer(corners, np.array(labels), np.full(len(boxes), 0.9), masks)


def measured(peer: Peer, *rates: float, wrong: int = 0) -> Result:
    result = Result(peer, agreement=ALL, peak_bytes=512_000_000)
    for clients in CLIENTS if peer.is_server else (1,):
        for rate in rates:
            result.add(clients, Turn(rate, 1 / rate, 2 / rate, right=10, wrong=wrong))
    return result


def test_every_peer_has_a_name_of_its_own_a_program_and_requirements() -> None:
    assert max(Counter(peer.name for peer in PEERS).values()) == 1
    for peer in PEERS:
        assert peer.script.is_file()
        assert peer.is_ours or (REQUIREMENTS / f"{peer.requirements}.txt").is_file()


def test_every_program_and_list_of_requirements_belongs_to_a_peer() -> None:
    # And that of bench/tiles.py.
    others = {"network", "protocol", "torch_serve_handler", "sahi_tiles"}
    programs = {path.stem for path in PROGRAMS.iterdir() if path.suffix == ".py"}
    assert programs - others == {peer.program for peer in PEERS}
    lists = {path.stem for path in REQUIREMENTS.iterdir()}
    assert lists - {"sahi"} | {""} == {peer.requirements for peer in PEERS}


def test_we_are_compared_in_each_precision_as_engine_and_as_server() -> None:
    for peers in (ENGINES, SERVERS):
        assert {peer.precision for peer in peers if peer.is_ours} == {"float32", "bfloat16", "int8"}


@pytest.mark.parametrize("path", sorted(REQUIREMENTS.iterdir()), ids=lambda path: path.stem)
def test_requirements_are_pinned_packages_and_name_no_host(path: Path) -> None:
    lines = path.read_text().splitlines()
    for line in lines:
        assert re.fullmatch(r"[a-z0-9-]+(\[[a-z]+\])?==[\w.]+", line), line
    # The same torch for all, which is ours.
    for line in lines[:2]:
        assert line.startswith("torch")
        assert f"\n{line} " in LOCK


def test_versions_are_those_of_the_requirements() -> None:
    assert pinned([OTHER, OURS])["torchvision"] == re.findall(r"^torchvision==(\S+)", LOCK, re.MULTILINE)[0]
    assert "openvino" not in pinned([OTHER, OURS])


def test_the_threshold_lies_in_the_widest_gap_that_leaves_enough() -> None:
    scores = [0.99, *(0.9 - n / 100 for n in range(12)), 0.7, *(0.695 - n / 100 for n in range(9))]
    assert threshold_between(scores) == 0.745
    # Fewer than that tell nothing.
    assert threshold_between(scores[:10]) == 0.5


def test_peers_are_chosen_by_kind_and_name() -> None:
    assert choose("engines", None) == list(ENGINES)
    assert [peer.name for peer in choose(None, "litserve,eager")] == ["eager", "litserve"]
    with pytest.raises(SystemExit, match="no such peer: eager"):
        choose("servers", "eager")


def test_an_answer_agrees_with_itself_in_any_order() -> None:
    boxes = [[0.0, 0, 10, 10], [20, 5, 40, 30], [1, 1, 11, 11]]
    found = answer(boxes[::-1], [1, 2, 1])
    agreement = compare(answer(boxes, [1, 2, 1]), found)
    assert agreement == Agreement(expected=3, found=3, same=3, box_iou=1.0, mask_iou=1.0)
    assert str(agreement) == "3 of 3; mask IoU 1.000"


def test_what_is_lost_or_invented_or_of_another_category_is_said() -> None:
    boxes = [[0.0, 0, 10, 10], [20, 5, 40, 30], [44, 4, 50, 9]]
    found = answer([[0, 0, 10, 10], [20, 5, 40, 30], [0, 20, 9, 29], [50, 30, 59, 39]], [1, 7, 1, 1])
    agreement = compare(answer(boxes, [1, 2, 3]), found)
    assert (agreement.expected, agreement.found, agreement.same) == (3, 4, 1)
    assert str(agreement) == "1 of 3, 3 others; mask IoU 1.000"


def test_an_instance_answers_only_one_of_ours() -> None:
    agreement = compare(answer([[0, 0, 20, 20], [0, 0, 20, 18]], [1, 1]), answer([[0, 0, 20, 19]], [1]))
    assert agreement.same == 1


def test_masks_are_compared_where_boxes_agree() -> None:
    expected, found = answer([[0, 0, 10, 10]], [1]), answer([[0, 0, 10, 10]], [1])
    assert found.masks is not None
    found.masks[0, :5] = False
    assert compare(expected, found).mask_iou == 0.5


def test_a_peer_without_masks_is_marked() -> None:
    expected = answer([[0, 0, 10, 10]], [1])
    assert str(compare(expected, replace(expected, masks=None))) == "1 of 1; no masks"


def test_an_iou_that_is_not_1_is_not_shown_as_1() -> None:
    assert str(ALL) == "3 of 3; mask IoU 0.999"


def test_no_instances_are_an_answer_too() -> None:
    nothing = answer([], [])
    assert str(compare(nothing, nothing)) == "0 of 0"
    assert str(compare(nothing, answer([[0, 0, 5, 5]], [1]))) == "0 of 0, 1 others"


@pytest.mark.parametrize("wrap", [False, True], ids=["plain", "Triton's protocol"])
def test_a_server_answers_with_coco_records(*, wrap: bool) -> None:
    expected = answer([[2, 3, 12, 9]], [4])
    assert expected.masks is not None
    rle = coco.encode(np.asfortranarray(expected.masks[0].astype(np.uint8)))
    segmentation = {"size": rle["size"], "counts": rle["counts"].decode()}
    record = {"category_id": 4, "score": 0.9, "bbox": [2, 3, 10, 6], "segmentation": segmentation}
    body, head = json.dumps({"instances": [record]}).encode(), None
    if wrap:
        tensors = b'{"outputs": [{"name": "answer", "shape": [1]}]}'
        body, head = tensors + len(body).to_bytes(4, "little") + body, str(len(tensors))
    found = Answer.of_document(servers.read_answer(body, head))
    assert compare(expected, found) == Agreement(expected=1, found=1, same=1, box_iou=1.0, mask_iou=1.0)


def test_the_worst_answer_of_all_turns_is_kept() -> None:
    result, lost = Result(OTHER), replace(ALL, found=2, same=2)
    for agreement in (ALL, lost, ALL):
        result.check(agreement)
    assert result.agreement == lost


def test_the_table_has_figures_the_ratio_and_the_reason_of_a_failure() -> None:
    failed = Result(replace(OTHER, title="Broken"), failure="No module named 'x' | y")
    text = tables([measured(OTHER, 2.0, 4.0, 2.0, wrong=2), failed, measured(OURS, 6.0, 8.0, 8.0)])
    lines = text.splitlines()
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1
    assert re.search(
        r"Other +\| float32 +\| 2 +\| 500 +\| 1000 +\| 512 +\| 3 of 3; mask IoU 0.999 +\| 6 ", text
    )
    assert "fails: No module named 'x' / y" in text
    assert "maskserve float32 against Other float32: 3.00 × (2.00 to 4.00 in 3 rounds)" in text


def test_ours_is_compared_with_the_fastest_of_its_precision() -> None:
    slow, fast = measured(OTHER, 1.0), measured(replace(OTHER, title="Fast", precision="int8"), 3.0)
    text = tables([slow, fast, measured(OURS, 2.0), measured(replace(OURS, precision="bfloat16"), 6.0)])
    assert "maskserve float32 against Other float32: 2.00 ×" in text
    # Nobody else has it.
    assert "maskserve bfloat16 against Fast int8: 2.00 ×" in text


def test_servers_are_compared_for_each_number_of_clients() -> None:
    text = tables([measured(replace(peer, path="/segment"), 2.0) for peer in (OTHER, OURS)])
    assert [clients for clients in CLIENTS if re.search(rf"float32, {clients} clients?: 1.00 ×", text)] == [
        *CLIENTS
    ]


def test_the_picture_has_a_bar_for_each_loop_and_a_reason_for_each_failure() -> None:
    rows = [measured(SERVERS[0], 2.0), Result(SERVERS[1], failure="it ended with code 3")]
    axis = Figure().subplots()
    bars(axis, rows, CLIENTS)
    assert [patch.get_width() for patch in axis.patches] == [2.0] * len(CLIENTS)
    assert [text.get_text() for text in axis.texts][-1] == " fails: it ended with code 3"


def test_flags_are_those_of_the_first_processor() -> None:
    assert flags_in("flags\t: fpu avx2 amx_int8\nprocessor: 1\nflags\t: avx512f") == ["avx2", "amx_int8"]


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        ("Traceback\n  File x\nModuleNotFoundError: No module named 'y'\n", "ModuleNotFoundError: No module named 'y'"),
        ("error: No solution found\n  cause: Because a needs b\n", "cause: Because a needs b"),
        ("12:00 WARN a.b.SomeError: first\nending\n", "SomeError: first"),
        ("starting\nout of luck\n\n", "out of luck"),
        ("", ""),
        ("x" * 500, "x" * (process.MOST_CHARACTERS - 1) + "…"),
    ],
    ids=["traceback", "uv", "in a log", "no error", "nothing", "long"],
)  # fmt: skip
def test_a_reason_is_a_few_words_of_the_log(log: str, reason: str) -> None:
    assert reason_in(log) == reason


def python(code: str, log: Path) -> Running:
    return Running([sys.executable, "-I", "-S", "-c", code], {}, log, talks=True)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise OSError('no such thing')", "OSError: no such thing"),
        ("import os; os.kill(os.getpid(), 9)", "it ended with SIGKILL"),
    ],
)
def test_a_program_that_ends_says_why(code: str, reason: str, tmp_path: Path) -> None:
    with python(code, tmp_path / "log") as running, pytest.raises(PeerError, match=f"^{reason}$"):
        running.read(60)


def test_a_program_that_does_not_answer_is_not_waited_for(tmp_path: Path) -> None:
    with python("input()", tmp_path / "log") as running, pytest.raises(PeerError, match="no answer in 0 s"):
        running.read(0.01)


def test_nothing_that_a_program_started_outlives_it(tmp_path: Path) -> None:
    child = "import signal; signal.signal(15, signal.SIG_IGN); print(1, flush=True); signal.pause()"
    code = f"""
import signal, subprocess, sys
child = subprocess.Popen([sys.executable, "-I", "-S", "-c", {child!r}], stdout=subprocess.PIPE, start_new_session=True)
child.stdout.readline()
print(child.pid, flush=True)
signal.pause()
"""
    with python(code, tmp_path / "log") as running:
        pid = running.read(60)
        started = process.family(running.process.pid)
        assert set(started) == {running.process.pid, pid}
        assert process.peak_bytes(running.process.pid) > 1_000_000
    assert not any(process.is_running(*one) for one in started.items())
    assert running.process.returncode == -signal.SIGTERM


def test_peers_get_neither_our_packages_nor_our_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "here")
    monkeypatch.setenv("MASKSERVE_PRECISION", "int8")
    code = "import json, os; print(json.dumps(dict(os.environ)))"
    with python(code, tmp_path / "log") as running:
        found = running.read(60)
    assert "PATH" in found
    assert not {"PYTHONPATH", "MASKSERVE_PRECISION"} & set(found)


def fake_uv(tmp_path: Path, code: int) -> str:
    """A program that writes down what it is told, makes the environment's folder, and ends with a code."""
    path = tmp_path / "uv"
    path.write_text(
        f'#!/bin/sh\necho "$1 $2 $VIRTUAL_ENV" >> {tmp_path}/calls\nmkdir -p {tmp_path}/made/torchvision\n'
        f'echo "error: no wheel fits" >&2\nexit {code}\n'
    )
    path.chmod(0o755)
    return str(path)


def test_an_environment_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uv, made = fake_uv(tmp_path, 0), tmp_path / "made"
    monkeypatch.setattr(environments, "find_uv", lambda: uv)
    for _ in range(2):
        environments.make_environment("torchvision", made)
    calls = (tmp_path / "calls").read_text().splitlines()
    assert [call.split()[0] for call in calls] == ["venv", "pip"]
    assert calls[1].split()[2] == str(made / "torchvision")
    # Other requirements make it anew.
    (made / "torchvision" / "requirements.txt").write_text("torch==1.0")
    environments.make_environment("torchvision", made)
    assert len((tmp_path / "calls").read_text().splitlines()) == 4


def test_a_peer_that_cannot_be_installed_says_why_and_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    uv, result, done = fake_uv(tmp_path, 2), Result(OTHER), []
    monkeypatch.setattr(environments, "find_uv", lambda: uv)
    attempt(result, "prepared", lambda: environments.make_environment("torchvision", tmp_path / "made"))
    attempt(result, "round 1", lambda: done.append(1))
    assert result.failure == "not installed: error: no wheel fits"
    assert done == []
    assert "other: prepared: not installed" in capsys.readouterr().err


class Segments(http.server.BaseHTTPRequestHandler):
    """Answers each second request with one mask, and the others with two."""

    asked: list[tuple[str, str | None, int]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.asked.append((self.path, self.headers["X-Model"], len(body)))
        answer = b'{"counts"}' * (1 + len(self.asked) % 2)
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None: ...


@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")
def test_wrk_sends_where_it_is_told_and_counts_masks() -> None:
    Segments.asked = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Segments) as server:
        threading.Thread(target=server.serve_forever).start()
        loop, url = ClosedLoop(1), f"http://127.0.0.1:{server.server_port}"
        asyncio.run(
            loop.turn(url, [b"a photo"], 1, path="/there", headers={"X-Model": "a=b"}, count="counts")
        )
        server.shutdown()
    assert set(Segments.asked) == {("/there", "a=b", len(b"a photo"))}
    assert set(loop.words) == {"1", "2"}
    assert sum(loop.words.values()) == loop.statuses["200"]
    assert abs(loop.words["1"] - loop.words["2"]) <= 1


def test_torchvision_takes_a_turn_and_agrees(tmp_path: Path) -> None:
    architecture = Architecture(
        backbone="resnet18", classes=4, fpn_channels=16, box_channels=32, mask_channels=16, proposals=50,
        min_size=96, max_size=128,
    )  # fmt: skip
    pixels = np.random.default_rng(0).integers(0, 255, (24, 32, 3), dtype=np.uint8)
    jpeg = encode_jpeg(np.kron(pixels, np.ones((4, 4, 1), dtype=np.uint8)))
    image = torch.from_numpy(decode(jpeg)).permute(2, 0, 1) / 255
    categories = tuple(Category(number, f"kind {number}") for number in range(1, 4))
    model = model_file.describe("tiny", architecture, categories)
    expected = write(tmp_path, synthetic_weights(architecture, image), model, jpeg, 0.5)
    assert len(expected.labels) > 2
    # In the environment of the tests, which has what requirements/torchvision.txt names.
    result = Result(replace(choose("engines", "eager")[0], requirements=""))
    engines.turn(result, Conditions(tmp_path, expected, score_threshold=0.5, threads=1, seconds=0.05))
    agreement = result.agreement
    assert agreement is not None
    assert agreement.same == agreement.found == agreement.expected == len(expected.labels)
    assert agreement.mask_iou is not None
    assert agreement.mask_iou > 0.999
    assert result.total("wrong") == 0
    assert result.total("right") >= 1
    assert result.peak_bytes > 100_000_000
