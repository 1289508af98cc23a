"""TIFF directories: the tags of a TIFF file, and the orientation in an EXIF block, itself a small TIFF.

Field types and tags are those of TIFF 6.0, section 2, and of the BigTIFF extension. No pixels are read here.
"""

from __future__ import annotations

import re
import struct
from math import ceil
from typing import NamedTuple

WIDTH, HEIGHT, BITS_PER_SAMPLE, COMPRESSION, PHOTOMETRIC = 256, 257, 258, 259, 262
STRIP_OFFSETS, ORIENTATION, SAMPLES_PER_PIXEL, ROWS_PER_STRIP, STRIP_BYTES, PLANAR = (
    273,
    274,
    277,
    278,
    279,
    284,
)
TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_BYTES = 322, 323, 324, 325
REDUCED_RESOLUTION, DNG_VERSION = 254, 50706

OLD_JPEG = 6  # a value of COMPRESSION; such files may keep their data outside of strips and tiles
YCBCR = 6  # a value of PHOTOMETRIC; its colours may have fewer rows and columns

# What decoding needs; these have one value each …
_SINGLE = frozenset(
    (WIDTH, HEIGHT, COMPRESSION, PHOTOMETRIC, 266, SAMPLES_PER_PIXEL, ROWS_PER_STRIP, PLANAR, 317, 322, 323)
)
# … and these lists: bits, strips, fax options, colours, tiles, extra samples, sample format, JPEG, YCbCr.
_LISTS = frozenset(
    (258, 273, 279, 292, 293, 320, 324, 325, 338, 339, 347, *range(512, 522), 529, 530, 531, 532)
)

_UNIT = {
    1: 1,
    2: 1,
    3: 2,
    4: 4,
    5: 8,
    6: 1,
    7: 1,
    8: 2,
    9: 4,
    10: 8,
    11: 4,
    12: 8,
    13: 4,
    16: 8,
    17: 8,
    18: 8,
}  # bytes
_INTEGER = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 13: "I", 16: "Q", 17: "q", 18: "Q"}

# The busiest real files (GeoTIFF, microscopes) have about a hundred. A BigTIFF of 20 MB can hold a million,
# and reading one costs 0.4 µs here and three times that, twice, in Pillow.
_MAX_TAGS = 1000


class _Entry(NamedTuple):
    kind: int
    values: int
    place: int  # offset of the first value in the block


class Directory:
    """The first directory of a TIFF file or of an EXIF block.

    Raises ValueError or struct.error if `block` does not begin like one or ends before its directory.
    """

    def __init__(self, block: bytes) -> None:
        self._block = block
        self._order = {b"II": "<", b"MM": ">"}[block[:2]] if block[:2] in (b"II", b"MM") else ""
        if not self._order:
            raise ValueError("it names no byte order")
        (version,) = struct.unpack_from(self._order + "H", block, 2)
        if version not in (42, 43):
            raise ValueError(f"TIFF version {version} is unknown")
        self._big = version == 43
        count_format, entry_format, self._inline = ("Q", "HHQ8x", 8) if self._big else ("H", "HHI4x", 4)
        (start,) = struct.unpack_from(self._order + ("Q" if self._big else "I"), block, 8 if self._big else 4)
        if start >= len(block):
            raise ValueError("it is cut short before its directory")
        (count,) = struct.unpack_from(self._order + count_format, block, start)
        if count > _MAX_TAGS:
            raise ValueError(f"a directory of {count} tags is not read")
        start += struct.calcsize(count_format)
        entry = struct.Struct(self._order + entry_format)
        self.entries: dict[int, _Entry] = {}
        for place in range(start, min(start + count * entry.size, len(block) - entry.size + 1), entry.size):
            tag, kind, values = entry.unpack_from(block, place)
            if kind not in _UNIT or not values or tag in self.entries:
                continue
            first = place + entry.size - self._inline
            if values * _UNIT[kind] > self._inline:
                (first,) = struct.unpack_from(self._order + ("Q" if self._big else "I"), block, first)
            self.entries[tag] = _Entry(kind, values, first)

    def integer(self, tag: int, default: int) -> int:
        """The tag's first value; `default` where it is missing, no integer, or beyond the block's end."""
        entry = self.entries.get(tag)
        if entry is None or entry.kind not in _INTEGER or entry.place + _UNIT[entry.kind] > len(self._block):
            return default
        return int(struct.unpack_from(self._order + _INTEGER[entry.kind], self._block, entry.place)[0])

    def integers(self, tag: int, most: int) -> list[int]:
        """The tag's first values, `most` at most; none where it is missing, no integers, or beyond the block's end."""
        entry = self.entries.get(tag)
        if entry is None or entry.kind not in _INTEGER:
            return []
        count = min(entry.values, most)
        if entry.place + count * _UNIT[entry.kind] > len(self._block):
            return []
        values = struct.unpack_from(f"{self._order}{count}{_INTEGER[entry.kind]}", self._block, entry.place)
        return [int(value) for value in values]

    def check_complete(self) -> None:
        """Raise ValueError unless the strips or tiles cover the whole image and lie in the file.

        Pillow leaves black what uncompressed strips do not cover, and would read `rebuild`'s directory for pixels.
        """
        compression = self.integer(COMPRESSION, 1)
        if compression == OLD_JPEG:
            return
        width, height = self.integer(WIDTH, 0), self.integer(HEIGHT, 0)
        if TILE_OFFSETS in self.entries and STRIP_OFFSETS not in self.entries:
            tags = TILE_OFFSETS, TILE_BYTES
            across_each, rows_each = (max(1, self.integer(tag, 1)) for tag in (TILE_WIDTH, TILE_HEIGHT))
        else:
            tags = STRIP_OFFSETS, STRIP_BYTES
            across_each, rows_each = max(1, width), max(1, self.integer(ROWS_PER_STRIP, height))
        across, down = ceil(width / across_each), ceil(height / rows_each)
        samples = self.integer(SAMPLES_PER_PIXEL, 1)
        planes = samples if self.integer(PLANAR, 1) == 2 else 1
        needed = across * down * planes
        there = self.entries[tags[0]].values if tags[0] in self.entries else 0
        if there < needed:
            raise ValueError(f"it has only {there} of its {needed} strips or tiles")
        offsets, lengths = (self.integers(tag, needed) for tag in tags)
        if compression == 1 and self.integer(PHOTOMETRIC, 0) != YCBCR:
            # Here Pillow does not ask how long they say that they are.
            bits = self.integers(BITS_PER_SAMPLE, samples) or [1]
            bits += bits[:1] * (samples - len(bits))
            in_row = ceil(across_each * (sum(bits) if planes == 1 else bits[0]) / 8)
            rows = [
                min(rows_each, height - top) for top in range(0, height, rows_each) for _ in range(across)
            ]
            lengths = [count * in_row for count in rows] * planes
        if any(place + length > len(self._block) for place, length in zip(offsets, lengths, strict=False)):
            raise ValueError("it is cut short before the end of its strips or tiles")

    def rebuild(self) -> bytes:
        """The same image in a file whose only directory holds just the tags that decoding needs.

        Pillow warns about tags that break the rules, in words that the file's author can choose, and Python
        keeps each new text for ever in state that all threads share. So Pillow never gets to see such tags,
        nor further pages, nor the orientation, which is applied as for every other format.
        Raises ValueError if the values of a tag lie beyond the end.
        """
        number = "Q" if self._big else "I"
        rows = []
        for tag in sorted((_SINGLE | _LISTS) & self.entries.keys()):
            kind, count, place = self.entries[tag]
            size = count * _UNIT[kind]
            if place + size > len(self._block):
                raise ValueError(f"it is cut short before the values of tag {tag}")
            if tag in _SINGLE:
                count, size = 1, _UNIT[kind]
            if size <= self._inline:
                value = self._block[place : place + size].ljust(self._inline, b"\0")
            else:
                value = struct.pack(self._order + number, place)
            rows.append(struct.pack(self._order + "HH" + number, tag, kind, count) + value)
        head = 16 if self._big else 8
        place = len(self._block) + len(self._block) % 2  # directories begin on a word boundary
        return b"".join(
            (
                self._block[: head - self._inline],
                struct.pack(self._order + number, place),
                self._block[head:].ljust(place - head, b"\0"),
                struct.pack(self._order + ("Q" if self._big else "H"), len(rows)),
                *rows,
                bytes(self._inline),  # no further page
            )
        )


def orientation(block: bytes) -> int:
    """The orientation, 1 to 8, that an EXIF block states, with or without its `Exif` prefix.

    1 if it states none or is damaged: bad EXIF is no reason to refuse a good picture.
    """
    try:
        value = Directory(_EXIF_PREFIX.sub(b"", block)).integer(ORIENTATION, 1)
    except (ValueError, struct.error):
        return 1
    return value if 1 <= value <= 8 else 1


_EXIF_PREFIX = re.compile(rb"^(?:Exif\0\0){1,2}")  # some writers put it twice
