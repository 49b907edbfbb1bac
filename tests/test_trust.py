"""Training that notices, and calls that are refused: at once, by name, before anything is lost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn.training.faults import all_finite

pytestmark = [pytest.mark.usefixtures("compiled_once"), pytest.mark.optimized]

KEY = jax.random.key(11)
NETWORK = fnn.mlp((3, 8, 2), activation=fnn.tanh)
RNG = np.random.default_rng(11)
X = RNG.normal(size=(30, 3)).astype(np.float32)
Y = (X[:, 0] * X[:, 1] > 0).astype(np.int32)


def fit(data=(X, Y), network=NETWORK, loss=fnn.softmax_cross_entropy, optimizer=None, **settings):
    settings = {"key": KEY, "epochs": 6, "batch_size": 7} | settings
    return fnn.fit(network, loss, optimizer or fnn.adam(0.01), data, **settings)


# Calls that are refused.


REFUSED = {
    "params of another": (
        lambda: NETWORK.forward(fnn.mlp((3, 5, 2)).init(KEY), X),
        r"dense\(3, 8\): expected params of shapes",
    ),
    "params of another depth": (
        lambda: NETWORK.forward(fnn.mlp((3, 2)).init(KEY), X),
        "expected params for 4 layers, got 2",
    ),
    "width 0": (lambda: fnn.mlp((3, 0, 2)), "whole numbers of at least 1"),
    "width -1": (lambda: fnn.dense(3, -1), "whole numbers of at least 1"),
    "width 2.5": (lambda: fnn.dense(3, 2.5), "whole numbers of at least 1"),
    "width True": (lambda: fnn.dense(True, 3), "whole numbers of at least 1"),
    "width of an axis": (lambda: fnn.dense(jnp.ones(1), 3), "whole numbers of at least 1"),
    "width as array": (lambda: fnn.dense(np.ones(2), 3), "whole numbers of at least 1"),
    "one size": (lambda: fnn.mlp((3,)), "at least an input and an output size"),
    "depth 0": (lambda: fnn.repeat(fnn.tanh, 0), "n of at least 1, got 0"),
    "huber": (lambda: fnn.huber(np.nan), "delta above 0, got nan"),
    "norm": (lambda: fnn.clip_by_global_norm(fnn.sgd(1), np.nan), "max_norm above 0, got nan"),
    "l2": (lambda: fnn.add_l2(fnn.sgd(1), np.nan), "alpha of at least 0, got nan"),
    "layer_norm": (lambda: fnn.layer_norm(3, eps=np.nan), "eps above 0, got nan"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_calls_are_refused_by_name(name):
    call, message = REFUSED[name]
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


WRONG = [0.0, -1.0, float("nan"), float("inf")]
RULES = ["sgd", "momentum", "rmsprop", "adagrad", "adam", "adamw", "nadam", "lion"]


@pytest.mark.parametrize("rate", WRONG)
@pytest.mark.parametrize("name", RULES)
def test_every_rule_refuses_a_wrong_rate(name, rate):
    with pytest.raises(ValueError, match=f"{name}: expected learning_rate above 0, got {rate}"):
        getattr(fnn, name)(rate)


@pytest.mark.parametrize("eps", WRONG)
@pytest.mark.parametrize("name", ["rmsprop", "adagrad", "adam", "adamw", "nadam"])
def test_every_rule_refuses_a_wrong_eps(name, eps):
    with pytest.raises(ValueError, match=f"{name}: expected eps above 0, got {eps}"):
        getattr(fnn, name)(0.1, eps=eps)


@pytest.mark.parametrize("decay", [1.0, -0.1, float("nan")])
@pytest.mark.parametrize(
    ("name", "option"),
    [("momentum", "decay"), ("rmsprop", "decay")]
    + [(rule, b) for rule in ("adam", "adamw", "nadam", "lion") for b in ("b1", "b2")],
)
def test_every_rule_refuses_a_wrong_decay(name, option, decay):
    with pytest.raises(ValueError, match=rf"{name}: expected {option} in \[0, 1\), got {decay}"):
        getattr(fnn, name)(0.1, **{option: decay})


CONSTRUCTORS = {
    "sgd": lambda v: fnn.sgd(v),
    "momentum": lambda v: fnn.momentum(0.1, decay=v),
    "rmsprop": lambda v: fnn.rmsprop(0.1, eps=v),
    "adagrad": lambda v: fnn.adagrad(0.1, eps=v),
    "adam": lambda v: fnn.adam(0.1, b2=v),
    "adamw": lambda v: fnn.adamw(0.1, weight_decay=v),
    "nadam": lambda v: fnn.nadam(0.1, eps=v),
    "lion": lambda v: fnn.lion(0.1, weight_decay=v),
    "clip_by_global_norm": lambda v: fnn.clip_by_global_norm(fnn.sgd(0.1), v),
    "add_l2": lambda v: fnn.add_l2(fnn.sgd(0.1), v),
    "average": lambda v: fnn.average(fnn.sgd(0.1), v),
    "scale_loss": lambda v: fnn.scale_loss(fnn.sgd(0.1), v),
    "constant": lambda v: fnn.schedules.constant(v),
    "exponential_decay": lambda v: fnn.schedules.exponential_decay(1.0, v, 10),
    "step_decay": lambda v: fnn.schedules.step_decay(1.0, 0.5, v),
    "cosine_decay": lambda v: fnn.schedules.cosine_decay(1.0, 10, v),
    "linear_warmup": lambda v: fnn.schedules.linear_warmup(v, 10),
    "huber": lambda v: fnn.huber(v),
    "elu": lambda v: fnn.elu(v),
    "dropout": lambda v: fnn.dropout(v),
    "layer_norm": lambda v: fnn.layer_norm(3, eps=v),
    "batch_norm": lambda v: fnn.batch_norm(3, eps=v),
    "clipped_value_and_grad": lambda v: fnn.per_example.clipped_value_and_grad(NETWORK, fnn.mse, v),
    "add_noise": lambda v: fnn.per_example.add_noise({}, KEY, v),
    "kfac": lambda v: fnn.curvature.kfac(0.1, damping=v),
}
COUNTS = {
    "accumulate": lambda v: fnn.accumulate(fnn.sgd(0.1), v),
    "scale_loss": lambda v: fnn.scale_loss(fnn.sgd(0.1), 1.0, growth_interval=v),
    "repeat": lambda v: fnn.repeat(fnn.tanh, v),
    "reversible": lambda v: fnn.reversible(fnn.tanh, fnn.tanh, v),
    "make_epoch": lambda v: fnn.make_epoch(NETWORK, fnn.mse, fnn.sgd(0.1), v),
    "make_train": lambda v: fnn.make_train(NETWORK, fnn.mse, fnn.sgd(0.1), 5, v),
    "fit": lambda v: fit(epochs=v),
}
NUMBERS = [float, np.float16, np.float32, np.float64, jnp.float32, jnp.bfloat16, np.array]


@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_a_number_of_any_type_is_looked_at(name):
    """What Python's float is refused for, so are NumPy's and JAX's; what is traced passes."""
    make = CONSTRUCTORS[name]
    for number in (*NUMBERS, jnp.asarray):
        make(number(0.5))
        for bad in (-1.0, np.nan):
            with pytest.raises(ValueError, match=f"{name}.*: expected .*, got {number(bad)}"):
                make(number(bad))
    for bad in (True, np.True_, jnp.array(True), "0.5", None, 1j, np.ones(2), [0.5]):
        with pytest.raises(TypeError, match=f"{name}.*: expected .* to be a number, got "):
            make(bad)
    jax.eval_shape(lambda v: (make(v), v)[1], 0.5)
    with pytest.raises(TypeError, match="to be a number"):
        jax.eval_shape(lambda v: (make(v), v)[1], jnp.ones(2))


@pytest.mark.parametrize("name", COUNTS)
def test_a_count_of_any_type_is_looked_at(name):
    make = COUNTS[name]
    for number in (int, np.int8, np.int64, np.uint8, jnp.int32, np.array):
        make(number(2))
        with pytest.raises(ValueError, match=f"{name}: expected .* of at least 1, got 0"):
            make(number(0))
    for bad in (2.0, np.float32(2), True, np.True_, "2", None, np.ones(1, int), np.array(2.5)):
        with pytest.raises(TypeError, match=f"{name}: expected .* to be a whole number, got "):
            make(bad)


def test_wrong_dtypes_are_a_type_error():
    with pytest.raises(TypeError, match="expected a Layer, got"):
        fnn.serial(fnn.leaky_relu)
    with pytest.raises(TypeError, match="expected floating-point parameters"):
        fnn.sgd(0.1).init({"w": jnp.arange(3)})


# Numbers at the ends of their ranges.


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("name", ["softmax_cross_entropy", "sigmoid_binary_cross_entropy"])
def test_losses_on_logits_are_finite_at_every_finite_logit(name, dtype):
    loss, dtype = getattr(fnn, name), jnp.dtype(dtype)
    largest = jnp.finfo(dtype).max
    edge = np.array([largest / 4, 1, 0, -0.0, -1, -largest / 4], np.float64)
    logits = jnp.asarray(np.stack(np.meshgrid(edge, edge), -1).reshape(-1, 2), dtype)
    target = jnp.asarray(RNG.integers(0, 2, logits.shape), dtype)
    if name == "softmax_cross_entropy":
        target = target[:, 0].astype(jnp.int32)
    assert all_finite(loss.value(logits, target))
    gradient = loss.gradient(logits, target)
    assert all_finite(gradient)
    assert (jnp.abs(gradient) <= 1).all()


def test_a_variance_that_overflows_is_not_an_output_of_0():
    x = jnp.asarray(RNG.normal(size=(4, 3)), jnp.float32)
    batch_norm = fnn.at(fnn.batch_norm(3), KEY)
    params = batch_norm.init(KEY)
    assert (batch_norm.forward(params, x * 1e15)[0] != 0).any()
    assert jnp.isnan(batch_norm.forward(params, x * 1e20)[0]).all()
    layer, scale = fnn.layer_norm(3), 2.0**66  # 7e19
    (y, small), (same, large) = (layer.forward(params, x * s) for s in (2.0**20, scale))
    np.testing.assert_allclose(same, y, rtol=1e-5)
    dx, expected = (
        layer.backward(params, residuals, x)[1] * s
        for residuals, s in ((large, scale), (small, 2.0**20))
    )
    np.testing.assert_allclose(dx, expected, rtol=1e-4, atol=1e-6)
    derivative = jax.jvp(lambda x: layer.forward(params, x)[0], (x,), (x,))[1]
    assert all_finite(derivative)
