"""What is read from programs that the compilers of a TPU v5e and an H100 made, kept beside this."""

import json
from importlib import util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn import targets
from fnn.targets.devices import DEVICES, Target
from fnn.targets.flops import products
from fnn.targets.program import Program
from fnn.targets.report import Report
from fnn.training.shuffle import permutation

HERE = Path(__file__).parent
KINDS = {"v5e": "TPU v5e", "h100": "H100"}


def program(name, change=lambda text: text):
    kind = name.split("_")[0]
    return Program(change((HERE / f"{name}.txt").read_text()), DEVICES[KINDS[kind]])


def test_the_loops_of_a_tpu_program():
    """Ten iterations inside three, from the counters: the TPU compiler gives no trip counts."""
    outer, inner = program("v5e_loops").loops
    assert (outer.trips, inner.trips) == (3, 10)
    assert inner.kernels == {"dynamic-update-slice": 1, "fusion": 1, "copy": 1}
    assert inner.seconds == pytest.approx((768 + 32) / DEVICES["TPU v5e"].clock)
    assert 10 * inner.seconds <= outer.seconds < 10.5 * inner.seconds


def test_the_loops_of_a_gpu_program():
    outer, inner = program("h100_loops").loops
    assert (outer.trips, inner.trips) == (3, 10)
    assert outer.kernels == {"fusion": 3}
    assert inner.kernels == {"fusion": 6}


@pytest.mark.parametrize("name", ["v5e_loops", "h100_loops"])
def test_a_program_takes_its_loops_and_what_is_around_them(name):
    found = program(name)
    around = sum(i.seconds(found.device) or 0 for i in found._inside(found.entry) if i.is_kernel)
    total = 3 * found.loops[0].seconds + around
    assert found.seconds(found.entry) == pytest.approx(total)


def test_the_time_of_a_loop_of_unknown_length_is_not_guessed():
    unknown = program("v5e_loops", lambda text: text.replace("direction=LT", "direction=NE"))
    assert [loop.trips for loop in unknown.loops] == [None, None]
    assert unknown.loops[1].seconds is not None
    assert unknown.loops[0].seconds is None
    assert unknown.seconds(unknown.entry) is None


def test_counters_that_start_elsewhere_or_grow_by_more():
    first = lambda text: text.replace("constant(10)", "constant(25)")
    assert program("v5e_loops", first).loops[1].trips == 25
    name = "sunk = s32[]{:T(128)} constant(1)"
    assert name in (HERE / "v5e_loops.txt").read_text()
    by_three = lambda text: text.replace(name, name.replace("(1)", "(3)"))
    assert program("v5e_loops", by_three).loops[1].trips == 4


def test_a_product_on_a_gpu_has_the_time_of_its_tensor_cores():
    line = (
        '  %gemm = bf16[8192,8192]{1,0} fusion(%a, %b), kind=kCustom, backend_config={"reification_'
        'cost":[{"exec_time_us":33821.2,"compute_time_us":1,"memory_access_time_us":1,"name":""},'
        '{"exec_time_us":31206,"compute_time_us":1,"memory_access_time_us":1,"name":"experimental-'
        'gemm-cost-model"},{"exec_time_us":1409.28,"compute_time_us":0,"name":"sol"}]}'
    )
    text = lambda line: f"ENTRY %main (a: bf16[2]) -> bf16[2] {{\n{line}\n}}\n"
    found = Program(text(line), DEVICES["H100"])
    assert found.seconds("main") == pytest.approx(1409.28e-6)
    other = Program(text(line.replace("experimental-gemm-cost-model", "x")), DEVICES["H100"])
    assert other.seconds("main") == pytest.approx(33821.2e-6)


@pytest.mark.parametrize(("name", "width", "beside"), [("v5e_mesh", 2, 0), ("h100_mesh", 4, 6)])
def test_collectives_count_with_their_loop(name, width, beside):
    """Six gathers of (2048, 2048) among four, one sum; on a GPU they are started before the turn's
    other kernels."""
    found = program(name)
    gathered = 6 * 3 / 4 * 2048 * 2048 * width
    summed = 2 * 3 / 4 * 2048 * 4
    assert found.collectives == {"all-gather": (6, gathered), "all-reduce": (1, summed)}
    assert found.overlapped["all-gather"] == beside


@pytest.mark.parametrize("number", [1, 2])
def test_collectives_carried_through_fusions_count_once_and_run_beside_them(number):
    """As a TPU's compiler writes them: three fusions, whose gathers have one chain. Different
    collectives may have one channel."""
    parts = fusions = ""
    for chain in map(str, range(number)):
        gather = "  %g = bf16[64]{0} all-gather(%p), channel_id=1, replica_groups={{0,1,2,3}}"
        gather += f', frontend_attributes={{chain_id="{chain}"}}' if number > 1 else ""
        names = [f"{name}{chain}" for name in ("start", "carry", "done")]
        parts += "".join(
            f"%{name} (p: bf16[16]) -> bf16[64] {{\n{gather}\n}}\n\n" for name in names
        )
        fusions += "".join(f"  %f.{name} = bf16[64] fusion(%x), calls=%{name}\n" for name in names)
    text = f"{parts}ENTRY %main (x: bf16[16]) -> bf16[64] {{\n{fusions}}}\n"
    found = Program(text, DEVICES["TPU v5e"])
    assert found.collectives == {"all-gather": (number, number * 96.0)}
    assert found.overlapped == {"all-gather": number}


def test_flops_are_those_of_products_with_their_loops():
    def f(x, w):
        y, _ = jax.lax.scan(lambda y, _: (y @ w, None), x, length=5)
        return jax.lax.cond(y[0, 0] > 0, lambda y: y @ w, lambda y: y, y)

    jaxpr = jax.make_jaxpr(f)(jnp.ones((2, 3)), jnp.ones((3, 3)))
    assert products(jaxpr, 1) == 6 * 2 * 2 * 3 * 3
    assert products(jaxpr, 4) == 3 * 2 * 3 * 3
    layer = fnn.conv2d(2, 5)
    params, x = layer.init(jax.random.key(0)), jnp.ones((1, 8, 8, 2))
    jaxpr = jax.make_jaxpr(lambda p, x: layer.forward(p, x)[0])(params, x)
    assert products(jaxpr, 1) == 2 * 8 * 8 * 5 * 3 * 3 * 2


def test_flops_inside_of_shard_map_are_one_device_s():
    mesh = jax.sharding.Mesh(jax.devices()[:1], ("data",))
    f = jax.shard_map(
        lambda x, w: x @ w, mesh=mesh, in_specs=(jax.P("data"), jax.P()), out_specs=jax.P("data")
    )
    assert products(jax.make_jaxpr(f)(jnp.ones((2, 3)), jnp.ones((3, 4))), 8) == 2 * 2 * 3 * 4


@pytest.mark.parametrize(
    "target",
    ["H300", "TPU v5e:4", "TPU v5e:2x2x2", "TPU v5p:2x2", "TPU v5e:0x4", "H100:2x4", "H100:x", ""],
)
def test_an_unknown_target_is_refused_before_a_compiler_is_looked_for(target):
    with pytest.raises(ValueError, match="target: expected"):
        targets.compile_for(target, jnp.sin, 1.0)


def test_names():
    assert {"TPU v4", "TPU v5e", "TPU v5p", "TPU v6e", "TPU7x", "H100", "B200"} <= set(
        targets.targets()
    )
    assert Target.parse("TPU v5p:16x16x16").topology == "16x16x16"
    assert Target.parse("H100").topology == ""


@pytest.mark.parametrize(("target", "extra"), [("TPU v5e", "tpu"), ("H100", "cuda")])
def test_a_compiler_that_is_not_installed_is_answered_by_the_command(target, extra, monkeypatch):
    monkeypatch.setattr(util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=rf"install 'fnn\[{extra}\]'"):
        targets.compile_for(target, jnp.sin, 1.0)
    assert not any(targets.targets().values())


def test_the_report_says_what_is_modelled():
    found = program("v5e_mesh")
    report = Report(
        "TPU v5e:2x2", 4, True, 10**6, 0, 10**3, 2.0**34, 1e9, found.kernels(found.entry),
        tuple(found.loops), found.collectives, found.overlapped, 1e-3, 0.5, "HloModule",
    )  # fmt: skip
    shown = str(report)
    assert "1,000.00 us modelled, 50.0% of the bfloat16 peak" in shown
    assert "measured" not in shown
    assert "all-gather          6, 37.7 MB sent, 0 overlap with kernels" in shown
    told = json.loads(report.to_json())
    assert told["modelled_seconds"] == 1e-3
    assert told["loops"][0]["trips"] == 6
    assert "text" not in told


def test_clocks_are_near_the_published_ones():
    """1,050 MHz in Jouppi et al. 2023, Table 4, for the v4."""
    assert DEVICES["TPU v4"].clock == pytest.approx(1.05e9, rel=0.01)
    assert all(1e9 < device.clock < 2.5e9 for device in DEVICES.values())
    assert np.isfinite([device.bandwidth for device in DEVICES.values()]).all()


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_an_epoch_s_order_is_sorted_everywhere_but_on_a_cpu(platform):
    """There the cipher's loop of unknown length would make the host wait."""
    traced = jax.jit(permutation, static_argnums=1).trace(jax.random.key(0), 1000)
    lowered = traced.lower(lowering_platforms=(platform,)).as_text()
    assert ("stablehlo.sort" in lowered) == (platform != "cpu")
