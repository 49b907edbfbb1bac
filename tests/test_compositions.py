"""The soak's composer: it knows all that is public, agrees with fnn, and sees what is wrong."""

import inspect
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from benchmarks.soak import compose, duals, nestings, parts, sharded, twins
from benchmarks.soak.interpreted import evaluated
from benchmarks.soak.parts import Node
from benchmarks.soak.twins import Composition
from fnn import curvature, gradients, parallel, per_example

OPENED = {"per_example": per_example, "curvature": curvature, "gradients": gradients,
          "parallel": parallel}  # fmt: skip
DENSE = Node("dense", True)


def composition(node, *checks, axes=(), head="dense", dtype="float64", mode="plain", loss="mse"):
    return Composition(node, axes, False, head, loss, 0, dtype, mode, 7, checks)


def test_all_that_is_public_is_in_some_composition_or_left_out_for_a_reason():
    public = set(fnn.__all__) - OPENED.keys()
    for name, module in OPENED.items():
        for part, value in vars(module).items():
            defined = inspect.isfunction(value) or inspect.isclass(value)
            if defined and value.__module__.startswith(module.__name__) and part[0] != "_":
                public.add(f"{name}.{part}")
    left_out = {name for names in compose.LEFT_OUT for name in names.split()}
    assert compose.covered() | left_out == public
    assert not compose.covered() & left_out


@pytest.mark.parametrize(
    "each",
    [
        composition(Node("skip", None, (DENSE,)), "gram", "hessian_vector_product"),
        composition(
            Node("repeat", 2, (Node("conv1d"),)), "squared_norms", axes=(2,), head="flatten"
        ),
        composition(Node("compute_in", "float32", (Node("layer_norm"),)), "cosines"),
        composition(Node("masked", 3, (DENSE,)), "second_moment", dtype="bfloat16"),
        composition(Node("dropout", 0.4), "step", mode="training", loss="softmax_cross_entropy"),
        composition(Node("batch_norm"), "ggn_diagonal", mode="evaluation", dtype="float32"),
        composition(Node("lora", None, (DENSE,)), "gradients", loss="focal"),
        composition(DENSE, "kfac"),
    ],
    ids=lambda each: repr(each.node),
)
def test_a_composition_is_its_twin(each):
    assert compose.difference(each) is None


@pytest.mark.parametrize("name", list(parts.PARTS))
def test_a_wrong_gradient_of_any_part_is_seen(name, monkeypatch):
    """Each part by itself agrees, and no longer when its backward is off by a thousandth."""
    where = next(
        parts.Where(axes, 4)
        for axes in (parts.FEATURES, parts.TOKENS, parts.PIXELS)
        if parts.PARTS[name].fits(parts.Where(axes, 4))
    )
    head = {0: "dense", 1: "flatten", 2: "pixels"}[len(where.axes)]
    part = parts.PARTS[name]
    inner = (DENSE,) * (part.inside[0] if part.inside else 0)
    setting = "float32" if name == "compute_in" else part.settings[-1]
    node = Node(name, setting, inner)
    first = Node("serial", None, (DENSE, node))
    each = composition(first, axes=where.axes, head=head)
    assert compose.difference(each) is None
    if name in ("stop_gradient", "from_function", "from_single"):
        return  # no gradient to be wrong, or autodiff's

    def wrong(node, where):
        layer = part.layer(node, where)

        def backward(params, residuals, dy, reduce=fnn.total):
            dparams, dx = layer.backward(params, residuals, dy, reduce)
            return dparams, dx * jnp.asarray(1.001, dx.dtype)

        return layer._replace(backward=backward, varying=None)

    monkeypatch.setitem(parts.PARTS, name, part._replace(layer=wrong))
    found = compose.difference(each)
    assert found is not None
    assert "first by" in found


def test_what_differs_is_shrunk_to_its_smallest(monkeypatch):
    wrong = parts.PARTS["tanh"]._replace(layer=lambda node, where: fnn.sigmoid)
    monkeypatch.setitem(parts.PARTS, "tanh", wrong)
    node = Node("serial", None, (DENSE, Node("repeat", 3, (Node("skip", None, (Node("tanh"),)),))))
    each = composition(node, "gram")
    smallest, found = compose.shrunk(each, compose.difference(each))
    assert (smallest.node, smallest.checks) == (Node("tanh"), ())
    assert found.startswith("first by")


def test_a_statistic_in_a_narrow_dtype_is_seen(monkeypatch):
    narrow = lambda network, loss, **options: (
        lambda *args: per_example.squared_norms(network, loss, **options)(*args).astype(
            jnp.bfloat16
        )
    )
    monkeypatch.setitem(
        compose.CHECKS,
        "squared_norms",
        compose.CHECKS["squared_norms"]._replace(ours=lambda case: case.statistic(narrow)),
    )
    each = composition(DENSE, "squared_norms", dtype="float32")
    assert compose.difference(each) == "squared_norms is bfloat16"


def test_what_is_traced_and_evaluated_in_numpy_is_what_jax_computes():
    network = fnn.serial(
        fnn.repeat(fnn.skip(fnn.conv2d(4, 4, (2, 3), (1, 1))), 2),
        fnn.max_pool((2, 1)),
        fnn.flatten(3),
        fnn.dense(12, 2),
    )
    params = network.init(jax.random.key(0))
    x, y = jax.random.normal(jax.random.key(1), (3, 2, 3, 4)), jnp.ones((3, 2))
    clip = per_example.clipped_value_and_grad(network, fnn.mse, 0.5)
    ours, theirs = (f(params, x, y) for f in (lambda *a: evaluated(clip, *a), jax.jit(clip)))
    for a, b in zip(*map(jax.tree.leaves, (ours, theirs)), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)


def test_duals_have_first_and_second_derivatives():
    f = lambda x: (duals.softmax(x) * duals.tanh(x)).sum() / (x * x).sum()
    plain = lambda x: (jax.nn.softmax(x) * jnp.tanh(x)).sum() / (x * x).sum()
    x, v = np.random.default_rng(0).normal(size=(2, 4))
    with jax.enable_x64(True):
        gradient = jax.grad(plain)(jnp.asarray(x))
        along = jax.jvp(jax.grad(plain), (jnp.asarray(x),), (jnp.asarray(v),))[1]
    np.testing.assert_allclose(f(duals.variables(x)).t[:, 0], gradient, rtol=1e-12)
    np.testing.assert_allclose(twins.along(f(duals.variables(x, v)).t)[:, 0], along, rtol=1e-12)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_rounding_is_to_the_dtypes_nearest(dtype):
    a = np.random.default_rng(0).normal(size=1000) * 10.0 ** np.arange(-20, 20).repeat(25)
    expected = np.asarray(jnp.asarray(a.astype(np.float32), dtype), np.float64)
    np.testing.assert_array_equal(duals.rounded(a, dtype), expected)


@pytest.mark.long
def test_rounds_count_what_they_compare(tmp_path):
    counts = compose.compositions(tmp_path, 6, 0)
    assert (counts["inputs"], counts["differ"]) == (6, 0)
    assert sum(counts.get(dtype, 0) for dtype in ("float64", "float32", "bfloat16")) == 6
    assert nestings.nestings(tmp_path, 5, 0) == {"inputs": 5, "differ": 0}


@pytest.mark.long
def test_rounds_on_meshes(tmp_path):
    counts = sharded.sharded(tmp_path, 6, 0)
    assert (counts["inputs"], counts["differ"]) == (6, 0)


def test_compositions_on_meshes_neither_draw_nor_mix():
    rng = random.Random(0)
    for _ in range(50):
        spread = sharded.drawn(rng)
        assert not spread.composition.varies
        assert not spread.composition.end.loss.mixes
