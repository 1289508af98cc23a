"""Which files of a folder are images: told by what they hold, and not by what they are called."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from PIL import Image

from model.images.files import find_images, images_in

if TYPE_CHECKING:
    from pathlib import Path

HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images under all kinds of names, among files that are none."""
    for name in ("a.jpg", "b.JPEG", "c.jfif", "d.jpe", "f.mpo", "noext", "wrong.txt", "sub dir/über 1.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 6)).save(tmp_path / name, "JPEG")
    Image.new("RGB", (8, 6)).save(tmp_path / "h.TIF", "TIFF")
    for hidden in ("._a.jpg", ".DS_Store", ".thumbnails/t.jpg", "__MACOSX/._b.JPEG", "sub dir/.hidden.png"):
        (tmp_path / hidden).parent.mkdir(exist_ok=True)
        (tmp_path / hidden).write_bytes(b"\0\5\x16\7")
    (tmp_path / "i.heic").write_bytes(HEIC)
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0")
    (tmp_path / "labels.json").write_text("{}")
    (tmp_path / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")
    return tmp_path


def test_images_are_told_by_their_content_and_hidden_files_passed_over(folder: Path) -> None:
    found, others = find_images(folder, recursive=True)
    assert [path.relative_to(folder).as_posix() for path in found] == [
        "a.jpg", "b.JPEG", "c.jfif", "cut.png", "d.jpe", "empty.jpg", "f.mpo", "h.TIF", "noext", "sub dir/über 1.jpg",
        "text.png", "wrong.txt",
    ]  # fmt: skip
    assert [path.name for path in others] == ["i.heic"]
    assert "HEIC" in others[folder / "i.heic"]


def test_subfolders_are_looked_into_only_when_asked(folder: Path) -> None:
    assert "über 1.jpg" not in [path.name for path in images_in(folder)]


def test_folder_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="nowhere"):
        find_images(tmp_path / "nowhere")
