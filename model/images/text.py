"""One line of text in any script, for labels in pictures: which font draws which part, and what cannot be drawn.

`model/images/fonts/` has the fonts. Pillow joins and orders the letters of Arabic, Hebrew and the scripts of India
where libfribidi is installed (https://pillow.readthedocs.io/en/stable/installation/building-from-source.html, "raqm");
without it, such text counts as text that cannot be drawn.
"""

from __future__ import annotations

import lzma
import unicodedata
from functools import cache, lru_cache
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np
from PIL import Image, ImageDraw, ImageFont, features

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_FOLDER = Path(__file__).parent / "fonts"
# In the order in which they are asked for a character.
_SANS, _CJK = "maskserve-sans", "maskserve-sans-cjk"
# Pixels. Scripts with more strokes than Latin's are not legible below it.
_MIN_SIZE = 12
# What Pillow's own layout puts in the wrong order or shape: right-to-left text and combining marks.
_RIGHT_TO_LEFT = frozenset({"R", "AL", "AN"})
_VARIATION_SELECTORS = range(0xFE00, 0xFE10)


class Run(NamedTuple):
    """Part of a line that one font draws."""

    text: str
    font: ImageFont.FreeTypeFont


class Line(NamedTuple):
    """A line of text, ready to be drawn."""

    runs: Sequence[Run]
    # Pixels: of the whole line, and of its highest ink above and lowest ink below the baseline.
    width: float
    ascent: float
    descent: float

    def draw(
        self, draw: ImageDraw.ImageDraw, left: float, baseline: float, fill: int | tuple[int, ...]
    ) -> None:
        """Draw the line.

        Args:
            draw: the picture.
            left: of the line, pixels.
            baseline: pixels from the top.
            fill: the colour, in the mode of the picture.
        """
        for text, font in self.runs:
            draw.text((left, baseline), text, fill=fill, font=font, anchor="ls")
            left += font.getlength(text)


def label_name(name: str, category_id: int) -> str:
    """A category's name as pictures show it: on one line, or "#" and its id if no font has all its characters."""
    line = " ".join(unicodedata.normalize("NFC", name).split())
    return line if line and can_draw(line) else f"#{category_id}"


@lru_cache(maxsize=4096)
def can_draw(text: str) -> bool:
    """Whether every character can be drawn, in its right place."""
    if _is_plain(text):
        return text.isprintable()
    visible = [character for character in text if not _is_ignorable(character)]
    right_to_left = any(unicodedata.bidirectional(character) in _RIGHT_TO_LEFT for character in visible)
    combining = any(unicodedata.category(character).startswith("M") for character in visible)
    if (right_to_left or combining) and not features.check("raqm"):
        return False
    fonts = {_font_of(character) for character in visible}
    # Within one font, raqm orders the words of text that mixes both directions.
    return bool(fonts) and None not in fonts and (not right_to_left or fonts <= {_SANS})


def lay_out(text: str, size: int) -> Line:
    """A line of text that can be drawn. size: of the letters, pixels; small letters that are not ASCII are larger."""
    runs = [Run(text, _built_in(size))] if _is_plain(text) else _split(text, max(size, _MIN_SIZE))
    boxes = [font.getbbox(part, anchor="ls") for part, font in runs]
    return Line(
        runs,
        sum(font.getlength(part) for part, font in runs),
        max(0.0, *(-box[1] for box in boxes)),
        max(0.0, *(box[3] for box in boxes)),
    )


def picture_of(text: str, size: int) -> NDArray[np.uint8]:
    """A line of black text as a picture, [H, W, 4] uint8 RGBA on a transparent ground. size: pixels."""
    line = lay_out(text, size)
    height = round(line.ascent + line.descent) + 2
    image = Image.new("RGBA", (round(line.width) + 2, height), (0, 0, 0, 0))
    line.draw(ImageDraw.Draw(image), 1, line.ascent + 1, (0, 0, 0, 255))
    return np.asarray(image)


def _is_plain(text: str) -> bool:
    """Whether Pillow's own font has every character."""
    return text.replace("…", "").isascii()


def _split(text: str, size: int) -> list[Run]:
    """The parts of a text that one font has after the other. size: pixels."""
    shaped = features.check("raqm")
    parts: list[tuple[str, str]] = []
    for character in text:
        ignorable = _is_ignorable(character)
        if ignorable and not (shaped and parts):
            continue
        name = parts[-1][0] if ignorable else _font_of(character) or _SANS
        if parts and parts[-1][0] == name:
            parts[-1] = name, parts[-1][1] + character
        else:
            parts.append((name, character))
    return [Run(part, _load(name, size)) for name, part in parts]


def _is_ignorable(character: str) -> bool:
    """Whether a character has no shape of its own, as joiners and selectors of emoji."""
    return unicodedata.category(character) == "Cf" or ord(character) in _VARIATION_SELECTORS


def _font_of(character: str) -> str | None:
    """The first font that has a character."""
    return next((name for name in (_SANS, _CJK) if _has(name, ord(character))), None)


def _has(name: str, character: int) -> bool:
    first, last = _coverage(name)
    place = int(np.searchsorted(first, character, side="right")) - 1
    return place >= 0 and character <= int(last[place])


@cache
def _coverage(name: str) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """First and last character of each range of a font: its `cmap`, which has one table in format 12."""
    content = _content(name)
    tables = int.from_bytes(content[4:6], "big")
    entries = (content[12 + 16 * i : 28 + 16 * i] for i in range(tables))
    cmap = next(int.from_bytes(entry[8:12], "big") for entry in entries if entry[:4] == b"cmap")
    table = cmap + int.from_bytes(content[cmap + 8 : cmap + 12], "big")
    count = int.from_bytes(content[table + 12 : table + 16], "big")
    groups = np.frombuffer(content, ">u4", 3 * count, table + 16).reshape(count, 3).astype(np.uint32)
    return groups[:, 0], groups[:, 1]


@cache
def _content(name: str) -> bytes:
    return lzma.decompress((_FOLDER / f"{name}.ttf.xz").read_bytes())


# A font of one size has a copy of the file, 3.6 MB.
@lru_cache(maxsize=4)
def _load(name: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(BytesIO(_content(name)), size)


@lru_cache(maxsize=64)
def _built_in(size: int) -> ImageFont.FreeTypeFont:
    """Pillow's own font, which has ASCII."""
    return cast("ImageFont.FreeTypeFont", ImageFont.load_default(size))
