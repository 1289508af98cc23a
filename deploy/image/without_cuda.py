"""Takes CUDA out of PyPI's PyTorch for Linux on x86-64, so that an image for CPUs keeps the lock's hashes.

    python deploy/image/without_cuda.py SITE_PACKAGES

The wheels' CPU libraries are linked to CUDA's, which are 3.9 GB. This removes them, and puts one small library under
all their names. It has each symbol that the remaining libraries take from them: functions that return 0, which is
"no devices" to PyTorch. It needs ziglang, whose compiler builds the kernels too.
"""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# PyTorch's own, then NVIDIA's.
CUDA_LIBRARY = re.compile(r"lib(torch_cuda|c10_cuda|torch_nvshmem|caffe2_nvrtc|cu|nccl|nv)\w*\.so")
CUDA_FUNCTION = re.compile(r"(__)?(cu|nccl|nv)[A-Za-z]\w*")
# Two kinds are called while PyTorch is imported. One returns a reference, which is written to. And what a constructor
# makes must have methods (Itanium C++ ABI, sections 2.5.2 and 5.1.4.3: virtual tables and the names of constructors).
WRITTEN_TO = re.compile(r".*get_gil_checkerEv")
CONSTRUCTOR = re.compile(r"_ZN\w+C[12]E\w+")
PREAMBLE = """
extern char _ZTVN10__cxxabiv117__class_type_infoE[];
static long nothing(void) { return 0; }
static void *type[] = { _ZTVN10__cxxabiv117__class_type_infoE + 16, "11WithoutCuda" };
static void *methods[66] = { 0, type, [2 ... 65] = nothing };
"""
IS_BUILT = "return torch._C._has_cuda"
STUB = "libwithout_cuda.so"

# Numbers of the ELF format: section types, the kind of a symbol, and the tag of a dynamic entry.
DYNAMIC, DYNAMIC_SYMBOLS, VERSIONS_NEEDED, SYMBOL_VERSIONS = 6, 11, 0x6FFFFFFE, 0x6FFFFFFF
OBJECT = 1
NEEDED = 1


@dataclass(frozen=True, slots=True)
class Symbol:
    """One entry of a library's dynamic symbol table."""

    name: str
    defined: bool
    kind: int
    size: int
    version: str  # that a symbol which is not defined must have; "" for any


class Library:
    """What a 64-bit little-endian ELF file needs and has."""

    def __init__(self, path: Path) -> None:
        """Raises ValueError if it is no such file."""
        content = path.read_bytes()
        if content[:6] != b"\x7fELF\x02\x01":
            raise ValueError(f"{path} is not a 64-bit little-endian ELF file")
        (start,) = struct.unpack_from("<Q", content, 40)
        (count,) = struct.unpack_from("<H", content, 60)
        sections = [struct.unpack_from("<IIQQQQIIQQ", content, start + 64 * index) for index in range(count)]
        # Section type → where it lies, where it ends, and where the strings are that it refers to.
        places = {kind: (at, at + size, sections[link][4]) for _, kind, _, _, at, size, link, *_ in sections}

        def entries(kind: int, layout: str) -> Iterator[tuple[int, ...]]:
            first, last, _ = places.get(kind, (0, 0, 0))
            return struct.iter_unpack(layout, content[first:last])

        def text(kind: int, offset: int) -> str:
            at = places[kind][2] + offset
            return content[at : content.index(b"\0", at)].decode()

        self.needed = [text(DYNAMIC, value) for tag, value in entries(DYNAMIC, "<QQ") if tag == NEEDED]
        versions: dict[int, str] = {}
        at, last, _ = places.get(VERSIONS_NEEDED, (0, 0, 0))
        while at < last:
            _, count, _, offset, following = struct.unpack_from("<HHIII", content, at)
            entry = at + offset
            for _ in range(count):
                _, _, number, name, step = struct.unpack_from("<IHHII", content, entry)
                versions[number] = text(VERSIONS_NEEDED, name)
                entry += step
            at = at + following if following else last
        numbers = [number for (number,) in entries(SYMBOL_VERSIONS, "<H")]
        self.symbols = [
            Symbol(text(DYNAMIC_SYMBOLS, name), section != 0, info & 15, size, versions.get(number, ""))
            for (name, info, _, section, _, size), number in zip(
                entries(DYNAMIC_SYMBOLS, "<IBBHQQ"), numbers, strict=True
            )
        ]


def main(packages: Path) -> None:
    """Remove, and replace.

    packages: the folder `site-packages` that has torch and torchvision, with or without NVIDIA's packages.
    """
    folder = packages / "torch" / "lib"
    paths = [*folder.glob("*.so*"), *packages.glob("torchvision/*.so")]
    unneeded = [path for path in paths if CUDA_LIBRARY.match(path.name)]
    removed = [Library(path) for path in unneeded]
    kept = [Library(path) for path in paths if path not in unneeded]
    if not removed:
        sys.exit(f"{folder} has no CUDA libraries: nothing to remove")
    # torchvision brings libraries of its own, among them a copy of one of CUDA's.
    present = {path.name for path in packages.glob("torchvision.libs/*")}
    names = {name for library in kept for name in library.needed if CUDA_LIBRARY.match(name)} - present
    symbols = [symbol for library in kept for symbol in library.symbols]
    missing = {symbol.name: symbol.version for symbol in symbols if not symbol.defined}
    for symbol in symbols:
        if symbol.defined:
            missing.pop(symbol.name, None)
    stubs = {name: function(name) for name in missing if CUDA_FUNCTION.fullmatch(name)}
    for symbol in (symbol for library in removed for symbol in library.symbols):
        if symbol.defined and symbol.name in missing:
            stubs[symbol.name] = stub(symbol)
    for path in unneeded:
        path.unlink()
    shutil.rmtree(packages / "nvidia", ignore_errors=True)
    build(stubs, {name: missing[name] for name in stubs if missing[name]}, folder / STUB)
    for name in names:
        (folder / name).symlink_to(STUB)
    # Else PyTorch's Python code looks for kernels that are gone.
    file = packages / "torch" / "backends" / "cuda" / "__init__.py"
    text = file.read_text()
    if text.count(IS_BUILT) != 1:
        sys.exit(f"{file} does not have `{IS_BUILT}` once: this PyTorch is another than this program knows")
    file.write_text(text.replace(IS_BUILT, "return False"))
    print(f"{STUB}: {len(stubs)} symbols in place of {', '.join(sorted(names))}")


def function(name: str) -> str:
    """A function in C that does nothing."""
    if WRITTEN_TO.fullmatch(name):
        return f"long *{name}(void) {{ static long place[8]; return place; }}"
    if CONSTRUCTOR.fullmatch(name):
        return f"void {name}(void **self) {{ *self = methods + 2; }}"
    return f"long {name}(void) {{ return 0; }}"


def stub(symbol: Symbol) -> str:
    """The symbol in C."""
    if symbol.kind != OBJECT:
        return function(symbol.name)
    if symbol.name.startswith("_ZTI"):
        # A C++ type's description (Itanium C++ ABI, section 2.9.5): pybind11 reads its name.
        name = symbol.name.removeprefix("_ZTI")
        return f'void *{symbol.name}[] = {{ _ZTVN10__cxxabiv117__class_type_infoE + 16, "{name}", 0 }};'
    return f"char {symbol.name}[{symbol.size}] __attribute__((aligned(16)));"


def build(stubs: Mapping[str, str], versions: Mapping[str, str], library: Path) -> None:
    """Compile the stubs into a shared library that calls nothing.

    Args:
        stubs: the symbols in C, by name.
        versions: those of them that are asked for with a version, and which.
        library: the file to write.
    """
    with tempfile.TemporaryDirectory() as folder:
        # Types refer to the C++ library, which may be found nowhere while building.
        runtime = Path(folder) / "libstdc++.so.6"
        compile_c("", runtime, f"-Wl,-soname,{runtime.name}")
        script = Path(folder) / "versions"
        nodes = {
            version: [name for name, given in versions.items() if given == version]
            for version in sorted({*versions.values()})
        }
        script.write_text(
            "".join(f"{version} {{ {'; '.join(names)}; }};\n" for version, names in nodes.items())
        )
        source = PREAMBLE + "\n".join(stubs.values())
        compile_c(source, library, "-Wl,--no-as-needed", str(runtime), f"-Wl,--version-script={script}")


def compile_c(source: str, library: Path, *options: str) -> None:
    """Run Zig's C compiler; it ends this program if that fails."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "source.c"
        file.write_text(source)
        environment = os.environ | {"ZIG_GLOBAL_CACHE_DIR": folder, "ZIG_LOCAL_CACHE_DIR": folder}
        flags = [
            "-target",
            "x86_64-linux-gnu.2.17",
            "-O2",
            "-nostdlib",
            "-shared",
            "-fPIC",
            "-fno-builtin",
            "-w",
        ]
        command = [sys.executable, "-m", "ziglang", "cc", *flags, str(file), *options, "-o", str(library)]
        subprocess.run(command, env=environment, check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
