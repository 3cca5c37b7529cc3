"""The image really built without an engine: by buildah in a chroot, as root, on a Debian that debootstrap makes."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.image_place import VOLUMES
from tests.imports import ROOT

_TOOLS = ("buildah", "debootstrap", "unshare")
_BASE, _IMAGE = "localhost/base:bookworm", "localhost/minillm-pipeline"
_RELEASE, _PACKAGES = "bookworm", "python3,python3-venv,ca-certificates"  # its Python is that of the project
_LOW_PRIORITY = ("nice", "-n", "19")
# What an engine does: a root that is read-only, volumes that take contents and owners, memory at /tmp; and the user.
_START = """
set -e
root=$1 volumes=$2; shift 2
mount --bind "$root" "$root"
for place in $PLACES; do
    if [ ! -d "$volumes/$place" ]; then mkdir -p "$volumes/$place"; cp -aT "$root/$place" "$volumes/$place"; fi
    mount --bind "$volumes/$place" "$root/$place"
done
mount -t tmpfs tmpfs "$root/tmp"
mount --rbind /dev "$root/dev"
mount -t proc proc "$root/proc"
mount -o remount,bind,ro "$root"
cd "$root"
exec chroot "$root" setpriv --reuid=10001 --regid=10001 --clear-groups --no-new-privs --bounding-set=-all \\
    env -C /pipeline "$@"
"""


def why_not() -> str:
    """Return why no image can be built here; empty when one can."""
    missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if missing:
        return f"not installed: {', '.join(missing)} (Debian has packages of these names; unshare is in util-linux)"
    return "" if os.geteuid() == 0 else "needs root, as debootstrap and a chroot do"


@dataclass(frozen=True)
class Builder:
    """Buildah with its images in a directory of ours."""

    directory: Path

    def buildah(self, *arguments: str) -> str:
        """Return what a command printed; its errors go to the terminal, and it must succeed."""
        places = [f"--root={self.directory / 'storage'}", f"--runroot={self.directory / 'run'}"]
        environment = {**os.environ, "BUILDAH_ISOLATION": "chroot"}
        command = [*_LOW_PRIORITY, "buildah", *places, *arguments]
        return subprocess.run(
            command, cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE, text=True
        ).stdout.strip()

    def make_base(self) -> None:
        """Make the image that stands for python:3.11-slim-bookworm."""
        files = self.directory / "base"
        options = ["--variant=minbase", f"--include={_PACKAGES}", _RELEASE, str(files), *_mirror()]
        subprocess.run([*_LOW_PRIORITY, "debootstrap", *options], check=True, stdout=subprocess.DEVNULL)
        container = self.buildah("from", "scratch")
        archive = f"{files}.tar"
        subprocess.run([*_LOW_PRIORITY, "tar", "-C", str(files), "-cf", archive, "."], check=True)
        self.buildah("add", "--quiet", container, archive, "/")
        self.buildah("commit", "--quiet", "--rm", container, _BASE)
        shutil.rmtree(files)
        Path(archive).unlink()

    def build(self) -> None:
        """Build the Dockerfile as compose.yaml has it built, on our base; pip asks what it asks on this machine."""
        mounts = [f"--volume={place}:{place}:ro" for place in _pip_places() if Path(place).exists()]
        base = f"--build-arg=PYTHON_IMAGE={_BASE}"
        options = ["--quiet", "--format=docker", "--target=pipeline", base, *mounts, f"--tag={_IMAGE}"]
        self.buildah("build", *options, ".")

    def settings(self) -> dict[str, Any]:
        """Return what the image says of user, environment and command."""
        content: dict[str, Any] = json.loads(self.buildah("inspect", "--type=image", _IMAGE))["Docker"]["config"]
        return content

    def mounted(self) -> Path:
        """Return where the files of a new container of the image are."""
        return Path(self.buildah("mount", self.buildah("from", _IMAGE)))

    def remove(self) -> None:
        """Remove all of it; buildah leaves the directory of its layers mounted."""
        self.buildah("umount", "--all")
        for place in (self.directory / "storage").iterdir():
            if place.is_mount():
                subprocess.run(["umount", str(place)], check=True)
        shutil.rmtree(self.directory)


@dataclass(frozen=True)
class Container:
    """The files of a container, the volumes of a worker, and the environment of the image."""

    files: Path
    volumes: Path
    environment: dict[str, str]

    def run(self, *command: str, **extra: str) -> subprocess.CompletedProcess[str]:
        """Run a command as the image's user, without capabilities, in a root that is read-only but for the volumes."""
        start = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", _START, "start"]
        variables = [f"{name}={value}" for name, value in {**self.environment, **extra}.items()]
        places = {"PATH": os.environ["PATH"], "PLACES": " ".join(_worker_places())}
        return subprocess.run(
            [*_LOW_PRIORITY, *start, str(self.files), str(self.volumes), "-i", *variables, *command],
            env=places,
            capture_output=True,
            text=True,
            check=False,
        )


def _worker_places() -> list[str]:
    return [*(f"pipeline/{place}" for place in VOLUMES), "pipeline/.servers", "home/minillm/.cache"]


def _mirror() -> list[str]:
    """Return the archive of Debian that this machine's apt asks; none leaves it to debootstrap."""
    command = ["apt-get", "indextargets", "--format", "$(REPO_URI) $(ORIGIN) $(CODENAME)"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
    return [line.split()[0] for line in listed if line.endswith(f" Debian {_RELEASE}")][:1]


def _pip_places() -> set[str]:
    """Return pip's settings files, what they name, and where certificates are; an index has its files beside it."""
    asked = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True)
    indexes = {str(Path(path).parent) for path in re.findall(r"file://(/[^' ]+)", asked.stdout)}
    named = re.findall(r"[ '=](/[^' ]+)", asked.stdout)
    return {"/etc/pip.conf", "/root/.config/pip", "/root/.pip", "/etc/xdg/pip", "/etc/ssl/certs", *indexes, *named}
