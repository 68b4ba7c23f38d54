"""Executes a Python file that the user has named; imported by those who look for methods and networks in such files."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from bayes_bench.errors import UsageError, named


def execute(path: Path) -> ModuleType:
    """The file as a module, executed once per process.

    Raises:
        UsageError: no such file, or it cannot be imported.
    """
    path = path.resolve()
    name = f"bayes_bench_file_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise UsageError(f"cannot read the Python file {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # classes of the module look for it there, when they are pickled for example
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise UsageError(f"{path} cannot be imported: {named(error)}") from error
    return module
