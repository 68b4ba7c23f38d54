"""Executes a Python file that the user has named: a method or a network that is looked for there."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import traceback
from pathlib import Path
from types import ModuleType

from bayes_bench.errors import UsageError, named

MOST_WORDS = 300
"""Characters of a file's own error that are shown."""


def execute(path: Path) -> ModuleType:
    """The file as a module, executed once per process; it may import its neighbours, as a script may.

    Raises:
        UsageError: no such file, or it cannot be imported.
    """
    path = path.resolve()
    name = f"bayes_bench_file_{path.stem}"
    if name in sys.modules and sys.modules[name].__file__ != str(path):
        name += "_" + hashlib.sha256(str(path).encode()).hexdigest()[:8]
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise UsageError(f"there is no Python file {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # classes of the module look for it there, when they are pickled for example
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, KeyboardInterrupt | GeneratorExit) or isinstance(error.__cause__, KeyboardInterrupt):
            raise KeyboardInterrupt from error
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        where = f" (line {lines[-1]})" if lines else ""
        raise UsageError(f"{path} cannot be imported: {named(error)[:MOST_WORDS]}{where}") from error
    return module
