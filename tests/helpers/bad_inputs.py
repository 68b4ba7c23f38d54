"""Inputs that must be refused with one sentence and exit code 2: a list written by hand, and endless generated ones.

Needs no test runner::

    for case in [*hand_written(), *generated(0, 500)]:
        with tempfile.TemporaryDirectory() as folder:
            assert refused_cleanly(case, Path(folder))

``damages`` yields changed copies of a file, for files that carry or have a checksum: every one must be noticed.
"""

from __future__ import annotations

import contextlib
import copy
import gzip
import io
import json
import random
import string
import struct
import traceback
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Content = bytes | str | Callable[[Path], None]
"""Of a file: what is written, or what makes it (and whatever else is needed) at a path."""


@dataclass(frozen=True)
class BadInput:
    """One command that must fail.

    Attributes:
        arguments: of ``bayes-bench``; ``DIR`` stands for the folder that holds the files.
        files: by their path in the folder.
        exit_code: nearly always 2.
        says: what the sentence must contain.
    """

    name: str
    arguments: tuple[str, ...]
    files: Mapping[str, Content] = field(default_factory=dict)
    exit_code: int = 2
    says: str = ""

    def prepare(self, folder: Path) -> list[str]:
        """Write the files; returns the arguments."""
        for name, content in self.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if callable(content):
                content(path)
            else:
                path.write_bytes(content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content)
        return [argument.replace("DIR", str(folder)) for argument in self.arguments]


@dataclass(frozen=True)
class Outcome:
    """How a command ended; ``crash`` is the traceback of what it should not have raised."""

    exit_code: int | None
    out: str
    err: str
    crash: str = ""


def run_in_process(arguments: Sequence[str]) -> Outcome:
    """``bayes-bench`` with these arguments, in this process."""
    from bayes_bench.cli import main

    out, err, code, crash = io.StringIO(), io.StringIO(), None, ""
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(list(arguments))
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0
        except BaseException:
            crash = traceback.format_exc()
    return Outcome(code, out.getvalue(), err.getvalue(), crash)


def refusal(case: BadInput, folder: Path) -> str:
    """What is wrong with how a case was refused; empty where it was refused cleanly."""
    outcome = run_in_process(case.prepare(folder))
    if outcome.crash:
        return f"{case.name}: a traceback\n{outcome.crash}"
    if outcome.exit_code != case.exit_code:
        return f"{case.name}: exit code {outcome.exit_code}\n{outcome.out[-500:]}{outcome.err[-500:]}"
    sentences = [line for line in outcome.err.splitlines() if line.startswith("Error: ")]
    if len(sentences) != 1 or case.says not in sentences[0]:
        return f"{case.name}: not the sentence that was expected\n{outcome.err}"
    if any(ord(character) < 32 for character in sentences[0]):
        return f"{case.name}: control characters in the sentence\n{outcome.err!r}"
    return ""


def refused_cleanly(case: BadInput, folder: Path) -> bool:
    """Does the command end with its exit code and one printable sentence?"""
    return not refusal(case, folder)


# Valid beginnings -----------------------------------------------------------------------------------------

TABLE = "a,b,y\n" + "".join(f"{i / 7:.3f},{(i * 5 % 11) / 3:.3f},{'cat' if i % 3 else 'dog'}\n" for i in range(40))


def suite(**changes: Any) -> dict[str, Any]:
    """A suite of one classification on a table, as TOML has it."""
    task = {
        "name": "pets",
        "title": "cats and dogs",
        "budget": 200,
        "data": {"source": "csv", "path": "table.csv", "target": "y"},
        "network": {"name": "mlp", "hidden": [5, 4], "activation": "relu"},
        "likelihood": {"name": "categorical"},
        "prior": {"std": 1.0, "scaling": "none"},
        "ood": [{"name": "far", "source": "csv", "path": "far.csv"}],
    }
    entry = {"label": "map", "method": "map", "settings": {"batch_size": 8}}
    content = {"name": "animals", "description": "pets", "seeds": [0, 1], "methods": [entry], "tasks": [task]}
    return {**content, **changes}


def task(**changes: Any) -> dict[str, Any]:
    """A suite whose task is changed."""
    content = suite()
    content["tasks"][0].update(changes)
    return content


def toml(value: Any, inside: bool = False) -> str:
    """TOML of tables, lists and values; inner tables are written inline."""
    if isinstance(value, dict):
        if not inside:
            return "".join(f"{json.dumps(key)} = {toml(item, True)}\n" for key, item in value.items())
        return "{" + ", ".join(f"{json.dumps(key)} = {toml(item, True)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(toml(item, True) for item in value) + "]"
    if isinstance(value, float) and value != value:
        return "nan"
    if isinstance(value, float) and abs(value) == float("inf"):
        return "inf" if value > 0 else "-inf"
    return json.dumps(value)


def with_suite(name: str, content: Mapping[str, Any] | str | bytes, says: str = "", **files: Content) -> BadInput:
    """``bayes-bench run`` on a suite and its files; where nothing refused it, it would train for a second."""
    text = toml(dict(content)) if isinstance(content, Mapping) else content
    held = {"suite.toml": text, "table.csv": TABLE, "far.csv": "a,b\n90,80\n95,81\n"}
    held |= {key.replace("__", "."): value for key, value in files.items()}
    return BadInput(name, ("run", "DIR/suite.toml", "--out", "DIR/run", "--quiet", "--device", "cpu"), held, says=says)


def with_table(name: str, table: Content, says: str = "", **options: Any) -> BadInput:
    """A task whose table is bad."""
    content = task(ood=[], data={"source": "csv", "path": "table.csv", "target": "y", **options})
    return with_suite(f"table: {name}", content, says, table__csv=table)


def with_arrays(name: str, archive: Content, says: str = "") -> BadInput:
    """A task whose NPZ file is bad."""
    content = task(ood=[], data={"source": "npz", "path": "data.npz"})
    return with_suite(f"arrays: {name}", content, says, data__npz=archive)


def with_images(name: str, make: Callable[[Path], None], says: str = "") -> BadInput:
    """A task whose folder of images is bad; ``make`` adds to two classes of good ones."""

    def folder(path: Path) -> None:
        from PIL import Image

        for label in ("cat", "dog"):
            (path / label).mkdir(parents=True)
            for i in range(6):
                Image.new("L", (4, 4), 40 * i).save(path / label / f"{i}.png")
        make(path)

    content = task(ood=[], data={"source": "image-folder", "path": "images", "channels": 1})
    return with_suite(f"images: {name}", content, says, images=folder)


def with_run(name: str, run: Content, says: str = "", *arguments: str) -> BadInput:
    """A command on a folder whose ``run.json`` is bad."""
    return BadInput(f"run.json: {name}", arguments or ("report", "DIR"), {"run.json": run}, says=says)


# By hand --------------------------------------------------------------------------------------------------


def hand_written() -> list[BadInput]:
    """Everything that somebody thought of, or that once went wrong."""
    return [*_arguments(), *_suites(), *_tables(), *_archives(), *_folders_of_images(), *_runs(), *_references()]


def _arguments() -> Iterator[BadInput]:
    def command(line: str, says: str = "", **files: Content) -> BadInput:
        return BadInput(line, tuple(line.split()), files, says=says)

    yield command("runn", "did you mean 'run'")
    yield command("run nosuite", "unknown suite 'nosuite'")
    yield command("run DIR/none.toml", "No such file")
    yield command("run DIR", "unknown suite")
    yield BadInput("a folder as a suite", ("run", "DIR/a.toml"), {"a.toml/x": ""}, says="it is not a file")
    yield command("run digits --methods nomethod", "unknown method 'nomethod'")
    yield command("run digits --methods ,", "names separated by commas")
    yield command("run digits digits", "named twice")
    for text in ("", "a", "1-", "-1", "3-1", "1,,2", "1.5", "0-99999", "٣-x", 5000 * "9", "9" * 19, "1e3", "0x1"):
        yield BadInput(f"--seeds {text[:20]!r}", ("run", "digits", "--dry-run", f"--seeds={text}"), says="--seeds")
    for text in (
        "map",
        "map.batch_size",
        "=1",
        "map.=1",
        ".x=1",
        "map.nokey=1",
        "nomethod.x=1",
        "map.batch_size=many",
        "map.batch_size=-1",
        "map.batch_size=nan",
        "map.batch_size=[[[[",
        "map.batch_size=" + 5000 * "9",
        "map.batch_size=" + 5000 * "[",
        "map.batch_size=1\nx=2",
        "hypergan.mixer_hidden=64,x",
        "hypergan.mixer_hidden=64;64",
        "hypergan.mixer_hidden=0",
        "map.\x1b[31m=1",
    ):
        arguments = ("run", "digits", "--dry-run", "--methods", "map,hypergan", "--set", text)
        yield BadInput(f"--set {text[:30]!r}", arguments)
    for text in ("nan", "inf", "-1", "0", "x", "1e999"):
        yield command(f"run digits --dry-run --budget-scale={text}", "budget-scale")
    for option in ("--threads=0", "--threads=x", "--device=tpu", "--precision=half", "--nooption", "--out="):
        yield command(f"run digits --dry-run {option} --methods=nomethod")
    yield command("run digits --methods map --device cpu --precision tf32 --out DIR/run", "tf32 is a GPU's")
    yield command("run digits --methods map --data-root DIR/file --out DIR/run", "is a file", file="x")
    yield command("run digits --methods map --data-root ~nobody_here/x --out DIR/run", "no home folder")
    yield command("run digits --methods map --out DIR/file", "is a file", file="x")
    yield command("run digits --methods map --out DIR/file/below", "is a file", file="x")
    yield command("run digits --methods map --out DIR", "not a run folder", thesis="x")
    yield command(f"run digits --methods map --out DIR/{300 * 'x'}", "File name too long")
    yield command("run digits --allow-code DIR/none.py", "none.py")
    yield command("report DIR", "not a run folder")
    yield command(f"report DIR/{300 * 'x'}", "File name too long")
    yield command("predict DIR map DIR/x.csv", "not a run folder")
    yield command("reference DIR map --out DIR/x.safetensors", "not a run folder")
    yield command("show nomethod", "unknown method")
    yield command("check nomethod", "unknown method")
    yield command("list nothing", "nothing")
    yield command("tune map nosuite", "unknown suite")
    yield command("tune map digits --seeds 0 --out DIR/t", "is a seed of the suite")
    yield command("tune map digits --task nothing --out DIR/t", "unknown task")
    yield command("tune map digits --out DIR", "not a tuning folder", thesis="x")
    yield command("tune map digits --trials 0", "trials")


def _suites() -> Iterator[BadInput]:
    yield with_suite("an empty suite", "", "Field required")
    yield with_suite("a suite of bytes", bytes(range(256)), "not a UTF-8 text file")
    yield with_suite("TOML that ends in the middle", toml(suite())[:-40], "not valid TOML")
    yield with_suite("TOML nested too deeply", f"name = {10_000 * '['}", "not valid TOML")
    yield with_suite("TOML nested deeply", f"name = {100 * '['}{100 * ']'}", "levels deep")
    yield with_suite("an endless integer", f"seeds = [{5000 * '9'}]", "not valid TOML")
    yield with_suite("an integer beyond 64 bits", suite(seeds=[2**64]), "beyond 64 bits")
    yield with_suite("a date", "name = 1979-05-27\n", "name: Input should be a valid string")
    for name in ("", "..", "../x", "a/b", "a\\b", "C:x", "-x", ".x", "a b", "ä", "a\n", 65 * "x", "<script>", "=1+1"):
        yield with_suite(f"task {name!r}", task(name=name), "a name has letters, digits")
    yield with_suite("a label that leaves the folder", suite(methods=[{"label": "../../x", "method": "map"}]))
    yield with_suite("an OOD set that leaves the folder", task(ood=[{"name": "../x", "source": "letters"}]))
    yield with_suite("control characters", task(title="\u001b]0;owned\u0007"), "control characters")
    yield with_suite("no tasks", suite(tasks=[]), "at least 1 item")
    yield with_suite("no seeds", suite(seeds=[]), "at least 1 item")
    yield with_suite("a negative seed", suite(seeds=[-1]), "greater than or equal to 0")
    yield with_suite("tasks of one name", suite(tasks=2 * suite()["tasks"]), "task named twice: pets")
    yield with_suite("labels of one name", suite(methods=["map", "map"]), "method label named twice: map")
    yield with_suite("an unknown method", suite(methods=["mapp"]), "did you mean 'map'")
    yield with_suite("an unknown key", suite(extra=1), "extra")
    yield with_suite("an unknown setting", suite(methods=[{"label": "m", "method": "map", "settings": {"x": 1}}]))
    yield with_suite("settings of an unknown method", task(settings={"mapp": {}}), "unknown method 'mapp'")
    for budget in (0, -5, 1.5, "many", float("nan"), float("inf"), [1], {}):
        yield with_suite(f"a budget of {budget!r}", task(budget=budget), "tasks['pets'].budget")
    yield with_suite("a budget of true", task(budget=True), "budget is a number, not true")
    for network in (
        {"name": "nonet"},
        {"name": "mlp", "hidden": [0]},
        {"name": "mlp", "hidden": [10_000_000, 10_000_000]},
        {"name": "mlp", "hidden": 2000 * [1]},
        {"name": "mlp", "activation": "no"},
        {"name": "convnet"},
        {"name": "resnet", "width": 7},
        {"name": "resnet", "stages": 60},
        {"name": "custom", "entry": "DIR/evil.py:net"},
        {"name": "custom", "entry": "none"},
        {"name": "custom"},
        {},
        "mlp",
    ):
        yield with_suite(f"the network {network!r}"[:80], task(network=network))
    for likelihood in ("gaussian", {"name": "gaussian", "noise_std": 0}, {"name": "gaussian", "noise_std": "big"}, {}):
        yield with_suite(f"the likelihood {likelihood!r}", task(likelihood=likelihood))
    yield with_suite("a prior of nothing", task(prior={"std": 0}), "greater than 0")
    yield with_suite("a curve for classes", task(curve={"low": 0, "high": 1, "inside": []}), "regression likelihood")
    yield with_suite(
        "a curve without end",
        task(likelihood={"name": "gaussian"}, curve={"low": -1e300, "high": 1e300, "inside": [[0, 1]]}),
    )
    yield with_suite("a reference that is not there", task(reference="none.safetensors"), "does not exist")
    yield with_suite("a reference without its name", task(reference="../secret"), "reference")
    for source in ({}, {"source": "nosource"}, {"source": 3}, {"source": "letters"}, {"source": "csv"}, "csv"):
        yield with_suite(f"the source {source!r}", task(data=source))
    for path in ("none.csv", ".", "\u0000", 300 * "x", "~nobody_here/x.csv", "/dev/zero"):
        data = {"source": "csv", "path": path, "target": "y"}
        yield with_suite(f"a table at {path[:20]!r}", task(data=data))
    for path in ("none", "\u0000", "table.csv", "/dev/null"):
        yield with_suite(f"images at {path!r}", task(data={"source": "image-folder", "path": path}))
        yield with_suite(f"arrays at {path!r}", task(data={"source": "npz", "path": path}))
    yield with_suite("an OOD set that is the data", task(ood=[{"name": "o", "source": "csv", "path": "table.csv"}]))
    yield with_suite("an OOD set of another shape", task(ood=[{"name": "o", "source": "letters"}]))


def _tables() -> Iterator[BadInput]:
    yield with_table("empty", "", "")
    yield with_table("a header alone", "a,b,y\n")
    yield with_table("one row", "a,b,y\n1,2,cat\n")
    yield with_table("no target", TABLE.replace("y", "z", 1), "has no column 'y'")
    yield with_table("a short row", TABLE + "1,2\n", "2 cells, the header has 3")
    yield with_table("a column twice", TABLE.replace("a,b", "a,a", 1))
    yield with_table("a missing value", TABLE + ",2,cat\n", "has a missing value")
    yield with_table("text among numbers", TABLE + "x,2,cat\n", "is not a number")
    yield with_table("a number too large", TABLE + "1e39,2,cat\n", "single-precision")
    yield with_table("infinity", TABLE + "inf,2,cat\n", "single-precision")
    yield with_table("an empty label", TABLE + "1,2, \n", "is empty")
    yield with_table("zeros", bytes(1000))
    yield with_table("zeros among numbers", TABLE + "1\0,2,cat\n", "is not a number")
    yield with_table("UTF-16", TABLE.encode("utf-16"), "not UTF-8")
    yield with_table("Latin-1", (TABLE + "1,2,Bär\n").encode("latin-1"), "not UTF-8")
    yield with_table("one huge cell", TABLE + 200_000 * "x" + ",2,cat\n", "field larger than")
    yield with_table("a quote that never ends", TABLE + '"1,2,cat\n' + 200_000 * "x")
    yield with_table("one class", TABLE.replace("dog", "cat"), "at least 2 classes")
    yield with_table("quantities as classes", TABLE.replace("dog", "1.5").replace("cat", "2"), "likelihood of a regr")
    yield with_table("a delimiter of two", TABLE, "delimiter", delimiter=",,")
    yield with_table("a delimiter that quotes", TABLE, "delimiter", delimiter='"')
    yield with_table("nothing to train on", TABLE, "leave some to train", validation=0.6, test=0.6)
    yield with_table("a fraction of everything", TABLE, "less than 1", test=1.0)
    yield with_table("a feature that is the target", TABLE, "both feature and target", features=["a", "y"])
    yield with_table("missing labels", TABLE + "1,2,NA\n", "says that there is none")
    yield with_table("a question mark as a label", TABLE + "1,2,?\n", "says that there is none")
    yield with_table("a column without a name", TABLE.replace("a,b,y", ",b,y", 1), "column 1 has no name")
    yield with_table("a column that pandas named", TABLE.replace("a,b,y", "Unnamed: 0,b,y", 1), "a row's number")
    yield with_table("decimal commas", TABLE.replace(",", ";").replace(".", ","), "decimal = ','")
    yield with_table("names and a header", TABLE, "for a table without a header", names=["a", "b", "y"])
    yield with_table("names of other columns", TABLE, "but 2 names are given", header=False, names=["a", "y"])
    yield with_table("categories of no column", TABLE, "which is no feature", categorical=["z"])
    yield with_table("categories of the target", TABLE, "which is no feature", categorical=["y"])
    yield with_table("a category that is missing", TABLE + ",2,cat\n", "is empty", categorical=["a"])
    yield with_table("another way to fill", TABLE, "missing", missing="mode")
    yield with_table("nothing to fill with", "a,b,y\n" + 20 * ",1,cat\n,2,dog\n", "has no value", missing="mean")
    yield with_table("a decimal of two", TABLE, "decimal", decimal=",.")
    offsets = "".join(f"{1e16 + 2 * (i % 5):.0f},{i},{'cat' if i % 3 else 'dog'}\n" for i in range(40))
    yield with_table("a spread that is lost", "a,b,y\n" + offsets, "lost in the rounding of float64")
    yield with_table("control characters in the header", TABLE.replace("a,b,y", "a,b\x1b[31m,z", 1), "no column 'y'")


def npz(**arrays: Any) -> bytes:
    """An archive of arrays."""
    import numpy as np

    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def npy(header: str, content: bytes = b"") -> bytes:
    """A file in NumPy's format with any header."""
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + content


def packed(content: bytes, name: str = "x.npy", claimed: int | None = None) -> bytes:
    """An archive of one member; ``claimed`` replaces its size in the directory."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    made = bytearray(buffer.getvalue())
    if claimed is not None:
        place = made.index(b"PK\x01\x02") + 24
        made[place : place + 4] = struct.pack("<I", claimed)
    return bytes(made)


def _archives() -> Iterator[BadInput]:
    import numpy as np

    y = np.arange(40) % 2
    x = np.linspace(0, 1, 80, dtype=np.float32).reshape(40, 2)
    good = npz(x=x, y=y)
    claims = "{'descr': '<f4', 'fortran_order': False, 'shape': (%s), }"
    yield with_arrays("text", "not an archive at all", "not an NPZ or NPY file of plain arrays")
    yield with_arrays("nothing", b"", "not an NPZ or NPY file of plain arrays")
    yield with_arrays("cut", good[: len(good) // 2])
    yield with_arrays("a changed byte", bytes([*good[:200], good[200] ^ 255, *good[201:]]))
    yield with_arrays("pickled objects", npz(x=np.array([{}], dtype=object), y=y), "which are never unpickled")
    yield with_arrays("no y", npz(x=x), "has no array 'y'")
    yield with_arrays("y of another length", npz(x=x, y=y[:-1]), "has 39")
    yield with_arrays("complex numbers", npz(x=x.astype(complex), y=y), "array of numbers")
    yield with_arrays("text as inputs", npz(x=x.astype(str), y=y), "array of numbers")
    yield with_arrays("numbers that are not finite", npz(x=np.where(x > 0.5, np.nan, x), y=y), "NaN or infinity")
    yield with_arrays("fractions as classes", npz(x=x, y=y / 3), "likelihood of a regression")
    yield with_arrays("missing labels", npz(x=x, y=np.array(["u", "v", "nan", "?"] * 10)), "has no label")
    yield with_arrays("a spread that is lost", npz(x=x + np.array([0.0, 1e15]), y=y), "rounding of float64")
    yield with_arrays("single precision saved too early", npz(x=(1.7e9 + 200 * x).astype(np.float32), y=y), "float32")
    yield with_arrays(
        "numbers beyond single precision", npz(x=x.astype(np.float64) * 1e300, y=y), "numbers beyond ±3.4e+38"
    )
    yield with_arrays("an empty x", npz(x=x[:0], y=y[:0]))
    yield with_arrays("a number as x", npz(x=3.0, y=y))
    yield with_arrays("a claim beyond the file", npy(claims % "999999999999,"), "claims")
    yield with_arrays("a claim beyond counting", npy(claims % "9223372036854775807, 9223372036854775807"), "claims")
    yield with_arrays("a negative size", npy(claims % "-5,", bytes(20)))
    yield with_arrays("a header of code", npy("__import__('os').abort()"), "plain arrays")
    yield with_arrays("a header nested deeply", npy(5000 * "("), "plain arrays")
    yield with_arrays("a bomb", packed(npy(claims % "9,", bytes(10_000_000)), claimed=0xF0000000))
    yield with_arrays("a bomb that says it is small", packed(npy(claims % "9,", bytes(10_000_000)), claimed=500))
    yield with_arrays("a member that is text", packed(b"hello", "hello.txt"), "plain arrays")

    def idx(shape: Sequence[int], content: bytes) -> bytes:
        return b"\0\0\x08" + bytes([len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + content

    names = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    for name, made, says in (
        ("text", gzip.compress(b"hello"), "not an idx file"),
        ("not zipped", b"hello", "damaged or truncated"),
        ("cut", gzip.compress(idx((9,), bytes(9)))[:-4], "damaged or truncated"),
        ("a broken stream", gzip.compress(b"")[:10] + zlib.compress(bytes(9)), "damaged or truncated"),
        ("too short", gzip.compress(idx((9,), bytes(8))), "is truncated"),
        ("a bomb", gzip.compress(idx((9,), bytes(20_000_000))), "is too long"),
        ("a huge claim", gzip.compress(idx((4_000_000_000, 4_000_000_000), b"")), "in memory"),
        ("255 dimensions", gzip.compress(b"\0\0\x08\xff" + 1020 * b"\xff"), "in memory"),
        ("another file", gzip.compress(idx((1, 28, 28), bytes(784))), "is not MNIST's file"),
    ):
        arguments = ("run", "mnist-5000", "--methods", "map", "--data-root", "DIR/data", "--out", "DIR/run")
        files = {f"data/MNIST/raw/{part}-ubyte.gz": made for part in names}
        yield BadInput(f"idx: {name}", arguments, files, says=says)


def _folders_of_images() -> Iterator[BadInput]:
    def write(name: str, content: bytes) -> Callable[[Path], None]:
        def make(path: Path) -> None:
            (path / name).parent.mkdir(exist_ok=True)
            (path / name).write_bytes(content)

        return make

    def link(path: Path) -> None:
        (path.parent / "secret.png").write_bytes((path / "cat/0.png").read_bytes())
        (path / "cat/link.png").symlink_to(path.parent / "secret.png")

    def huge(width: int, height: int) -> bytes:
        """A PNG that claims a size and holds nothing."""

        def chunk(kind: bytes, content: bytes) -> bytes:
            checksum = struct.pack(">I", zlib.crc32(kind + content))
            return struct.pack(">I", len(content)) + kind + content + checksum

        head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
        return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")

    def another_size(path: Path) -> None:
        from PIL import Image

        Image.new("L", (5, 4)).save(path / "dog/other.png")

    def frames(path: Path) -> None:
        from PIL import Image

        Image.new("L", (4, 4)).save(path / "cat/x.gif", save_all=True, append_images=[Image.new("L", (4, 4), 200)])

    def floats(path: Path) -> None:
        from PIL import Image

        Image.new("F", (4, 4), 0.5).save(path / "cat/x.tif")

    def leftovers(path: Path) -> None:
        (path / "eel").mkdir()
        (path / "eel" / "._x.png").write_bytes(b"\0\5\x16\7")

    yield with_images("text", write("cat/x.png", b"hello"), "cannot read the image")
    yield with_images("nothing", write("cat/x.png", b""), "cannot read the image")
    yield with_images(
        "PostScript", write("cat/x.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n"), "cannot read"
    )
    yield with_images("a bomb", write("cat/x.png", huge(60_000, 60_000)), "too large an image")
    yield with_images("a large claim", write("cat/x.png", huge(8_001, 8_001)), "too large an image")
    yield with_images("a claim beyond its content", write("cat/x.png", huge(4, 4)), "cannot read the image")
    yield with_images("a link out of the folder", link, "symbolic link out of")
    yield with_images("several frames", frames, "holds several frames")
    yield with_images("values without a white", floats, "have no known white")
    yield with_images("what an archiver left", leftovers, "holds no images")
    yield with_images("an empty class", lambda path: (path / "eel").mkdir(), "holds no images")
    yield with_images("another size", another_size, "give `size = [height, width]`")


def _runs() -> Iterator[BadInput]:
    yield with_run("not JSON", "{", "is damaged")
    yield with_run("bytes", bytes(range(256)), "is damaged")
    yield with_run("a list", "[]", "is damaged")
    yield with_run("no jobs", '{"format": 1}', "is damaged")
    yield with_run("jobs of the wrong type", '{"format": 1, "jobs": 3}', "is damaged")
    yield with_run("a job of the wrong type", '{"format": 1, "jobs": [3]}', "is damaged")
    yield with_run("nested deeply", '{"format": 1, "jobs": ' + 100_000 * "[", "is damaged")
    yield with_run("not finite", '{"format": 1, "jobs": [], "x": NaN}', "is damaged")
    yield with_run("no checksum", '{"format": 2, "jobs": []}', "its checksum is missing")
    yield with_run("a wrong checksum", f'{{\n "format": 2,\n "jobs": [],\n "checksum": "{64 * "0"}"\n}}\n', "checksum")
    yield with_run("a newer format", '{"format": 99, "jobs": []}', "update bayes-bench")
    yield with_run("a link", lambda path: path.symlink_to("/etc/hostname"), "symbolic link")
    yield with_run("recomputed", "{", "is damaged", "report", "--recompute", "DIR")
    yield with_run("continued", lambda path: path.symlink_to("/etc/hostname"), "symbolic link",
                   "run", "digits", "--methods", "map", "--out", "DIR")  # fmt: skip
    job = {"key": 64 * "0", "task": "../../etc", "label": "x", "seed": 0}
    yield with_run("a job elsewhere", json.dumps({"format": 1, "jobs": [job]}), "is damaged")
    good = json.dumps({"format": 1, "jobs": []})
    yield with_run("no jobs to predict with", good, "no finished job", "predict", "DIR", "map", "DIR/run.json")
    yield with_run("no jobs to merge", good, "no finished job", "reference", "DIR", "map", "--out", "DIR/x.safetensors")
    yield with_run("a file that is not there", good, "no such file", "predict", "DIR", "map", "DIR/none.csv")
    journal = {"journal.jsonl": '{"op_code": 99}\n[]\n"x"\n'}
    yield BadInput("a damaged journal", ("tune", "map", "digits", "--out", "DIR"), journal, says="is damaged")


def _references() -> Iterator[BadInput]:
    def tensors(about: Any, **arrays: Any) -> bytes:
        from safetensors.numpy import save

        return save(arrays, {"bayes_bench": about if isinstance(about, str) else json.dumps(about)})

    for name, content, says in (
        ("text", b"hello", "is damaged"),
        ("nothing", b"", "is damaged"),
        ("a huge header", struct.pack("<Q", 2**60) + b"{}", "is damaged"),
        ("no metadata", tensors("null"), "is not a reference"),
        ("deep metadata", tensors(100_000 * "["), "is damaged"),
        ("metadata of the wrong type", tensors({"format": 1, "posterior": 3}), "is damaged"),
        ("a newer format", tensors({"format": 9, "posterior": {}}), "update bayes-bench"),
    ):
        yield with_suite(f"reference: {name}", task(reference="r.safetensors"), says, r__safetensors=content)


# Generated ------------------------------------------------------------------------------------------------


def generated(seed: int, count: int) -> Iterator[BadInput]:
    """So many different bad inputs; the same seed gives the same."""
    rng = random.Random(seed)
    makers = (
        _bad_suite,
        _bad_suite,
        _broken_text,
        _bad_setting,
        _bad_seeds,
        _bad_table,
        _bad_archive,
        _bad_description,
    )
    for number in range(count):
        case = makers[number % len(makers)](rng)
        yield BadInput(f"{number}: {case.name}", case.arguments, case.files, case.exit_code, case.says)


def nodes(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths to everything within tables and lists."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from nodes(item, (*path, key))


def replaced(content: Any, path: Sequence[Any], change: Callable[[Any, Any], None]) -> Any:
    """A copy in which ``change(parent, key)`` was done at a path."""
    made = parent = copy.deepcopy(content)
    for key in path[:-1]:
        parent = parent[key]
    change(parent, path[-1])
    return made


REQUIRED = {"name", "tasks", "data", "network", "budget", "source", "label", "method", "path", "target"}


def _bad_suite(rng: random.Random) -> BadInput:
    """A good suite with one thing wrong: another type, an unknown key, or a required key gone."""
    good = suite()
    path = rng.choice(list(nodes(good)))
    kind = rng.choice(["type", "key", "gone"])
    if kind == "type" or (kind == "gone" and path[-1] not in REQUIRED):
        wrong = rng.choice([{"x": {"y": [1]}}, [[[]]], float("nan"), -(2.0**70), [{"z": "ä"}], "\u001b"])
        made = replaced(good, path, lambda parent, key: parent.__setitem__(key, wrong))
    elif kind == "gone":
        made = replaced(good, path, lambda parent, key: parent.__delitem__(key))
    else:
        word = "".join(rng.choices(string.ascii_letters, k=8))
        tables = [place for place in [(), *nodes(good)] if isinstance(_at(good, place), dict)]
        path = (*rng.choice(tables), word)
        made = replaced(good, path, lambda parent, key: parent.__setitem__(key, 1))
    return with_suite(f"suite with {kind} at {path}", made)


def _at(content: Any, path: Sequence[Any]) -> Any:
    for key in path:
        content = content[key]
    return content


def _broken_text(rng: random.Random) -> BadInput:
    text = toml(suite()).encode()
    place = rng.randrange(len(text))
    junk = rng.randbytes(rng.randrange(1, 40)) + b"\xff\0"
    return with_suite(f"suite with bytes at {place}", text[:place] + junk + text[place:])


def _bad_setting(rng: random.Random) -> BadInput:
    word = "".join(rng.choices(string.printable[:94], k=rng.randrange(1, 12)))
    value = rng.choice(["-7", "x y", "[1, 2", "{}", "true", "nan", "''", "1e400", '"\\u0000"', "[[[]]]"])
    text = rng.choice(
        [f"{word.replace('=', '')}.x={value}", f"map.{word}!={value}", f"map.batch_size={value}", word + "="]
    )
    arguments = ("run", "digits", "--dry-run", "--methods", "map", f"--set={text}")
    return BadInput(f"--set {text!r}", arguments)


def _bad_seeds(rng: random.Random) -> BadInput:
    text = "".join(rng.choices("0123456789,-. x", k=rng.randrange(0, 9))) + rng.choice(
        ["-", ",", "x", "--1", ".5", "5-4"]
    )
    return BadInput(f"--seeds {text!r}", ("run", "digits", "--dry-run", f"--seeds={text}"), says="--seeds")


def _bad_table(rng: random.Random) -> BadInput:
    lines = TABLE.splitlines()
    at = rng.randrange(1, len(lines))
    cells = lines[at].split(",")
    match rng.randrange(4):
        case 0:
            cells[rng.randrange(2)] = rng.choice(["", "?", "NaN", "x", "1e99", "-inf", "1,5", "0x10", "١x"])
        case 1:
            cells = cells[: rng.randrange(1, 3)]
        case 2:
            cells += ["more"]
        case _:
            cells[2] = " "
    lines[at] = ",".join(cells)
    return with_table(f"line {at} {cells}", "\n".join(lines) + "\n")


def _bad_archive(rng: random.Random) -> BadInput:
    import numpy as np

    rows = rng.randrange(5, 40)
    good = npz(x=np.ones((rows, 2)), y=np.arange(rows) % 2)
    if rng.random() < 0.5:
        return with_arrays(f"cut {rows}", good[: rng.randrange(len(good) - 22)])
    place = good.index(b"PK\x01\x02") + rng.choice([10, 16, 17])  # method, checksum
    return with_arrays(f"changed at {place}", good[:place] + bytes([good[place] ^ 0x55]) + good[place + 1 :])


def _bad_description(rng: random.Random) -> BadInput:
    job = {"key": 64 * "a", "task": "t", "label": "l", "seed": 0}
    good = {"format": 1, "jobs": [job, dict(job)], "methods": ["l"], "command": ["x"]}
    checked = [path for path in nodes(good) if path not in ((), ("format",))]
    path = rng.choice(checked)
    wrong = rng.choice([{"x": [1]}, -1, 2**70, 1e999, "\x1b", "\ud800", 50 * [[]], None])
    if path == ("command",) or path == ("methods",) or path == ("jobs",):
        wrong = {"x": 1}
    made = replaced(good, path, lambda parent, key: parent.__setitem__(key, wrong))
    return with_run(f"{path} {wrong!r}"[:60], json.dumps(made), "is damaged")


def damages(content: bytes, seed: int, count: int) -> Iterator[tuple[str, bytes]]:
    """So many changed copies of a file with a word on each: bits and bytes changed, cut, longer, zeros in it."""
    rng = random.Random(seed)
    while count > 0:
        place = rng.randrange(len(content))
        before, here, after = content[:place], content[place], content[place + 1 :]
        length = rng.randrange(1, 64)
        how = rng.choice(["a bit changed", "a byte changed", "cut", "longer", "zeros"])
        made = {
            "a bit changed": before + bytes([here ^ 1 << rng.randrange(8)]) + after,
            "a byte changed": before + bytes([here ^ 0xFF]) + after,
            "cut": before,
            "longer": before + rng.randbytes(length) + content[place:],
            "zeros": (before + bytes(length) + after[length - 1 :])[: len(content)],
        }[how]
        if made != content:
            count -= 1
            yield f"{how} at {place}", made
