"""The tables of names, by kind: every layer, combinator, loss and update rule that `fnn` exports.

    ACTIVATIONS   name -> a layer that keeps its input's shape
    LAYERS        name -> a layer, or a function that makes one; models too
    COMBINATORS   name -> a function that takes layers and returns one
    LOSSES        name -> a loss, or a function that makes one
    OPTIMIZERS    name -> a function learning_rate -> optimizer
    WRAPPERS      name -> a function that takes an optimizer and returns one

A name is in the table of the module that defines it, according to `fnn/__init__.pyi`, so a new name
needs no line here. A name's module is imported when the name is looked up. The inputs with which
`fnn verify` and the tests check each name are in `fnn.verify.cases`.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import fnn


class _Table(Mapping[str, Any]):
    """The public names that these modules define, except those in `without`, plus `also`."""

    def __init__(self, modules: str, *, without: str = "", also: str = ""):
        homes = {f"fnn.{module}" for module in modules.split()}
        found = {
            name
            for name, home in fnn._HOMES.items()  # type: ignore[attr-defined]
            if home in homes or home.rpartition(".")[0] in homes
        }
        self._names = sorted(found - {*without.split()} | {*also.split()})

    def __getitem__(self, name: str) -> Any:
        if name not in self._names:
            raise KeyError(name)
        return getattr(fnn, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class _Layers(_Table):
    """Layers; a function that makes a layer is called with its defaults."""

    def __getitem__(self, name: str) -> Any:
        found = super().__getitem__(name)
        return found if hasattr(found, "forward") else found()


ACTIVATIONS: Mapping[str, Any] = _Layers("activations", without="elementwise softmax")
LAYERS: Mapping[str, Any] = _Table(
    "layers models", also="add concatenate elementwise softmax stop_gradient"
)
COMBINATORS: Mapping[str, Any] = _Table(
    "combinators memory precision", without="add concatenate stop_gradient"
)
LOSSES: Mapping[str, Any] = _Table("losses")
OPTIMIZERS: Mapping[str, Any] = _Table("optimizers")
WRAPPERS: Mapping[str, Any] = _Table("wrappers", without="by_name")
