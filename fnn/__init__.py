"""Feed-forward neural networks in a purely functional style, with their own derivatives.

`__init__.pyi`, which type checkers read, lists the public names and the modules that define them. A
name's module is imported when the name is first used, so that `import fnn` is fast.
"""

import ast
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

__version__ = "0.2.0"


def _homes() -> dict[str, str]:
    """The module of each public name, "fnn" for a module itself."""
    stub = ast.parse(Path(__file__).with_suffix(".pyi").read_text())
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: str(node.module) for node in imports for alias in node.names}


_HOMES = _homes()
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(
            f"module 'fnn' has no attribute {name!r}", name=name, obj=sys.modules[__name__]
        )
    home = _HOMES[name]
    value = import_module(f"fnn.{name}") if home == "fnn" else getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *__all__]
