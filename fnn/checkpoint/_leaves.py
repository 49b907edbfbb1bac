"""The leaves and containers of a tree by name, with the description that a file has of each."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import keystr, tree_flatten_with_path

from fnn.base import Params


class Container(str):
    """The name of a container's type."""


def nodes(tree: Params) -> dict[str, Any]:
    """The tree's leaves, and its containers as `Container`, by their paths, in the tree's order.

    Paths are written as `0.W`, or as `[0]['W']` if that is ambiguous. Raises ValueError if two
    paths are still equal.
    """

    def walk(node: Any, path: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], Any]]:
        children, _ = tree_flatten_with_path(node, is_leaf=lambda n: n is not node)
        is_leaf = any(not key for key, _ in children)
        yield path, node if is_leaf else Container(type(node).__name__ + _static(node))
        for key, child in () if is_leaf else children:
            yield from walk(child, path + key)

    found = list(walk(tree, ()))
    for simple in (True, False):
        separator = "." if simple else ""
        named = {keystr(path, simple=simple, separator=separator): node for path, node in found}
        if len(named) == len(found) and "__metadata__" not in named:
            return named
    raise ValueError("checkpoint: two leaves of the tree have the same path")


def is_key(leaf: Any) -> bool:
    """Whether the leaf is an array of PRNG keys."""
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def describe(name: str, node: Any) -> str:
    """A container's type, or an array's dtype and shape.

    Raises TypeError for a leaf that is not an array.
    """
    if isinstance(node, Container):
        return node
    if not hasattr(node, "dtype") or not hasattr(node, "shape"):
        raise TypeError(f"checkpoint: {name}: expected an array, got {type(node).__name__}")
    dtype = node.dtype if is_key(node) else np.dtype(node.dtype).newbyteorder("=")
    return f"{dtype}{node.shape}"


def check_same(got: dict[str, str], expected: dict[str, str]) -> None:
    """Raise ValueError, naming the first three differences, where two descriptions differ."""
    faults = [
        f"{name} is missing" if name not in got
        else f"{name} was not expected" if name not in expected
        else f"{name or 'the tree'}: expected {expected[name]}, got {got[name]}"
        for name in expected | got
        if got.get(name) != expected.get(name)
    ]  # fmt: skip
    if faults:
        more = f"; and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise ValueError(f"{'; '.join(faults[:3])}{more}")


def _static(container: Any) -> str:
    """The static data of a registered container, such as a dataclass's static fields.

    Numbers and strings are shown by value, anything else by type.
    """
    structure: Any = jax.tree.structure(container, is_leaf=lambda n: n is not container)
    found = structure.node_data()
    held = None if found is None or isinstance(container, dict) else found[1]

    def shown(value: Any) -> str:
        if isinstance(value, tuple):
            return f"({', '.join(map(shown, value))})"
        plain = isinstance(value, bool | int | float | complex | str | bytes) or value is None
        return repr(value) if plain else type(value).__name__

    fields = held if isinstance(held, tuple) else (held,)
    return "" if held is None or not fields else shown(fields)
