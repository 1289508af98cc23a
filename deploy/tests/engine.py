"""A Docker Engine with Compose: the machine's own where one runs, else one of Debian's packages in a folder of ours.

Setting one up takes root on Debian 12. Its packages and base images are kept in the folder, because they take minutes
to make; what it builds and runs goes at the end.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 60  # seconds for the daemon's start, met only when something hangs
ENGINE_SUITE = "trixie"
ENGINE_PACKAGES = ["docker.io", "docker-cli", "containerd", "docker-buildx", "docker-compose"]
TOOLS = {"iptables": "iptables", "debootstrap": "debootstrap"}  # program → Debian package
# The first Debian whose nginx finds replicas by name (1.27.3); debootstrap knows it as sid.
GATEWAY_SUITE, GATEWAY_SCRIPT = "forky", "sid"
GATEWAY_PACKAGES = "nginx-light,prometheus,wget"
UNNEEDED = ["var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/man", "usr/share/locale"]


class Docker:
    """The command `docker` with its environment."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = environment

    def run(self, *arguments: object, check: bool = True, **variables: str) -> str:
        """Run it, and return what it printed. variables: more environment. Raises AssertionError if it fails."""
        done = subprocess.run(
            ["docker", *map(str, arguments)],
            env=self.environment | variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert not check or done.returncode == 0, f"docker {' '.join(map(str, arguments))}\n{done.stdout}"
        return done.stdout.strip()


@contextlib.contextmanager
def docker(folder: Path) -> Iterator[Docker]:
    """A Docker Engine for as long as the block lasts. folder: for one of ours; outside the repository."""
    own = Docker(dict(os.environ))
    if (version := server_version(own)) and "Compose version" in own.run("compose", "version", check=False):
        print(f"Docker Engine {version}, {own.run('compose', 'version')}", flush=True)
        yield own
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        sys.exit("no Docker Engine with Compose answers; one is set up here only by root on Debian")
    folder.mkdir(parents=True, exist_ok=True)
    install_tools()
    programs = unpack_engine(folder)
    with daemon(folder, programs) as made:
        import_images(folder, made)
        yield made


def install_tools() -> None:
    """The programs that setting up takes."""
    missing = [package for program, package in TOOLS.items() if shutil.which(program) is None]
    if missing:
        apt("update")
        apt("install", "-y", "--no-install-recommends", *missing)


def apt(*arguments: str, folder: Path | None = None) -> None:
    """Run apt-get; end this program if it fails."""
    done = subprocess.run(
        ["apt-get", "-qq", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        sys.exit(f"apt-get {' '.join(arguments)}\n{done.stdout}")


def mirror() -> str:
    """Where this machine's apt has Debian from."""
    release = dict(
        line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line
    )
    suite = release["VERSION_CODENAME"].strip('"')
    question = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Identifier: Packages"]
    found = subprocess.run([*question, f"Codename: {suite}"], stdout=subprocess.PIPE, text=True, check=True)
    if not found.stdout:
        sys.exit(f"apt has no repository of {suite}")
    return found.stdout.split()[0]


def unpack_engine(folder: Path) -> Path:
    """Debian's packages of the engine in a folder; nothing of them is installed."""
    root = folder / "engine"
    if root.exists():
        return root
    packages = folder / "packages"
    for name in ("lists/partial", "cache/archives/partial"):
        (packages / name).mkdir(parents=True, exist_ok=True)
    sources = packages / "sources.list"
    keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"
    sources.write_text(f"deb [signed-by={keyring}] {mirror()} {ENGINE_SUITE} main\n")
    places = {
        "Dir::Etc::sourcelist": sources,
        "Dir::Etc::sourceparts": "/nonexistent",
        "Dir::State::lists": packages / "lists",
        "Dir::Cache": packages / "cache",
    }
    options = [option for pair in places.items() for option in ("-o", "=".join(map(str, pair)))]
    apt(*options, "update")
    apt(*options, "download", *ENGINE_PACKAGES, folder=packages)
    # runc comes from this machine's own release: the other one needs a newer C library.
    apt("download", "runc", folder=packages)
    made = folder / "engine.new"
    for package in packages.glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", package, made], check=True)
    made.rename(root)
    shutil.rmtree(packages)
    return root


def server_version(made: Docker) -> str:
    """The daemon's, or nothing if none answers."""
    try:
        return made.run("version", "--format", "{{.Server.Version}}")
    except (AssertionError, FileNotFoundError):
        return ""


def remove(path: Path) -> None:
    """Delete a folder, after unmounting what an interrupted debootstrap or daemon has left mounted in it."""
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for mount in reversed([mount for mount in mounts if Path(mount).is_relative_to(path)]):
        subprocess.run(["umount", mount], check=True)
    if path.exists():
        shutil.rmtree(path)


@contextlib.contextmanager
def daemon(folder: Path, programs: Path) -> Iterator[Docker]:
    """Dockerd on a socket in the folder; at the end it stops, and what it has stored is removed."""
    settings = folder / "settings"
    settings.mkdir(exist_ok=True)
    plugins = programs / "usr/libexec/docker/cli-plugins"
    (settings / "config.json").write_text(f'{{"cliPluginsExtraDirs": ["{plugins}"]}}')
    address = f"unix://{folder}/docker.sock"
    made = Docker(
        os.environ
        | {
            "PATH": f"{programs}/usr/bin:{programs}/usr/sbin:{os.environ['PATH']}",
            "DOCKER_HOST": address,
            "DOCKER_CONFIG": str(settings),
        }
    )
    store = folder / "store"
    log = folder / "dockerd.log"
    options = [
        "--data-root",
        store,
        "--exec-root",
        folder / "exec",
        "--pidfile",
        folder / "pid",
        "-H",
        address,
    ]
    with log.open("w") as output:
        process = subprocess.Popen(
            ["dockerd", *options], env=made.environment, stdout=output, stderr=output, start_new_session=True
        )
    try:
        deadline = time.monotonic() + PATIENCE
        while not (version := server_version(made)):
            assert process.poll() is None, log.read_text()[-2000:]
            assert time.monotonic() < deadline, log.read_text()[-2000:]
            time.sleep(0.2)
        driver = made.run("info", "--format", "{{.Driver}}, cgroup v{{.CgroupVersion}}")
        print(f"Docker Engine {version} of ours ({driver}), {made.run('compose', 'version')}", flush=True)
        yield made
    finally:
        process.terminate()
        process.wait(PATIENCE)
        remove(store)


def import_images(folder: Path, made: Docker) -> None:
    """What would come from an image registry, made by debootstrap, under the names that the shipped files have."""
    dockerfile = (ROOT / "Dockerfile").read_text()
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    [base] = re.findall(r"^ARG BASE_IMAGE=(.+)$", dockerfile, re.MULTILINE)
    python = debian(folder / "base", "bookworm", ["--include=python3,python3-venv"])
    gateway = debian(folder / "gateway", GATEWAY_SUITE, [f"--include={GATEWAY_PACKAGES}"], GATEWAY_SCRIPT)
    made.run("import", python, base)
    made.run("import", "--change", "USER 101", gateway, services["gateway"]["image"])
    prometheus = ['ENTRYPOINT ["prometheus"]', "USER 101", "WORKDIR /prometheus"]
    changes = [option for change in prometheus for option in ("--change", change)]
    made.run("import", *changes, gateway, services["prometheus"]["image"])


def debian(path: Path, suite: str, options: Sequence[str], script: str | None = None) -> Path:
    """A tar file of a minimal Debian.

    Args:
        path: where it lies, without the ending.
        suite: its release.
        options: of debootstrap.
        script: the release that debootstrap takes it for, if it does not know the suite.
    """
    file = path.with_suffix(".tar")
    if file.exists():
        return file
    started = time.monotonic()
    remove(path)
    command = ["debootstrap", "--variant=minbase", *options, suite, str(path), mirror()]
    command += [f"/usr/share/debootstrap/scripts/{script}"] if script else []
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}\n{done.stdout[-2000:]}")
    for unneeded in UNNEEDED:
        shutil.rmtree(path / unneeded, ignore_errors=True)
    # Prometheus' volume gets the owner and the mode of this folder.
    (path / "prometheus").mkdir()
    os.chown(path / "prometheus", 101, 101)
    made = path.with_suffix(".new")
    subprocess.run(["tar", "-C", path, "-cf", made, "."], check=True)
    made.rename(file)
    remove(path)
    print(f"Debian {suite} in {time.monotonic() - started:.0f} s", flush=True)
    return file
