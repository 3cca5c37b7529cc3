"""Compile the C sources beside this file, once on a machine, and load them."""

from __future__ import annotations

import ctypes
import logging
import os
import shlex
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from hashlib import sha256
from pathlib import Path

import torch
from torch import Tensor

KINDS = {torch.float32: 0, torch.bfloat16: 1}  # as in numbers.h

_log = logging.getLogger(__name__)

_SOURCES = sorted(Path(__file__).parent.glob("*.[ch]"))
_FLAGS = ("-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared")
_TIMEOUT_S = 120.0
_LETTERS = {"p": ctypes.c_void_p, "i": ctypes.c_int, "l": ctypes.c_long, "f": ctypes.c_float}
_ARGUMENTS = {  # of each function, by their letters
    "norm": "pppillf",
    "arrange": "p",
    "gather": "p",
    "attend_once": "p",
    "draw": "ppppll",
    "norm_forward": "pippipllf",
    "norm_backward": "pipippppill",
    "gated_forward": "pppil",
    "gated_backward": "ppppppil",
    "turn_heads": "pppilllllff",
    "sampled_forward": "p",
    "sampled_backward": "p",
}


@cache
def kernels() -> ctypes.CDLL | None:
    """Return the compiled sources; None if the C compiler is the empty one, or, with one warning, if it fails.

    The compiler is `cc`, or what the environment's CC names, with flags of its own. Everything is right without it, and
    slower.
    """
    if not os.environ.get("CC", "cc").strip():
        return None
    try:
        return _declared(ctypes.CDLL(str(_compiled(_command()))))
    except (OSError, RuntimeError, ValueError, AttributeError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None)
        reason = (said.decode(errors="replace") if said else str(error)).strip()
        _log.warning("no C kernels, so that slower operations take their place: %s", reason[-500:])
        return None


def arithmetic() -> str:
    """Return what tells how the kernels round: a hash of sources, compiler, flags and processor; "" without them."""
    loaded = kernels()
    return "" if loaded is None else Path(loaded._name).stem


def functions() -> ctypes.CDLL:
    """Return the compiled sources where `kernels` has told that there are some."""
    loaded = kernels()
    assert loaded is not None
    return loaded


def check(tensor: Tensor, shape: tuple[int, ...], *dtypes: torch.dtype) -> int:
    """Return the address of a tensor, which has to be contiguous, of this shape and one of these types, and on a CPU.

    Loops in C read and write what they are told: nothing else stands between a wrong size and memory.
    """
    assert tensor.shape == shape and tensor.dtype in dtypes and tensor.is_contiguous() and tensor.device.type == "cpu"
    return tensor.data_ptr()


def room(shape: Sequence[int]) -> Tensor:
    """Return memory for float32 numbers, whatever types and devices new tensors have by default."""
    return torch.empty(shape, dtype=torch.float32, device="cpu")


def takes(dtype: torch.dtype, device: torch.device) -> bool:
    """Return whether there are kernels for tensors of this type and device."""
    return device.type == "cpu" and dtype in KINDS and kernels() is not None


def _command() -> list[str]:
    """Return the compiler with our flags before its own, which may contradict them."""
    words = shlex.split(os.environ.get("CC", "cc"))
    place = next((place for place, word in enumerate(words) if word.startswith("-")), len(words))
    return [*words[:place], *_FLAGS, *words[place:]]


def _declared(loaded: ctypes.CDLL) -> ctypes.CDLL:
    """Return it with the types of its arguments; RuntimeError if its threads are others than the library's."""
    for name, letters in _ARGUMENTS.items():
        function = getattr(loaded, name)
        function.argtypes, function.restype = [_LETTERS[letter] for letter in letters], None
    num_threads = torch.get_num_threads()
    try:
        for told in (num_threads + 1, num_threads + 2):  # one could be what another OpenMP takes anyway
            torch.set_num_threads(told)
            if loaded.most_threads() != told:
                raise RuntimeError("the compiler's OpenMP is not the one of torch")
    finally:
        torch.set_num_threads(num_threads)
    return loaded


def _compiled(command: list[str]) -> Path:
    """Return the shared library, made if this user has none of these sources, compiler, flags and processor.

    What a compiler defines tells its version and what it knows of the processor.
    """
    flags = [word for word in command if word.startswith("-")]
    about = shlex.join(flags) + _output([*command, "-dM", "-E", "-x", "c", "-"])
    content = [path.read_bytes() for path in _SOURCES]
    path = _directory() / f"kernels-{sha256(b'|'.join([about.encode(), *content])).hexdigest()[:16]}.so"
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=path.parent) as directory:
            made = Path(directory) / path.name
            _output([*command, *(str(source) for source in _SOURCES if source.suffix == ".c"), "-lm", "-o", str(made)])
            made.replace(path)
    return path


def _directory() -> Path:
    """Return where compiled files are kept: of this user alone, as they are run."""
    path = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "minillm"
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    about = path.stat()
    if about.st_uid != os.getuid() or about.st_mode & 0o022:
        raise OSError(f"{path} must belong to this user, and nobody else may write to it: its files are run")
    return path


def _output(command: list[str]) -> str:
    """Return what a compiler says."""
    done = subprocess.run(command, input=b"", capture_output=True, check=True, timeout=_TIMEOUT_S)
    return done.stdout.decode(errors="replace")
