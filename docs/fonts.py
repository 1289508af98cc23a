"""Makes the fonts in model/images/fonts/ from the packages that its README names.

Needs fontTools 4.68 and brotli, in a virtual environment of their own:
python docs/fonts.py FOLDER_OF_NOTO NotoEmoji.woff2 DroidSansFallback.ttf
"""

from __future__ import annotations

import lzma
import sys
import tempfile
from io import BytesIO
from pathlib import Path

from fontTools import merge, subset
from fontTools.ttLib import TTFont
from fontTools.ttLib.scaleUpem import scale_upem
from fontTools.ttLib.tables._c_m_a_p import CmapSubtable

FONTS = Path(__file__).parent.parent / "model" / "images" / "fonts"
UNITS_PER_EM = 1000
# Where two fonts have a character, it comes from the first.
NOTO = (
    *(
        f"NotoSans{script}"
        for script in (
            "", "Arabic", "Hebrew", "Armenian", "Georgian", "Devanagari", "Bengali", "Gurmukhi", "Gujarati", "Oriya",
            "Tamil", "Telugu", "Kannada", "Malayalam", "Sinhala", "Thai", "Lao", "Myanmar", "Khmer", "Ethiopic",
            "Thaana", "Tifinagh", "Symbols", "Symbols2", "Math",
        )
    ),
    "NotoSerifTibetan",
)  # fmt: skip
# First and last character of what is taken from fonts that have more than names need.
RANGES = {
    "NotoSans": [
        (0x20, 0x52F),
        (0x1C80, 0x1C8F),
        (0x1E00, 0x2E7F),
        (0xA640, 0xA69F),
        (0xFB00, 0xFB06),
        (0xFFFD, 0xFFFD),
    ],
    "NotoSansSymbols": [(0x2000, 0x2DFF)],
    "NotoSansSymbols2": [(0x2000, 0x2DFF)],
    "NotoSansMath": [(0x2000, 0x2BFF)],
    "emoji": [(0x2001, 0x10FFFF)],
}
# Space, joiners and the dotted circle, which the shaping of each script needs.
SHARED = {0x20, 0x200C, 0x200D, 0x25CC}


def main(noto: str, emoji: str, droid: str) -> None:
    """Write both files."""
    files = {name: Path(noto, f"{name}-Regular.ttf") for name in NOTO} | {"emoji": Path(emoji)}
    with tempfile.TemporaryDirectory() as folder:
        parts, done = [], set[int]()
        for name, file in files.items():
            font = TTFont(file)
            has = set(font.getBestCmap())
            ranges = RANGES.get(name, [(0, 0x10FFFF)])
            taken = {c for c in has if any(low <= c <= high for low, high in ranges)} - done
            done |= taken
            thin_out(font, taken | (has & SHARED), ["STAT"])
            scale_upem(font, UNITS_PER_EM)
            font.flavor = None
            parts.append(f"{folder}/{name}.ttf")
            font.save(parts[-1])
        options = merge.Options()
        options.drop_tables = ["MATH", "BASE"]
        merged = merge.Merger(options=options).merge(parts)
    copyright_notice = "Copyright 2012-2020 Google LLC. Merged from fonts of the Noto project."
    write(
        merged, "Maskserve Sans", copyright_notice, "SIL Open Font License 1.1: https://scripts.sil.org/OFL"
    )
    font = TTFont(droid)
    thin_out(font, {c for c in font.getBestCmap() if c >= 0x20}, ["GSUB", "GPOS", "GDEF"])
    copyright_notice = "Copyright 2006-2010 Google Corp. Part of Droid Sans Fallback."
    write(font, "Maskserve Sans CJK", copyright_notice, "Apache License 2.0")


def thin_out(font: TTFont, characters: set[int], tables: list[str]) -> None:
    """Leave some characters in a font, without hints, names and what only vertical lines need.

    Args:
        font: what is changed.
        characters: that stay.
        tables: that go as well.
    """
    options = subset.Options()
    options.hinting = options.glyph_names = options.legacy_cmap = False
    options.notdef_outline = True
    options.name_IDs = []
    options.drop_tables += ["vhea", "vmtx", "gasp", "DSIG", *tables]
    subsetter = subset.Subsetter(options)
    subsetter.populate(unicodes=characters)
    subsetter.subset(font)


def write(font: TTFont, family: str, notice: str, licence: str) -> None:
    """Write a font, with one table of characters in the format that model/images/text.py reads.

    Args:
        font: what is written.
        family: its name.
        notice: of its copyright.
        licence: its name.
    """
    table = CmapSubtable.newSubtable(12)
    table.platformID, table.platEncID, table.language = 3, 10, 0
    table.format, table.reserved, table.length = 12, 0, 0
    table.cmap = dict(font.getBestCmap())
    font["cmap"].tables = [table]
    full = family.replace(" ", "") + "-Regular"
    for number, text in ((0, notice), (1, family), (2, "Regular"), (4, family), (6, full), (13, licence)):
        font["name"].setName(text, number, 3, 1, 0x409)
    content = BytesIO()
    font.save(content)
    name = family.lower().replace(" ", "-")
    preset = 9 | lzma.PRESET_EXTREME
    (FONTS / f"{name}.ttf.xz").write_bytes(lzma.compress(content.getvalue(), preset=preset))


if __name__ == "__main__":
    main(*sys.argv[1:])
