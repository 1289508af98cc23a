"""Images built and looked into by buildah, without a daemon and without touching the machine's own images."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


class Images:
    """buildah with a store of its own, so that nothing of it mixes with the machine's images."""

    def __init__(self, store: Path) -> None:
        self.store = store
        self.driver = "overlay" if can_overlay(store) else "vfs"
        # With vfs every layer is a full copy of all below it; there everything of ours becomes one layer.
        self.layers = ["--layers"] if self.driver == "overlay" else []

    def __call__(self, *arguments: object, check: bool = True) -> str:
        """Run buildah; what it printed."""
        options = [
            "--root",
            self.store / "store",
            "--runroot",
            self.store / "run",
            "--storage-driver",
            self.driver,
        ]
        command = ["buildah", *map(str, options), *map(str, arguments)]
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        if check and done.returncode != 0:
            sys.exit(f"{' '.join(command)}\n{done.stdout}")
        return done.stdout.strip()

    def described(self, image: str) -> dict[str, Any]:
        """What buildah knows of an image."""
        document: dict[str, Any] = json.loads(self("inspect", "--type", "image", image))
        return document

    def config(self, image: str) -> dict[str, Any]:
        """Docker's `Config` of an image: user, environment, entry point …"""
        config: dict[str, Any] = self.described(image)["Docker"]["config"]
        return config

    def mounted(self, image: str) -> Mounted:
        """The image's file system at a folder, for as long as a `with` block lasts."""
        return Mounted(self, image)

    def remove(self) -> None:
        """Everything that was made, and the store."""
        self("rm", "--all", check=False)
        self("rmi", "--all", "--force", check=False)
        shutil.rmtree(self.store)


class Mounted:
    """A container made of an image, mounted; nothing runs in it by this."""

    def __init__(self, images: Images, image: str) -> None:
        self.images = images
        self.image = image

    def __enter__(self) -> Path:
        self.name = self.images("from", "--pull-never", self.image)
        return Path(self.images("mount", self.name))

    def __exit__(self, *_: object) -> None:
        self.images("umount", self.name)
        self.images("rm", self.name)


def can_overlay(folder: Path) -> bool:
    """Whether overlay file systems can be mounted there: not inside every container."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        for name in ("lower", "upper", "work", "merged"):
            (Path(place) / name).mkdir()
        options = f"lowerdir={place}/lower,upperdir={place}/upper,workdir={place}/work"
        mount = ["mount", "-t", "overlay", "overlay", "-o", options, f"{place}/merged"]
        if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
            return False
        subprocess.run(["umount", f"{place}/merged"], check=True)
        return True


def make_base(images: Images) -> str:
    """A minimal Debian with Python, of this machine's release and from the mirror that its apt uses."""
    release = dict(
        line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line
    )
    suite = release["VERSION_CODENAME"].strip('"')
    question = [
        "apt-get",
        "indextargets",
        "--format",
        "$(REPO_URI)",
        "Identifier: Packages",
        f"Codename: {suite}",
    ]
    mirrors = subprocess.run(question, stdout=subprocess.PIPE, text=True, check=True).stdout.split()
    if not mirrors:
        sys.exit(f"apt has no repository of {suite}: pass --base IMAGE")
    started = time.monotonic()
    root = images.store / "base"
    include = "--include=python3,python3-venv"
    with (images.store / "debootstrap.log").open("w") as log:
        make = ["debootstrap", "--variant=minbase", include, suite, str(root), mirrors[0]]
        if subprocess.run(make, stdout=log, stderr=log, check=False).returncode != 0:
            sys.exit((images.store / "debootstrap.log").read_text()[-2000:])
    for unneeded in (
        "var/cache/apt",
        "var/lib/apt/lists",
        "usr/share/doc",
        "usr/share/man",
        "usr/share/locale",
    ):
        shutil.rmtree(root / unneeded, ignore_errors=True)
    name = images("from", "scratch")
    images("copy", name, root, "/")
    images("commit", "--rm", name, "base")
    shutil.rmtree(root)
    print(
        f"base image of Debian {suite} made in {time.monotonic() - started:.0f} s ({images.driver} storage)"
    )
    return "localhost/base"
