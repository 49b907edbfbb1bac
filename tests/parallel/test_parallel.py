"""The same network on a mesh of devices: `on_devices.py`, run on 8 virtual ones."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from benchmarks import interconnect, scale
from fnn.training.mesh import Devices

HERE = Path(__file__).parent


def on_devices(selected):
    """The tests that pytest selects in `on_devices.py`, in a process with 8 devices."""
    command = [sys.executable, "-m", "pytest", "-n", "0", "-q", "-m", selected, "on_devices.py"]
    environment = os.environ | {"FNN_TEST_DEVICES": "8"}
    done = subprocess.run(command, cwd=HERE, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.long
def test_on_eight_devices():
    on_devices("not long")


@pytest.mark.long
def test_on_eight_devices_at_length():
    on_devices("long")


def test_bytes_are_read_from_a_compiled_program():
    program = """
      %a = f32[8,16]{1,0} all-gather(%p), replica_groups={{0,1,2,3}}, dimensions={1}
      %b = (f32[16]{0}, f32[]) all-reduce(%q, %r), replica_groups=[2,4]<=[8], to_apply=%add
      %c = f32[2]{0} reduce-scatter(%s), replica_groups=[1,8]<=[8], dimensions={0}
      %d = f32[2]{0} all-reduce(%s), replica_groups=[8,1]<=[8], to_apply=%add
      %e = f32[4]{0} all-reduce(%s), replica_groups=mesh['a'=2,'b'=4] {'b'}, to_apply=%add
    """
    expected = [("all-gather", 3 / 4 * 512), ("all-reduce", 6 / 4 * 68), ("reduce-scatter", 56)]
    expected.append(("all-reduce", 6 / 4 * 16))
    assert scale.collectives(program) == expected


def test_the_model_on_paper_counts_what_the_programs_send():
    """All but what the first of four layers saves, whose input needs no gradient."""
    saved = {"replicated": 0, "fully sharded": 1 / 12, "tensor": 1 / 4}
    for row in interconnect.counted(quick=True):
        model, program, share = row["model"], row["lowered"], 1 - saved[row["method"]]
        assert program["collectives"] == share * model["collectives"]
        assert program["sent"] == pytest.approx(share * model["sent"], rel=1e-3)


def test_no_mesh_adds_no_operation():
    """What `replicated` and `fully_sharded` make is outside of a mesh the layer's own program."""
    x, key = jnp.ones((3, 4)), jax.random.key(0)
    layer = fnn.dense(4, 2)
    programs = [
        jax.jit(fnn.value_and_grad(network, fnn.mse)).lower(layer.init(key), x, x[:, :2]).as_text()
        for network in (
            layer,
            fnn.parallel.replicated(layer, "data"),
            fnn.parallel.fully_sharded(layer, "data"),
        )
    ]
    assert programs[0] == programs[1] == programs[2]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"shard_params": True}, ValueError, "expected a mesh with shard_params=True"),
        ({"mesh": ("data",)}, TypeError, "expected a jax.sharding.Mesh, got tuple"),
        ({"mesh": jax.make_mesh((1,), ("x",))}, ValueError, "axes 'data' and, if any, 'model'"),
        ({"mesh": jax.make_mesh((1, 1), ("data", "x"))}, ValueError, "axes 'data'"),
    ],
)
def test_meshes_that_training_refuses(options, error, message):
    for make in (fnn.make_step, fnn.make_epoch, fnn.make_train):
        sizes = {fnn.make_step: (), fnn.make_epoch: (2,), fnn.make_train: (2, 1)}[make]
        with pytest.raises(error, match=message):
            make(fnn.dense(2, 1), fnn.mse, fnn.sgd(0.1), *sizes, **options)
    data, options = (jnp.ones((4, 2)), jnp.ones((4, 1))), options | {"key": jax.random.key(0)}
    with pytest.raises(error, match=f"fit: .*{message}"):
        fnn.fit(fnn.dense(2, 1), fnn.mse, fnn.sgd(0.1), data, epochs=1, batch_size=2, **options)


def test_create_names_what_is_no_mesh():
    """Such as the key, where the two are swapped."""
    mesh, key = jax.make_mesh((1,), ("data",)), jax.random.key(0)
    message = r"create: expected \(init, mesh, \.\.\.\) with a jax.sharding.Mesh, got PRNGKeyArray"
    with pytest.raises(TypeError, match=message):
        fnn.parallel.create(fnn.dense(2, 1).init, key, mesh)
    with pytest.raises(TypeError, match="specs: expected .*, got int"):
        fnn.parallel.specs(fnn.dense(2, 1).init, 8)


def test_a_batch_that_the_devices_do_not_divide_is_refused():
    mesh = jax.make_mesh((2,), ("data",))
    assert Devices.of("test", mesh, False).number == 2
    epoch = fnn.make_epoch(fnn.dense(2, 1), fnn.mse, fnn.sgd(0.1), 3, mesh=mesh)
    state = fnn.sgd(0.1).init(fnn.dense(2, 1).init(jax.random.key(0)))
    with pytest.raises(ValueError, match="divisible by the number of devices, 2, or equal .*, 5"):
        epoch(state, (jnp.ones((5, 2)), jnp.ones((5, 1))), jax.random.key(0))


def test_a_float64_run_is_weighted_in_float64():
    """Where the devices don't divide the examples: weights of float32 would be off by 1e-8."""
    with jax.enable_x64(True):
        x = jnp.asarray(np.random.default_rng(0).normal(size=(7, 2)), jnp.float64)
        layer, optimizer = fnn.dense(2, 1), fnn.sgd(0.1)
        params = jax.tree.map(lambda p: p.astype(jnp.float64), layer.init(jax.random.key(0)))
        mesh = jax.make_mesh((2,), ("data",))
        on_two, on_one = (
            jax.jit(fnn.make_step(layer, fnn.mse, optimizer, mesh=mesh))(
                optimizer.init(params), (x, x[:, :1])
            )
            for mesh in (mesh, None)
        )
        for a, b in zip(jax.tree.leaves(on_two), jax.tree.leaves(on_one), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-14, atol=1e-15)
