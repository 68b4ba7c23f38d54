"""Which files of its package a method consists of, beside the core that all share: to notice that they have changed."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from bayes_bench.host.shipped import PACKAGE

OURS = ("bayes_bench", "methods")


@cache
def code_of_method(cls: type) -> tuple[Path, ...]:
    """The folders of the families that a method is of: its own, its base classes', and all that these import from.

    A family is a folder in ``bayes_bench/methods``, or one directly in another package. A method that lies directly in
    a package may use all of the package, so all of it counts; of one that is in no package the file counts.
    """
    module = cls.__module__.split(".")
    file = _file(cls)
    roots: dict[tuple[str, ...], Path] = {OURS: PACKAGE / "methods"}
    if (file.parent / "__init__.py").exists() and tuple(module[:2]) != OURS:
        depth = len(module) - (file.name != "__init__.py")  # folders from the package to the file
        roots[(module[0],)] = [file, *file.parents][depth]
    waiting, found = [_family(root, base) for base in _bases(cls) if (root := _root(base, roots))], set[Path]()
    if file.parent in roots.values():
        waiting.append(file.parent)
    elif _root(file, roots) is None:
        found.add(file)
    while waiting:
        part = waiting.pop()
        if part not in found:
            found.add(part)
            waiting += _imported(part, roots)
    whole = found & set(roots.values())
    kept = [part for part in found if part in whole or not any(part.is_relative_to(root) for root in whole)]
    return tuple(sorted(kept))


def _file(cls: type) -> Path:
    return Path(str(sys.modules[cls.__module__].__file__)).resolve()


def _bases(cls: type) -> Iterator[Path]:
    """The files of a class and of the classes that it inherits from."""
    yield from (_file(base) for base in cls.__mro__ if getattr(sys.modules[base.__module__], "__file__", None))


def _root(file: Path, roots: dict[tuple[str, ...], Path]) -> Path | None:
    """The root that a file lies below, the innermost."""
    return max((root for root in roots.values() if file.is_relative_to(root)), key=lambda p: len(p.parts), default=None)


def _family(root: Path, file: Path) -> Path:
    return root / file.relative_to(root).parts[0] if file != root else root / "__init__.py"


def _imported(part: Path, roots: dict[tuple[str, ...], Path]) -> Iterator[Path]:
    """What the files of a family import, as families below one of the roots."""
    for file in sorted(part.rglob("*.py")) if part.is_dir() else [part]:
        for words in _names(file, roots):
            for prefix, root in roots.items():
                if words[: len(prefix)] == prefix:
                    part = _family(root, _place(root, words[len(prefix) :]))
                    if part.exists():  # what lies elsewhere under the same name has no file here
                        yield part


def _names(file: Path, roots: dict[tuple[str, ...], Path]) -> Iterator[tuple[str, ...]]:
    """Absolute dotted names of all that a file imports, wherever in it."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):  # a template, say: it counts, and leads nowhere
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (tuple(alias.name.split(".")) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            stem = tuple((node.module or "").split(".")) if node.module else ()
            if node.level:
                folder = file.parents[node.level - 1]
                within = [(prefix, root) for prefix, root in roots.items() if folder.is_relative_to(root)]
                if not within:  # above the package, where Python finds nothing either
                    continue
                prefix, root = within[0]
                stem = (*prefix, *folder.relative_to(root).parts, *stem)
            yield from ((*stem, alias.name) for alias in node.names)


def _place(root: Path, words: tuple[str, ...]) -> Path:
    """The folder or file below the root that a dotted name leads to; what is no module ends the way."""
    place = root
    for word in words:
        if (place / word).is_dir():
            place /= word
        else:
            file = place / f"{word}.py"
            return file if file.is_file() else place
    return place
