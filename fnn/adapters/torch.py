"""Parameters from PyTorch and to PyTorch, as state dicts.

PyTorch's modules and the params that they become:

    Linear               weight (d_out, d_in), bias         {"W", "b"}, unchanged
    Conv2d               weight (c_out, c_in, *window), bias {"W", "b"}, W (c_out, *window, c_in)
    LayerNorm, BatchNorm weight, bias                       {"gain", "bias"}
    Embedding            weight                             {"table"}

PyTorch's images have channels first. So a Linear after flattened images has columns in the order
channel, row, column, which become the order row, column, channel in W.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fnn.base import Params

NAMES = ({"W": "weight", "b": "bias"}, {"gain": "weight", "bias": "bias"}, {"table": "weight"})
"""For each kind of layer, the names of its params in fnn and in PyTorch."""
MEASURED = ("running_mean", "running_var", "num_batches_tracked")
"""The buffers of a BatchNorm."""


Modules = Sequence[str] | None
"""Names of modules, such as "0" or "encoder.1"."""


def from_torch(
    state: Mapping[str, Any], like: Params, names: Modules = None, flattened: Modules = None
) -> Params:
    """Params with the structure, shapes and dtypes of `like` and the values of a state dict.

    state: `model.state_dict()`, or what `safetensors.numpy.load_file` returns: arrays or tensors by
    name, such as "0.weight", or nested mappings of them. like: the params of the network, or their
    shapes.

    Modules are matched in order with the layers that have parameters. Their order is that of the
    numbers in their names, as in an `nn.Sequential`; for other names pass it, as in
    names=["encoder", "head"]. The bias of a module without one becomes zeros. A Linear that comes
    after a convolution in the same `serial`, with a layer in between, is assumed to read its
    flattened images. In other cases, such as a `fork`, pass the names of the modules that read
    flattened images, as in flattened=["3"], or flattened=[] if there are none.

    The running averages of a BatchNorm are not parameters: see `statistics_from_torch`.

    Raises ValueError for a different number of modules, for names without a known order, for an
    array that is missing, unknown or has a different shape, for a normalisation of flattened
    images, and if `flattened` is needed.

    >>> state = {"0.weight": np.array([[1.0, 2.0]]), "0.bias": np.array([3.0])}
    >>> import fnn
    >>> from_torch(state, fnn.mlp((2, 1)).init(jax.random.key(0)))
    ({'W': Array([[1., 2.]], dtype=float32), 'b': Array([3.], dtype=float32)}, ())
    """
    state = _flat(state)
    links = _links("from_torch", state, like, names, flattened)
    return _converted("from_torch", links, state, like)


def to_torch(
    params: Params, like: Mapping[str, Any], names: Modules = None, flattened: Modules = None
) -> dict[str, np.ndarray]:
    """The state dict of a PyTorch model with the values of params: NumPy arrays by name.

    like: `model.state_dict()`, of which buffers are kept. The inverse of `from_torch`; modules are
    matched in the same way.
    `model.load_state_dict({k: torch.tensor(a) for k, a in to_torch(params, like).items()})`

    Raises ValueError as `from_torch` does, and for a bias that is not zero if like has none.

    >>> like = {"0.weight": np.zeros((1, 2)), "0.bias": np.zeros(1)}
    >>> params = ({"W": jnp.array([[1.0, 2.0]]), "b": jnp.array([3.0])}, ())
    >>> to_torch(params, like)["0.weight"]
    array([[1., 2.]])
    """
    like = _flat(like)
    state = {name: _array(value) for name, value in like.items()}
    values = dict(jax.tree.leaves_with_path(params))
    for link in _links("to_torch", like, params, names, flattened):
        value = np.asarray(values[link.path])
        if link.key in state:
            _check_shape("to_torch", link, state[link.key])
            value = np.ascontiguousarray(link.theirs(value))
            state[link.key] = value.astype(state[link.key].dtype)
        elif np.any(value):
            raise ValueError(f"to_torch: {link.key} is missing, and {_shown(link.path)} is not 0")
    return state


def statistics_from_torch(state: Mapping[str, Any], like: Any, names: Modules = None) -> Any:
    """The running means and variances of a state dict's BatchNorm modules, as a tree like `like`,
    which is `fnn.statistics(network, params, x)` or its shapes.

    The order of the modules is as in `from_torch`. Raises ValueError as it does.

    >>> state = {"0.running_mean": np.array([3.0]), "0.running_var": np.array([4.0])}
    >>> statistics_from_torch(state, (jnp.zeros(1), jnp.ones(1)))
    (Array([3.], dtype=float32), Array([4.], dtype=float32))
    """
    state = _flat(state)
    measured = [key for key in state if key.endswith(MEASURED[:2])]
    keys = [f"{name}.{kept}" for name in _ordered(measured, names) for kept in MEASURED[:2]]
    keys = [key for key in keys if key in measured]
    leaves = jax.tree.leaves_with_path(like)
    if len(keys) != len(leaves):
        expected = f"expected {len(leaves)} arrays of means and variances, got {len(keys)}"
        raise ValueError(f"statistics_from_torch: {expected}: {', '.join(keys)}")
    links = [_Link(path, key, leaf, 1) for key, (path, leaf) in zip(keys, leaves, strict=True)]
    return _converted("statistics_from_torch", links, state, like)


class _Link(NamedTuple):
    """A leaf of params and the corresponding array of a state dict. Where they hold `channels` of
    images, these are last in the leaf and come before the places in the array."""

    path: tuple[Any, ...]
    key: str
    leaf: Any
    channels: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array."""
        d_out, *window = self.leaf.shape
        return (d_out, window[-1], *window[:-1]) if len(window) == 3 else self.leaf.shape

    def ours(self, a: np.ndarray) -> np.ndarray:
        """The leaf, from the array."""
        return a.reshape(len(a), self.channels, -1).swapaxes(1, 2).reshape(self.leaf.shape)

    def theirs(self, a: np.ndarray) -> np.ndarray:
        """The array, from the leaf."""
        return a.reshape(len(a), -1, self.channels).swapaxes(1, 2).reshape(self.shape)


def _converted(name: str, links: list[_Link], state: Mapping[str, Any], like: Any) -> Any:
    """The tree of the leaves, with the values of the state."""
    found = {}
    for link in links:
        if link.key in state:
            got = _array(state[link.key])
            _check_shape(name, link, got)
            found[link.path] = jnp.asarray(link.ours(got), link.leaf.dtype)
        elif link.key.endswith("bias"):
            found[link.path] = jnp.zeros(link.leaf.shape, link.leaf.dtype)
        else:
            raise ValueError(f"{name}: {link.key} is missing, for {_shown(link.path)}")
    return jax.tree.map_with_path(lambda path, leaf: found[path], like)


def _links(
    name: str, state: Mapping[str, Any], params: Params, names: Modules, flattened: Modules
) -> list[_Link]:
    """One link per parameter. Raises ValueError for an array of the state without one."""
    links: list[_Link] = []
    parameters = [key for key in state if not key.endswith(MEASURED)]
    images: tuple[Any, int] | None = None
    for module, path, layer in _matched(name, parameters, params, names):
        read = 1 if images is None else _channels(name, module, path, layer, images, flattened)
        for ours, theirs in _kind(layer).items():
            leaf, place = layer[ours], (*path, jax.tree_util.DictKey(ours))
            channels = leaf.shape[-1] if leaf.ndim == 4 else read if ours == "W" else 1
            links.append(_Link(place, f"{module}.{theirs}".lstrip("."), leaf, channels))
        if "W" in layer:
            images = (path, layer["W"].shape[0]) if layer["W"].ndim == 4 else None
    if foreign := sorted(set(parameters) - {link.key for link in links}):
        raise ValueError(f"{name}: there is no parameter for {foreign[0]}")
    return links


def _kind(layer: Any) -> dict[str, str]:
    """{name of the param in fnn: in PyTorch} of a layer's params; {} for anything else."""
    same = (kind for kind in NAMES if isinstance(layer, dict) and set(kind) == set(layer))
    return next(same, {})


def _matched(
    name: str, parameters: list[str], params: Params, names: Modules
) -> list[tuple[str, Any, Any]]:
    """Each module with the path and the params of its layer."""
    layers = jax.tree.leaves_with_path(params, is_leaf=lambda node: bool(_kind(node)))
    for path, layer in layers:
        if not _kind(layer):
            known = "dense, conv2d, layer_norm, batch_norm or embedding"
            raise ValueError(f"{name}: expected params of {known}, got {_shown(path)}")
    modules = _ordered(parameters, names)
    if len(modules) != len(layers):
        places = ", ".join(_shown(path) for path, _ in layers)
        got = f"got {len(modules)}: {', '.join(modules)}"
        raise ValueError(f"{name}: expected {len(layers)} modules, for {places}, {got}")
    return [(module, *layer) for module, layer in zip(modules, layers, strict=True)]


def _channels(
    name: str, module: str, path: Any, layer: Params, images: tuple[Any, int], flattened: Modules
) -> int:
    """The number of channels of the flattened images that a module reads, 1 if it doesn't.
    images: the path of the convolution before it, and its number of channels."""
    there, channels = images
    if "gain" in layer and layer["gain"].shape != (channels,):
        way = "whose order differs between fnn and PyTorch; normalise them before flattening"
        raise ValueError(f"{name}: {module} normalises flattened images, {way}")
    if "W" not in layer or layer["W"].ndim != 2 or layer["W"].shape[1] % channels:
        return 1
    if flattened is not None:
        return channels if module in flattened else 1
    places = [getattr(end[-1], "idx", 0) for end in (there, path)]
    if path[:-1] != there[:-1] or places[1] - places[0] < 2:
        expected = "expected flattened=[...], the names of modules that read flattened images"
        got = f"{module} may read those of {_shown(there)} or be parallel to it in a fork"
        raise ValueError(f"{name}: {expected}: {got}")
    return channels


def _ordered(keys: list[str], names: Modules) -> list[str]:
    """The names of the modules of these arrays, in the order of the network."""
    modules = list(dict.fromkeys(key.rpartition(".")[0] for key in keys))
    if names is not None:
        if missing := [name for name in modules if name not in names]:
            raise ValueError(f"names: expected all modules of the state, missing {missing[0]!r}")
        return [name for name in names if name in modules]
    if len({re.sub(r"[\d.]+", "", name) for name in modules}) > 1:
        order = f"the order of the modules {', '.join(modules)} is not in their names"
        raise ValueError(f"state: {order}; pass it as names=[...]")
    return sorted(modules, key=lambda name: [int(number) for number in re.findall(r"\d+", name)])


def _flat(state: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Arrays by full name, such as "encoder.0.weight"."""
    if not isinstance(state, Mapping):
        raise TypeError(f"state: expected a dict of arrays by name, got {type(state).__name__}")
    found: dict[str, Any] = {}
    for name, value in state.items():
        inner = isinstance(value, Mapping)
        found |= _flat(value, f"{prefix}{name}.") if inner else {f"{prefix}{name}": value}
    return found


def _array(value: Any) -> np.ndarray:
    """A NumPy array of an array, or of a tensor on any device."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.float() if "bfloat16" in str(value.dtype) else value
    return np.asarray(value)


def _check_shape(name: str, link: _Link, got: np.ndarray) -> None:
    if got.shape != link.shape:
        place = f"{jax.tree_util.keystr(link.path)} {tuple(link.leaf.shape)}"
        reason = f"expected shape {link.shape} for {link.key}, which is {place}, got {got.shape}"
        raise ValueError(f"{name}: {reason}")


def _shown(path: tuple[Any, ...]) -> str:
    return f"params{jax.tree_util.keystr(path)}"
