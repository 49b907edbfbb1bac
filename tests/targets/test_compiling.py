"""Programs that the compilers of TPUs and GPUs make: skipped where they are not installed."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import fnn
from fnn import curvature, per_example, targets
from fnn.base import at
from fnn.verify import cases

pytestmark = [pytest.mark.long, pytest.mark.optimized]
KEY = jax.random.key(0)


def installed(target, extra):
    """A mark for what only this target's compiler can compile."""
    missing = not targets.targets()[target]
    return pytest.mark.skipif(missing, reason=f"the compiler: pip install 'fnn[{extra}]'")


on_tpu = installed("TPU v5e", "tpu")
on_each = pytest.mark.parametrize(
    "target",
    [pytest.param("TPU v5e", marks=on_tpu), pytest.param("H100", marks=installed("H100", "cuda"))],
)


def shapes(f, *args):
    return jax.eval_shape(f, *args)


LAYERS = cases.LAYERS | cases.ACTIVATIONS


@on_each
@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_compiles_both_ways(name, target):
    """On one chip no layer communicates, and none has a loop of unknown length."""
    layer, x = LAYERS[name]
    layer = at(layer)

    def both(params, x):
        y, residuals = layer.forward(params, x)
        return layer.backward(params, residuals, y)

    report = targets.compile_for(target, both, shapes(layer.init, KEY), x)
    assert report.fits
    # cuBLAS asks for 32 MiB to work in for a product in bfloat16.
    workspace = 2**25 if (name, target) == ("compute_in", "H100") else 0
    assert report.temp_bytes < workspace + 1e6
    assert not report.collectives
    assert all(loop.trips for loop in report.loops)


OPTIMIZERS = cases.OPTIMIZERS | cases.WRAPPERS


@on_each
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_compiles(name, target):
    optimizer = OPTIMIZERS[name].make(1e-3)
    params = {"W": jnp.ones((16, 8)), "b": jnp.ones(16)}
    state = shapes(optimizer.init, params)
    report = targets.compile_for(target, optimizer.update, state, params)
    assert report.fits
    assert not report.collectives
    assert not report.loops


STATISTICS = {
    "squared_norms": per_example.squared_norms,
    "gram": per_example.gram,
    "second_moment": per_example.second_moment,
    "clipped": lambda network, loss: per_example.clipped_value_and_grad(network, loss, 1.0),
    "ggn_diagonal": curvature.ggn_diagonal,
    "kronecker_factors": curvature.kronecker_factors,
}


@on_each
@pytest.mark.parametrize("name", STATISTICS)
def test_statistics_compile(name, target):
    """Without the gradients per example, which are 40 times the parameters here."""
    network = fnn.mlp((640, 320, 10))
    statistic = STATISTICS[name](network, fnn.softmax_cross_entropy)
    x, y = jnp.ones((40, 640)), jnp.ones(40, jnp.int32)
    params = shapes(network.init, KEY)
    report = targets.compile_for(target, statistic, params, x, y)
    assert report.fits
    assert report.temp_bytes < 5 * 4 * 640 * 320
    assert all(loop.trips for loop in report.loops)


def run(target, sizes=(64, 32, 10), batch=32, n=1437, epochs=2):
    network = fnn.mlp(sizes)
    train = fnn.make_train(network, fnn.softmax_cross_entropy, fnn.adam(1e-3), batch, epochs)
    data = jax.ShapeDtypeStruct((n, sizes[0]), jnp.float32), jax.ShapeDtypeStruct((n,), jnp.int32)
    return targets.compile_for(target, train, shapes(network.init, KEY), data, KEY)


@on_each
def test_a_whole_run_does_not_grow(target):
    """Two epochs of 44 full batches, and nothing of unknown length."""
    report = run(target)
    assert [loop.trips for loop in report.loops] == [2, 44]
    step = report.loops[1]
    assert sum(step.kernels.values()) <= {"TPU v5e": 16, "H100": 18}[target]
    assert report.temp_bytes < 3e6
    assert 0 < report.seconds < 0.01
    assert not report.collectives


@on_tpu
def test_twice_the_epochs_are_twice_the_time_and_flops():
    one, two = run("TPU v5e", epochs=1), run("TPU v5e", epochs=4)
    assert two.flops == 4 * one.flops
    assert two.seconds == pytest.approx(4 * one.seconds, rel=0.1)


@on_tpu
def test_what_does_not_fit_is_reported():
    big = jax.ShapeDtypeStruct((65536, 65536), jnp.float32)
    report = targets.compile_for("TPU v5e", lambda a: jnp.tanh(a @ a) @ a, big)
    assert not report.fits
    assert report.argument_bytes == 65536**2 * 4
    assert report.temp_bytes > 16 * 2**30
    assert "memory" in str(report)


WIDTH, BATCH, COPIES = 1024, 1024, 4


def sharded_step(options=None):
    """A step of repeat(fully_sharded(block)) on 16 chips, with these options of the compiler."""
    mesh = targets.mesh("TPU v5e:4x4")
    block = fnn.serial(fnn.dense(WIDTH, WIDTH), fnn.relu)
    network = fnn.repeat(fnn.parallel.fully_sharded(block, "data"), COPIES)
    optimizer = fnn.adam(1e-3)
    step = fnn.make_step(network, fnn.mse, optimizer, mesh=mesh, shard_params=True)
    init = lambda key: optimizer.init(network.init(key))
    split = fnn.parallel.shardings(init, mesh)
    like = lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s)
    state = jax.tree.map(like, shapes(init, KEY), split)
    rows = NamedSharding(mesh, PartitionSpec("data"))
    x = jax.ShapeDtypeStruct((BATCH, WIDTH), jnp.float32, sharding=rows)
    jitted = jax.jit(step, donate_argnums=0, compiler_options=options)
    return targets.compile_for("TPU v5e:4x4", jitted, state, (x, x))


@on_tpu
def test_a_fully_sharded_step_on_sixteen_chips():
    """Per copy a gather for forward, for backward and, perhaps as a sum, for b; and a sum."""
    report = sharded_step()
    whole = COPIES * (WIDTH * WIDTH + WIDTH) * 4
    assert report.argument_bytes < 3 * whole / 16 + 2 * BATCH * WIDTH * 4 / 16 + 1e6
    assert report.temp_bytes < whole
    assert 2 * COPIES <= report.collectives["all-gather"][0] <= 3 * COPIES
    assert report.collectives["all-reduce"][0] <= 2 * COPIES + 1
    assert report.flops == pytest.approx(6 * BATCH * WIDTH * WIDTH * COPIES / 16, rel=0.01)


@on_tpu
def test_an_option_of_the_compiler_gathers_the_next_copy_beside_this_one():
    """As docs/scale.md says; the loop's first turn has nothing to run beside."""
    plain, pipelined = sharded_step(), sharded_step({"xla_tpu_enable_ici_ag_pipelining": True})
    assert pipelined.overlapped["all-gather"] >= plain.overlapped["all-gather"] + COPIES - 1
    assert pipelined.collectives["all-gather"][1] == plain.collectives["all-gather"][1]


@on_tpu
def test_arguments_on_other_devices_are_refused():
    other = targets.mesh("TPU v5e:4x4")
    x = jax.ShapeDtypeStruct((16,), jnp.float32, sharding=NamedSharding(other, PartitionSpec()))
    with pytest.raises(ValueError, match="sharded over"):
        targets.compile_for("TPU v5e:2x4", jnp.sin, x)
    with pytest.raises(ValueError, match="16 devices"):
        targets.mesh("TPU v5e:4x4", (4, 2), ("data", "model"))
    with pytest.raises(ValueError, match="TPU v5e:3x5"):
        targets.mesh("TPU v5e:3x5")


@on_tpu
@pytest.mark.parametrize("platforms", [{"JAX_PLATFORMS": "cpu"}, {}])
def test_a_compilation_prints_nothing(platforms):
    """In a process of its own; without JAX_PLATFORMS too where nothing used JAX before."""
    program = (
        "import jax, jax.numpy as jnp; from fnn import targets; "
        "x = jax.ShapeDtypeStruct((8, 8), jnp.float32); "
        "assert targets.compile_for('TPU v5e', jnp.tanh, x).fits; assert jnp.ones(2).sum() == 2"
    )
    hidden = ("JAX_PLATFORMS", "TPU_SKIP_MDS_QUERY", "TPU_WORKER_HOSTNAMES", "TPU_ACCELERATOR_TYPE")
    kept = {name: value for name, value in os.environ.items() if name not in hidden}
    done = subprocess.run(
        [sys.executable, "-c", program], env=kept | platforms, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
