"""Convolution and pooling: PyTorch as an oracle, ties, per-example statistics, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn import per_example, reductions, verify
from fnn.layers.conv import _Conv

KEY = jax.random.key(8)
RNG = np.random.default_rng(8)


def draw(*shape):
    return RNG.normal(size=shape)


def through(layer, params, x, dy):
    """y, dparams and dx in float64."""
    with jax.enable_x64(True):
        x, dy = jnp.asarray(x), jnp.asarray(dy)
        y, residuals = layer.forward(params, x)
        return y, *layer.backward(params, residuals, dy)


# PyTorch. Its images are (channels, height, width), and its "same" takes no stride.


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


@pytest.mark.parametrize(
    ("window", "stride", "zeros", "size"),
    [
        ((3, 3), (1, 1), (1, 1), (6, 5)),
        ((3, 3), (2, 2), (1, 1), (5, 7)),
        ((5, 1), (1, 1), (2, 0), (6, 5)),
        ((2, 3), (2, 1), None, (7, 5)),
        ((1, 1), (1, 2), None, (4, 4)),
    ],
)
def test_pytorch_convolves_alike(torch, window, stride, zeros, size):
    layer = fnn.conv2d(2, 3, window, stride, "VALID" if zeros is None else "SAME")
    W, b, x = draw(3, *window, 2), draw(3), draw(4, *size, 2)
    given = {"W": torch.tensor(W.transpose(0, 3, 1, 2)), "b": torch.tensor(b)}
    given["x"] = torch.tensor(x.transpose(0, 3, 1, 2))
    for tensor in given.values():
        tensor.requires_grad_()
    expected = torch.nn.functional.conv2d(
        given["x"], given["W"], given["b"], stride, 0 if zeros is None else zeros
    )
    dy = draw(*expected.shape)
    expected.backward(torch.tensor(dy))
    with jax.enable_x64(True):
        params = {"W": jnp.asarray(W), "b": jnp.asarray(b)}
    y, dparams, dx = through(layer, params, x, dy.transpose(0, 2, 3, 1))
    last = lambda tensor: tensor.detach().numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(y, last(expected), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(dx, last(given["x"].grad), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(dparams["W"], last(given["W"].grad), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(dparams["b"], given["b"].grad.numpy(), rtol=1e-10)


@pytest.mark.parametrize(("window", "stride"), [((2, 2), None), ((3, 2), (2, 1)), ((2, 3), (3, 3))])
@pytest.mark.parametrize("kind", ["max", "mean"])
def test_pytorch_pools_alike(torch, kind, window, stride):
    ours = {"max": fnn.max_pool, "mean": fnn.mean_pool}[kind]
    theirs = {"max": torch.nn.functional.max_pool2d, "mean": torch.nn.functional.avg_pool2d}[kind]
    x = RNG.integers(4, size=(3, 6, 7, 2)).astype(float)  # with many ties: its first wins too
    images = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
    expected = theirs(images, window, stride)
    dy = draw(*expected.shape)
    expected.backward(torch.tensor(dy))
    y, _, dx = through(ours(window, stride), (), x, dy.transpose(0, 2, 3, 1))
    np.testing.assert_allclose(y, expected.detach().numpy().transpose(0, 2, 3, 1), rtol=1e-12)
    np.testing.assert_allclose(dx, images.grad.numpy().transpose(0, 2, 3, 1), rtol=1e-12)


@pytest.mark.parametrize("training", [True, False])
def test_pytorch_normalises_images_alike(torch, training):
    x, gain, bias = draw(4, 3, 5, 2), draw(2), draw(2)
    population = draw(9, 3, 5, 2)
    layer = fnn.batch_norm(2)
    with jax.enable_x64(True):
        params = {"gain": jnp.asarray(gain), "bias": jnp.asarray(bias)}
        statistics = fnn.statistics(layer, params, jnp.asarray(population))
        layer = fnn.at(layer, KEY) if training else fnn.at(layer, statistics=statistics)
    mean, variance = (torch.tensor(np.asarray(s)) for s in statistics)
    images = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
    expected = torch.nn.functional.batch_norm(
        images, mean, variance, torch.tensor(gain), torch.tensor(bias), training, eps=1e-5
    )
    dy = draw(*expected.shape)
    expected.backward(torch.tensor(dy))
    y, _, dx = through(layer, params, x, dy.transpose(0, 2, 3, 1))
    last = lambda tensor: tensor.detach().numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(y, last(expected), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(dx, last(images.grad), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("stride", [(1, 1), (2, 3)])
@pytest.mark.parametrize("padding", ["SAME", "VALID"])
def test_flax_convolves_alike(stride, padding):
    linen = pytest.importorskip("flax.linen")
    W, b, x = (a.astype(np.float32) for a in (draw(3, 2, 4, 2), draw(3), draw(2, 5, 8, 2)))
    y, _ = fnn.conv2d(2, 3, (2, 4), stride, padding).forward(
        {"W": jnp.asarray(W), "b": jnp.asarray(b)}, jnp.asarray(x)
    )
    theirs = linen.Conv(3, (2, 4), stride, padding)
    expected = theirs.apply({"params": {"kernel": W.transpose(1, 2, 3, 0), "bias": b}}, x)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)


# Pooling.


def test_of_equal_entries_the_first_wins_and_nan_wins_over_all():
    layer = fnn.max_pool((2, 2))
    x = jnp.array([[1.0, 1, 0, 2], [1, 0, 2, 2]])[..., None]
    y, residuals = layer.forward((), x)
    np.testing.assert_array_equal(y[0, :, 0], [1, 2])
    _, dx = layer.backward((), residuals, jnp.array([[[5.0], [7.0]]]))
    np.testing.assert_array_equal(dx[..., 0], [[5, 0, 0, 7], [0, 0, 0, 0]])
    y, _ = layer.forward((), x.at[1, 1].set(jnp.nan))
    np.testing.assert_array_equal(y[0, :, 0], [np.nan, 2])


@pytest.mark.long
def test_the_checker_at_ties():
    """At a tie dx is one-sided, as autodiff's is, and the differences move tied entries together. A
    tie that is split is a derivative too: it is not called wrong, but not passed."""
    x = np.array([[[[1.0], [3]], [[3], [0]]], [[[2], [0]], [[1], [2]]]], np.float32)
    layer = fnn.max_pool((2, 2))
    report = verify.check_layer(layer, (), x)
    assert report.verdict == "pass"
    assert report.leaves[0].differences.reason == ""

    def split(params, residuals, dy, reduce=fnn.total):
        return (), jnp.where(x == x.max((1, 2), keepdims=True), dy / 2, 0).astype(dy.dtype)

    def other(params, residuals, dy, reduce=fnn.total):
        return (), jnp.where(x == 0, dy, 0)

    report = verify.check_layer(layer._replace(backward=split), (), x)
    assert report.verdict == "inconclusive"
    assert "a tie or border" in str(report)
    assert verify.check_layer(layer._replace(backward=other), (), x).verdict == "fail"


def test_residuals_hold_no_more_than_they_say():
    x = jnp.ones((3, 8, 8, 4))
    held = lambda layer: sum(a.nbytes for a in jax.tree.leaves(layer.forward((), x)[1]))
    assert held(fnn.max_pool((2, 2))) == 3 * 4 * 4 * 4  # a byte per output
    assert held(fnn.mean_pool((2, 2))) == held(fnn.flatten(3)) == 0


# Per-example statistics.

FACTORS = {
    "same": ((3, 3), (1, 1), "SAME", (4, 5)),
    "strided": ((3, 2), (2, 3), "SAME", (5, 7)),
    "valid": ((2, 3), (2, 1), "VALID", (5, 4)),
    "one position": ((3, 3), (1, 1), "VALID", (3, 3)),
}


@pytest.mark.long
@pytest.mark.parametrize("examples", [(3,), (2, 2), ()], ids=str)
@pytest.mark.parametrize("geometry", list(FACTORS.values()), ids=list(FACTORS))
def test_every_reduction_of_its_factor(geometry, examples):
    """Against the gradients one by one, held as Direct factors."""
    *geometry, size = geometry
    layer = fnn.conv2d(2, 3, *geometry)
    x = draw(*examples, *size, 2)
    with jax.enable_x64(True):
        params = jax.tree.map(lambda p: p.astype(jnp.float64), layer.init(KEY))
        y, residuals = layer.forward(params, jnp.asarray(x))
        dy = jnp.asarray(draw(*y.shape))
        factors = []
        layer.backward(params, residuals, dy, factors.append)
        (factor,) = (f for f in factors if isinstance(f, _Conv))
        one = lambda x, dy: jax.vjp(lambda p: layer.forward(p, x)[0], params)[1](dy)[0]["W"]
        for _ in examples:
            one = jax.vmap(one)
        each = one(jnp.asarray(x), dy)
        g, n = reductions.Direct(each, 4), len(examples)
        weight = jnp.asarray(RNG.uniform(size=examples))
        close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12)
        assert factor.batch == y.shape[:-1]
        close(factor.total(), g.total())
        close(factor.rows(n).value, each)
        close(factor.squared_norm(n), g.squared_norm(n))
        close(factor.products(n), g.products(n))
        squares = lambda f: f.squared(n).total()
        close(squares(factor), squares(g))
        close(*(f.weighted(weight).total() for f in (factor, g)))
        masked = reductions.Masked(factor, params["W"])
        close(masked.squared_norm(n), ((each * params["W"]) ** 2).sum((-4, -3, -2, -1)))


NETWORK = fnn.serial(
    fnn.conv2d(1, 3), fnn.silu, fnn.max_pool((2, 2)),
    fnn.repeat(fnn.skip(fnn.serial(fnn.layer_norm(3), fnn.silu, fnn.conv2d(3, 3))), 2),
    fnn.conv2d(3, 4, (2, 2), (1, 1), "VALID"), fnn.tanh, fnn.mean_pool((1, 2)), fnn.flatten(3),
    fnn.dense(8, 3),
)  # fmt: skip


@pytest.mark.long
def test_every_statistic_of_a_convolutional_network():
    network, loss = NETWORK, fnn.softmax_cross_entropy
    with jax.enable_x64(True):
        params = jax.tree.map(lambda p: p.astype(jnp.float64), network.init(KEY))
        x, y = jnp.asarray(draw(6, 6, 7, 1)), jnp.arange(6) % 3
        one = jax.grad(lambda p, x, y: loss.value(network.forward(p, x)[0], y))
        each = jax.vmap(one, (None, 0, 0))(params, x, y)
        flat = jnp.concatenate([g.reshape(6, -1) for g in jax.tree.leaves(each)], 1)
        norms = (flat**2).sum(1)
        got = per_example.squared_norms(network, loss)(params, x, y)
        np.testing.assert_allclose(got, norms, rtol=1e-10)
        gram = per_example.gram(network, loss)(params, x, y)
        np.testing.assert_allclose(gram, flat @ flat.T, rtol=1e-9, atol=1e-12)
        close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-13)
        moment = per_example.second_moment(network, loss)(params, x, y)
        jax.tree.map(close, moment, jax.tree.map(lambda g: (g * g).mean(0), each))
        scale = jnp.minimum(1, 0.3 / jnp.sqrt(norms))
        _, clipped = per_example.clipped_value_and_grad(network, loss, 0.3)(params, x, y)
        jax.tree.map(close, clipped, jax.tree.map(lambda g: jnp.tensordot(scale, g, 1) / 6, each))


@pytest.mark.long
def test_the_gauss_newton_diagonal_of_a_convolution():
    """Exactly the Hessian's, with one convolution and nothing but linear layers around it."""
    layer, loss = fnn.conv2d(1, 2), fnn.softmax_cross_entropy
    network = fnn.serial(layer, fnn.mean_pool((2, 2)), fnn.flatten(3), fnn.dense(4, 3))
    with jax.enable_x64(True):
        params = jax.tree.map(lambda p: p.astype(jnp.float64), network.init(KEY))
        x, y = jnp.asarray(draw(3, 4, 2, 1)), jnp.arange(3)
        diagonal = fnn.curvature.ggn_diagonal(network, loss)(params, x, y)[0]["W"]

        def value(W):
            return fnn.objective(network, loss)(({**params[0], "W": W}, *params[1:]), x, y)

        hessian = jax.hessian(value)(params[0]["W"]).reshape(18, 18)
        np.testing.assert_allclose(diagonal.ravel(), jnp.diag(hessian), rtol=1e-9)


@pytest.mark.long
def test_a_convolutional_network_passes_the_checker():
    params = jax.tree.map(
        lambda p: p + 0.1 * jax.random.normal(KEY, p.shape), NETWORK.init(KEY)
    )  # fmt: skip
    x = jax.random.normal(KEY, (3, 6, 7, 1))
    verify.check_layer(NETWORK, params, x).raise_for_verdict()


IMAGES = jnp.ones((2, 4, 4, 3))


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (ValueError, r"conv2d\(0, 1, .*expected widths", lambda: fnn.conv2d(0, 1)),
        (ValueError, r"conv2d\(1, 1, 3\): expected window and", lambda: fnn.conv2d(1, 1, 3)),
        (ValueError, "expected widths", lambda: fnn.conv2d(1, 1, (3, 3), (0, 1))),
        (ValueError, "expected padding 'SAME' or 'VALID', got 'same'",
         lambda: fnn.conv2d(1, 1, padding="same")),
        (ValueError, r"\(\.\.\., height, width, 1\), got \(2, 4, 4, 3\)",
         lambda: forward(fnn.conv2d(1, 1), IMAGES)),
        (ValueError, r"\(\.\.\., height, width, 3\), got \(4, 3\)",
         lambda: forward(fnn.conv2d(3, 1), IMAGES[0, 0])),
        (ValueError, r"at least the window \(5, 5\), got \(4, 4\)",
         lambda: forward(fnn.conv2d(3, 1, (5, 5), padding="VALID"), IMAGES)),
        (TypeError, "x is bfloat16, but params",
         lambda: forward(fnn.conv2d(3, 1), IMAGES.astype("bfloat16"))),
        (ValueError, r"expected params of shapes .*'W': \(1, 3, 3, 3\)",
         lambda: fnn.conv2d(3, 1).forward(fnn.conv2d(3, 2).init(KEY), IMAGES)),
        (ValueError, r"max_pool\(2\): expected window", lambda: fnn.max_pool(2)),
        (ValueError, r"mean_pool.*expected widths", lambda: fnn.mean_pool((2, 0.5))),
        (ValueError, r"max_pool\(\(5, 1\)\): .* at least the window \(5, 1\), got \(4, 4\)",
         lambda: forward(fnn.max_pool((5, 1)), IMAGES)),
        (ValueError, r"mean_pool.*height, width, channels\), got \(4, 3\)",
         lambda: forward(fnn.mean_pool((1, 1)), IMAGES[0, 0])),
        (ValueError, r"flatten\(0\)", lambda: fnn.flatten(0)),
        (ValueError, r"flatten\(3\): expected x of shape \(\.\.\., d, d, d\), got \(4, 3\)",
         lambda: forward(fnn.flatten(3), IMAGES[0, 0])),
        (ValueError, "unflatten: expected at least one length", lambda: fnn.unflatten()),
        (ValueError, r"unflatten\(2, 2\): expected x of shape \(\.\.\., 4\), got",
         lambda: forward(fnn.unflatten(2, 2), IMAGES)),
        (ValueError, r"cnn: images of \(4, 4, 3\) can't be halved 3 times",
         lambda: fnn.cnn((4, 4, 3), (1, 1, 1), 2)),
    ],
)  # fmt: skip
def test_what_they_refuse(error, message, call):
    with pytest.raises(error, match=message):
        call()


def forward(layer, x):
    return layer.forward(layer.init(KEY), x)
