"""Every program lowers for CUDA, ROCm and TPU, by `jax.export`; this needs no such device.

Lowered means that JAX has a rule for each operation there and that the module is valid; that the
backend then compiles it is not shown.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import EXACT, LAYERS, LOSSES, OPTIMIZERS, layer_inputs
from click.testing import CliRunner
from jax import export

import fnn
from fnn import cli

BACKENDS = ("cuda", "rocm", "tpu")
KEY = jax.random.key(5)
every_backend = pytest.mark.parametrize("backend", BACKENDS)


def lowers(backend, f, *arguments):
    """Lower f for a backend, from shapes alone. Raises what JAX does where it can't."""
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(jnp.shape(a), a.dtype), arguments)
    exported = export.export(jax.jit(f), platforms=[backend])(*shapes)
    assert exported.platforms == (backend,)
    assert "func.func public @main" in exported.mlir_module()


def both_ways(layer):
    """y, the gradients of the parameters, and that of x."""

    def f(params, x, dy):
        y, residuals = layer.forward(params, x)
        return y, layer.backward(params, residuals, dy)

    return f


IMAGES = fnn.serial(
    fnn.conv2d(1, 2), fnn.batch_norm(2), fnn.gelu, fnn.max_pool((2, 2)), fnn.flatten(3),
    fnn.repeat(fnn.skip(fnn.serial(fnn.dense(8, 8), fnn.dropout(0.1))), 2),
    fnn.remat(fnn.dense(8, 3)),
)  # fmt: skip


@every_backend
@pytest.mark.sampled(3)
def test_a_whole_run_lowers(backend):
    """Shuffling, dropout, batch normalisation, convolution, a scan, Adam: all of `make_train`."""
    train = fnn.make_train(IMAGES, fnn.softmax_cross_entropy, fnn.adam(1e-3), 4, 2)
    x, y = jnp.ones((10, 4, 4, 1)), jnp.zeros(10, jnp.int32)
    lowers(backend, train, IMAGES.init(KEY), (x, y), KEY)


def test_what_a_backend_lacks_is_seen():
    """XLA's call to LAPACK for a Schur decomposition exists on the CPU alone."""
    with pytest.raises(NotImplementedError, match="tpu"):
        lowers("tpu", lambda a: jax.scipy.linalg.schur(a), jnp.ones((2, 2)))


def test_verify_takes_the_cpu_where_there_is_no_float64(monkeypatch, tmp_path):
    (tmp_path / "mine.py").write_text("""
import fnn, jax, jax.numpy as jnp
def forward(params, x):
    assert jax.config.jax_default_device.platform == "cpu"
    return fnn.tanh.forward(params, x)
layer, layer_inputs = fnn.tanh._replace(forward=forward), ((), jnp.ones((2, 2)))
""")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    result = CliRunner().invoke(cli.fnn, ["verify", "mine:layer"])
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("on the CPU: a TPU has no float64\nmine:layer\n")


@pytest.mark.long
@every_backend
@pytest.mark.parametrize("case", LAYERS, ids=lambda case: case.name)
def test_layers_lower(case, backend):
    lowers(backend, both_ways(case.layer), *layer_inputs(case, jnp.float32))


@pytest.mark.long
@every_backend
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=["bfloat16", "float16"])
def test_narrow_dtypes_lower(dtype, backend):
    for case in EXACT:
        lowers(backend, both_ways(case.layer), *layer_inputs(case, dtype))


@pytest.mark.long
@every_backend
@pytest.mark.parametrize("case", LOSSES, ids=lambda case: case.name)
def test_losses_lower(case, backend):
    both = lambda p, t: (case.loss.value(p, t), case.loss.gradient(p, t))
    target = case.target.astype(np.float32) if case.target.dtype.kind == "f" else case.target
    lowers(backend, both, case.prediction.astype(np.float32), jnp.asarray(target))


@pytest.mark.long
@every_backend
@pytest.mark.parametrize("case", OPTIMIZERS, ids=lambda case: case.name)
def test_optimizers_lower(case, backend):
    optimizer, params = case.make(0.1), {"W": jnp.ones((3, 2)), "b": jnp.ones(3)}
    lowers(backend, optimizer.update, jax.eval_shape(optimizer.init, params), params)


DENSE = fnn.serial(fnn.dense(3, 4), fnn.layer_norm(4), fnn.tanh, fnn.dense(4, 2))
PARAMS = DENSE.init(KEY)


def natural_step(params, x, y):
    optimizer = fnn.curvature.kfac(0.1)
    factors = fnn.curvature.kronecker_factors(DENSE, fnn.mse)(params, x, y)
    return optimizer.update(fnn.curvature.observe(optimizer.init(params), factors), params)


def forward_mode(params, x, y):
    return jax.jvp(fnn.differentiable(DENSE), (params, x), (params, x))


STATISTICS = {
    "squared_norms": fnn.per_example.squared_norms(DENSE, fnn.mse),
    "gram": fnn.per_example.gram(DENSE, fnn.mse),
    "second_moment": fnn.per_example.second_moment(DENSE, fnn.mse),
    "clipped_value_and_grad": fnn.per_example.clipped_value_and_grad(DENSE, fnn.mse, 1.0),
    "gradient_noise_scale": fnn.per_example.gradient_noise_scale(DENSE, fnn.mse),
    "ggn_diagonal": fnn.curvature.ggn_diagonal(DENSE, fnn.mse),
    "gauss_newton_vector_product": lambda params, x, y: fnn.curvature.gauss_newton_vector_product(
        DENSE, fnn.mse
    )(params, x, y, params),
    "kfac": natural_step,
    "differentiable": forward_mode,
}


@pytest.mark.long
@every_backend
@pytest.mark.parametrize("name", STATISTICS)
def test_statistics_lower(name, backend):
    lowers(backend, STATISTICS[name], PARAMS, jnp.ones((5, 3)), jnp.ones((5, 2)))
