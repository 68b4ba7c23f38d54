"""Snapshots of a fit on disk, from which an interrupted fit goes on exactly where it was.

A fit is one or several parts, each a call of ``TrainingLoop.run``, and every part has one file: 64 hexadecimal digits
(SHA-256 of the rest), a line end, and a safetensors file whose metadata hold, as JSON, all that is no tensor. What a
fit does before and between its parts is cheap and follows from its seed, so it is done again.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as tensors_of
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from bayes_bench.errors import DataError
from bayes_bench.host.files import refuse_link, replacing
from bayes_bench.host.stopping import Stop
from bayes_bench.settings import SNAPSHOT_SECONDS

FORMAT = 1
METADATA = "bayes_bench"
SUFFIX = ".snapshot"
DIGITS = 64
PAUSE = 50
"""A snapshot is followed by a pause of at least so many times its own duration: they take at most 2 % of a fit."""
WORTHWHILE = 5.0
"""Seconds since the last snapshot from which the end of a part is worth one."""

State = dict[str, Any]


class Snapshots:
    """Where a fit keeps its snapshots, and when it writes them.

    Args:
        folder: made when the fit begins.
        identity: what must be the same for a snapshot to be used (key of the job, code, ...); others are ignored.
        every: seconds between two snapshots.
        stop: when it is requested, the fit ends after a snapshot.
        tell: called with sentences for the user.
    """

    def __init__(
        self,
        folder: Path,
        identity: Mapping[str, Any],
        *,
        every: float = SNAPSHOT_SECONDS,
        stop: Stop | None = None,
        tell: Callable[[str], None] = lambda _: None,
    ):
        self._folder = folder.absolute()  # whatever the method does to the current folder
        self._identity: State = json.loads(json.dumps(dict(identity)))
        self._every = every
        self._stop = stop or Stop()
        self.tell = tell
        self._last = time.perf_counter()
        self._pause = 0.0
        self._failed = False

    def begin(self) -> None:
        """Called at the start of a fit; says where an earlier one has left nothing to go on from."""
        if self._folder.is_dir() and not any(self._folder.glob(f"*{SUFFIX}")):
            self.tell("was interrupted before its first snapshot and starts again")
        with suppress(OSError):  # writing the first snapshot will say it
            self._folder.mkdir(parents=True, exist_ok=True)
            for unfinished in self._folder.glob(f".*{SUFFIX}.*.tmp"):  # of a process that was killed
                unfinished.unlink()

    @property
    def stopping(self) -> bool:
        """Whether the fit has been asked to end."""
        return self._stop.requested

    def deferring(self) -> AbstractContextManager[None]:
        """Within it a first Ctrl-C waits for the snapshot."""
        return self._stop.deferred()

    def due(self) -> bool:
        """Whether it is time for one."""
        return self._elapsed() >= max(self._every, self._pause)

    def worthwhile(self) -> bool:
        """Whether one should be written at the end of a part."""
        return self._elapsed() >= max(min(self._every, WORTHWHILE), self._pause)

    def save(self, part: int, state: Mapping[str, Any]) -> None:
        """Write the snapshot of a part. Where it cannot be written the user is told, and the fit goes on."""
        started = time.perf_counter()
        try:
            tensors: dict[str, Tensor] = {}
            about = {"format": FORMAT, "identity": self._identity, "part": part, "state": _pack(state, tensors)}
            content = safetensors_bytes(tensors, {METADATA: json.dumps(about, allow_nan=False)})
            self._folder.mkdir(parents=True, exist_ok=True)
            with replacing(self._path(part)) as temporary, temporary.open("wb") as file:
                file.write(hashlib.sha256(content).hexdigest().encode() + b"\n")
                file.write(content)
        except Exception as error:
            # No space, no memory, a kind of tensor that cannot be copied or stored: none of it is a reason to fail.
            if not self._failed:
                self.tell(f"has no new snapshot ({error}); a later interruption would lose what follows")
            self._failed = True
        self._last = time.perf_counter()
        self._pause = PAUSE * (self._last - started)

    def load(self, part: int) -> State | None:
        """What ``save`` was given for this part, or None where there is nothing that can be used."""
        path = self._path(part)
        if not path.is_file():
            return None
        try:
            refuse_link(path)
            about, tensors = _read(path)
            if about["identity"] != self._identity or about["part"] != part:
                changed = [name for name, value in self._identity.items() if about["identity"].get(name) != value]
                self.tell(f"does not use its snapshot, which is of other {' and '.join(changed) or 'parts'}")
                return None
            state: State = _unpack(about["state"], tensors)
        except (DataError, KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            self.tell(f"does not use its snapshot: {error if isinstance(error, DataError) else f'{path} is damaged'}")
            return None
        return state

    def clear(self, why: str = "") -> None:
        """Remove all snapshots."""
        if why:
            self.tell(why)
        for path in self._folder.glob(f"*{SUFFIX}"):
            path.unlink(missing_ok=True)

    def _elapsed(self) -> float:
        return time.perf_counter() - self._last

    def _path(self, part: int) -> Path:
        return self._folder / f"part-{part}{SUFFIX}"


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Metadata and tensors of a snapshot.

    Raises:
        DataError: it is damaged or of a newer version.
    """
    try:
        with path.open("rb") as file:
            digest = file.read(DIGITS + 1)
            # Before it is read as a whole: a damaged file may have any size.
            if digest != hashlib.file_digest(file, "sha256").hexdigest().encode() + b"\n":
                raise DataError(f"{path} is damaged (its checksum differs)")
            file.seek(len(digest))
            content = file.read()
        about = json.loads(_metadata(content))
        if not isinstance(about, dict) or about.get("format") != FORMAT:
            raise DataError(f"{path} was written by another version")
        return about, tensors_of(content)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    except (SafetensorError, ValueError, RecursionError) as error:
        raise DataError(f"{path} is damaged: {error}") from error


def _metadata(content: bytes) -> str:
    """The metadata entry in the header of a safetensors file: 8 bytes of length, and JSON."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    return str(header.get("__metadata__", {}).get(METADATA, "null"))


def _pack(value: Any, tensors: dict[str, Tensor]) -> Any:
    """A nested state as JSON; its tensors go into ``tensors`` and leave their name.

    Anything but texts and numbers becomes an object with one entry, whose name tells what it was.
    """
    if isinstance(value, Tensor):
        name = str(len(tensors))
        # Clones: safetensors refuses tensors that share memory, as the views of a stacked tensor do.
        tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": [name, str(value.device)]}
    if isinstance(value, Mapping):
        return {"map": [[_pack(key, tensors), _pack(item, tensors)] for key, item in value.items()]}
    if isinstance(value, tuple):
        return {"tuple": [_pack(item, tensors) for item in value]}
    if isinstance(value, list):
        return {"list": [_pack(item, tensors) for item in value]}
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": str(value)}
    if value is None or isinstance(value, bool | int | str):
        return value
    raise TypeError(f"a snapshot cannot hold {type(value).__name__}; give numbers, texts, tensors or lists of them")


def _unpack(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    match kind:
        case "tensor":
            name, device = content
            return tensors[name].to(device)
        case "map":
            return {_unpack(key, tensors): _unpack(item, tensors) for key, item in content}
        case "tuple":
            return tuple(_unpack(item, tensors) for item in content)
        case "list":
            return [_unpack(item, tensors) for item in content]
        case "float":
            return float(content)
    raise KeyError(kind)
