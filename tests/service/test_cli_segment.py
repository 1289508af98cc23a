"""`maskserve segment` prints what the service answers, draws it, and says in one line what it cannot do."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from app.cli.main import cli

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

OPTIONS = ("--score-threshold", "0.06", "--max-instances", "5")


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A noisy picture as a file."""
    pixels = np.random.default_rng(1).integers(0, 255, (90, 120, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.fixture
def segment(model_file: Path) -> Callable[..., Any]:
    """`maskserve segment …` on the small model, in this process."""

    def run(*arguments: object, model: object = model_file) -> Any:
        words = ["segment", *map(str, arguments), "--model", str(model)]
        return CliRunner().invoke(
            cli, words, env={"MASKSERVE_THREADS": "1", "MASKSERVE_PRECISION": "float32", "COLUMNS": "200"}
        )

    return run


def test_json_is_the_services_answer_with_the_path_for_an_id(
    segment: Callable[..., Any], photo: Path, server: Any
) -> None:
    result = segment(photo, photo, "--json", *OPTIONS)
    assert result.exit_code == 0, result.stderr
    (line,) = result.stdout.splitlines()
    printed = json.loads(line)
    answer = httpx.post(
        f"{server.url}/segment?score_threshold=0.06&max_instances=5", content=photo.read_bytes(), timeout=60
    ).json()
    assert printed.pop("id") == str(photo)
    del answer["id"]
    assert printed == answer
    assert len(printed["instances"]) == 5


def test_a_table_is_for_people(segment: Callable[..., Any], photo: Path) -> None:
    result = segment(photo, "--categories", "star,circle", *OPTIONS)
    assert result.exit_code == 0, result.stderr
    title, headings, *rows = result.stdout.splitlines()
    assert "photo.png: 120 × 90, " in title
    assert headings.split() == ["category", "score", "x", "y", "width", "height", "area"]
    assert rows
    assert all(row.split()[0] in ("star", "circle") for row in rows)


def test_overlay_draws_into_the_file(segment: Callable[..., Any], photo: Path, tmp_path: Path) -> None:
    result = segment(photo, "--overlay", tmp_path / "out.jpg", *OPTIONS)
    assert result.exit_code == 0, result.stderr
    with Image.open(tmp_path / "out.jpg") as drawn:
        assert (drawn.format, drawn.size) == ("JPEG", (120, 90))


def test_an_overlay_that_no_jpeg_can_hold_is_a_line_that_says_so(
    segment: Callable[..., Any], tmp_path: Path
) -> None:
    Image.new("RGB", (65_501, 1)).save(tmp_path / "long.png")
    result = segment(tmp_path / "long.png", "--overlay", tmp_path / "out.jpg", *OPTIONS)
    assert result.exit_code == 1
    complaint = "A JPEG has at most 65500 pixels a side, not 65501 × 1; a PNG may have more."
    assert result.stderr.splitlines()[0] == f"maskserve: {tmp_path / 'long.png'}: {complaint}"


def test_overlays_of_several_images_go_into_a_folder_and_a_bad_file_is_one_line_that_stops_no_other(
    segment: Callable[..., Any], photo: Path, tmp_path: Path
) -> None:
    bad, other = tmp_path / "bad.jpg", tmp_path / "other.png"
    bad.write_bytes(b"no image")
    other.write_bytes(photo.read_bytes())
    (tmp_path / "out").mkdir()
    result = segment(photo, bad, tmp_path / "none.jpg", other, "--json", "--overlay", tmp_path / "out")
    assert result.exit_code == 1
    assert [json.loads(line)["id"] for line in result.stdout.splitlines()] == [str(photo), str(other)]
    complaints = result.stderr.splitlines()
    assert len(complaints) == 3
    assert complaints[0].startswith(f"maskserve: {bad}: ")
    assert complaints[1] == f"maskserve: {tmp_path / 'none.jpg'}: No such file or directory"
    assert complaints[2] == "maskserve: 2 of 4 images have no result"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["other.png", "photo.png"]


def test_folders_become_one_file_of_results_and_a_folder_of_pictures(
    segment: Callable[..., Any], photo: Path, tmp_path: Path
) -> None:
    content = photo.read_bytes()
    for name in ("photos/no_suffix", "photos/more/a.png", "photos/._b.png", "photos/__MACOSX/c.png"):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True, parents=True)
        file.write_bytes(content)
    photo.rename(tmp_path / "photos" / "photo.png")
    (tmp_path / "photos" / "notes.txt").write_text("no picture")
    out, drawn = tmp_path / "results.json", tmp_path / "drawn"
    words = (tmp_path / "photos", "--out", out, "--overlay-dir", drawn, *OPTIONS)
    result = segment(*words)
    assert result.exit_code == 0, result.stderr
    names = {"no_suffix", "more/a.png", "photo.png"}
    assert {record["file_name"] for record in json.loads(out.read_text())} == names
    pictures = {path.relative_to(drawn).as_posix() for path in drawn.rglob("*") if path.is_file()}
    assert pictures == {"no_suffix.png", "more/a.png", "photo.png"}
    # What is not read is named and counted; what is done stays done, for the same model.
    (tmp_path / "photos" / "new.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    result = segment(*words)
    assert result.exit_code == 1
    assert "new.heic: " in result.stderr
    assert "1 of 4 images have no result" in result.stderr
    other = segment(*words, "--precision", "bfloat16")
    assert (other.exit_code, "other options" in other.stderr) == (2, True)


def test_dataset_of_results_has_the_models_categories(
    segment: Callable[..., Any], photo: Path, tmp_path: Path
) -> None:
    result = segment(photo, "--out", tmp_path / "out.json", "--format", "coco-dataset", *OPTIONS)
    assert result.exit_code == 0, result.stderr
    written = json.loads((tmp_path / "out.json").read_text())
    assert {category["name"] for category in written["categories"]} == {"circle", "square", "star"}


def test_folder_without_images_is_one_line(segment: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    result = segment(tmp_path / "empty")
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert "no images" in line


def test_no_picture_takes_an_images_place(segment: Callable[..., Any], photo: Path, tmp_path: Path) -> None:
    before, other = photo.read_bytes(), tmp_path / "other.jpg"
    other.write_bytes(before)
    for arguments in (
        [photo, "--overlay", tmp_path / "." / "photo.png"],
        [other, photo, "--overlay", tmp_path],
    ):
        result = segment(*arguments)
        assert result.exit_code == 2
        assert f"{photo} is one of the images, and would be overwritten" in result.stderr
    (tmp_path / "other").mkdir()
    same = tmp_path / "other" / "other.png"
    same.write_bytes(before)
    result = segment(other, same, "--overlay", tmp_path)
    assert (result.exit_code, "would be the same file" in result.stderr) == (2, True)
    assert photo.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--score-threshold", "2"], 2, "score_threshold must be a number from 0 to 1"),
        (["--categories", "dog"], 2, 'The model has no category "dog". There are: circle, square, star.'),
        (["--masks", "gif"], 2, "masks must be one of rle, polygon, png, none"),
        (["--overlay", "drawn.gif"], 2, "must end in .png or .jpg"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    segment: Callable[..., Any], photo: Path, arguments: list[str], code: int, says: str
) -> None:
    result = segment(photo, *arguments)
    assert result.exit_code == code
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("maskserve: ")
    assert says in line


def test_an_unknown_model_is_one_line(segment: Callable[..., Any], photo: Path) -> None:
    result = segment(photo, model="shape")
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert "did you mean shapes?" in line


def test_version_and_help_do_without_a_model(command: Callable[..., Any]) -> None:
    assert command("--version").stdout.startswith("maskserve ")
    help_text = command("serve", "--help").stdout
    assert "MASKSERVE_MAX_UPLOAD_BYTES" in help_text
    assert "--device" in help_text
