"""The benchmarks' own arithmetic, on planted numbers; no test looks at how long anything takes.
And the twins of the pages' programs print what the pages show."""

import contextlib
import io
import json
import os
import time
import warnings
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from click.testing import CliRunner
from test_docs import agree

from benchmarks import compare, lines, power, throughput
from benchmarks.__main__ import main


@pytest.mark.long
@pytest.mark.parametrize("name", list(lines.pairs()))
def test_a_twin_prints_what_the_page_shows(name, tmp_path, monkeypatch):
    """The same words, and numbers to a quarter: the libraries draw other first parameters."""
    pytest.importorskip("equinox")
    monkeypatch.chdir(tmp_path)
    program, printed = lines.pairs()[name], io.StringIO()
    with (
        jax.numpy_dtype_promotion("standard"),
        warnings.catch_warnings(),
        contextlib.redirect_stdout(printed),
    ):
        warnings.simplefilter("ignore")
        exec(compile(program.theirs, name, "exec"), {"__name__": "twin"})
    assert agree(printed.getvalue(), program.shown, rtol=0.25), printed.getvalue()


SAME = {"ppo", "ctc", "quantise", "optimizer"}
"""Recipes a part of which, such as an environment, is the same in both; the page says so."""


@pytest.mark.parametrize("name", [*lines.TWINS["recipes"], *lines.TWINS["transformer"]])
def test_a_recipe_is_shorter_than_its_twin(name):
    ours, theirs, _ = lines.pairs()[name]
    assert lines.lines(ours) <= (0.75 if name in SAME else 0.6) * lines.lines(theirs)


@pytest.mark.parametrize("page", ["examples", "experiments", "recipes"])
def test_every_program_of_these_pages_has_a_twin(page):
    assert len(lines.programs(page)) == len(lines.TWINS[page])


@pytest.fixture(scope="module", autouse=True)
def as_many_cores_as_devices():
    """The command makes each core a device, which cannot change once JAX has begun."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "cpu_count", lambda: jax.config.jax_num_cpu_devices)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What `throughput` leaves of one network, on a machine that draws 50 W."""
    out = tmp_path_factory.mktemp("results")
    sizes = ["--widths", "64", "--batches", "32", "--dtypes", "float32"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(throughput, "PROGRAM", 1e-4)
        patch.setattr(throughput, "METERED", 0.0)
        patch.setattr(power, "meter", lambda device: lambda: lambda: 50.0)
        arguments = ["throughput", "--quick", *sizes, "--out", str(out)]
        CliRunner().invoke(main, arguments, catch_exceptions=False)
    return out


@pytest.fixture(scope="module")
def cell(folder):
    return json.loads((folder / "throughput.json").read_text())["cells"][0]


def test_what_a_run_leaves_says_what_it_ran_on_and_agrees_with_itself(folder):
    found = json.loads((folder / "throughput.json").read_text())
    assert found["machine"]["device"] == jax.devices()[0].device_kind
    assert found["machine"]["versions"]["jax"] == jax.__version__
    assert found["threads"] > 0
    assert "float32, 64 wide, batch 32" in (folder / "throughput.txt").read_text()
    assert (folder / "throughput.png").stat().st_size > 0
    text = compare.compare(folder / "throughput.json", folder / "throughput.json")
    assert text.count(" 1.000 (") == 2


def test_the_formulas_flops_are_those_of_the_compiled_step(cell):
    # What is not a product, such as Adam, adds a little.
    assert 0 < cell["flops_xla"] / cell["flops"] - 1 < 0.3


def test_the_rates_are_those_of_the_median_step(cell):
    step = cell["step"]["median"]
    assert step == np.median(cell["step"]["values"])
    assert cell["examples_per_second"] == pytest.approx(32 / step)
    assert cell["tflops"] == pytest.approx(8 * 2 * 32 * 64**2 / step / 1e12)
    weights = 3 * (64 + 1) * 64
    moved = 8 * (2 * 32 * 64 + 64**2) * 4 + 28 * weights
    assert cell["gigabytes_per_second"] == pytest.approx(moved / step / 1e9)
    assert cell["joules_per_example"] == pytest.approx(50 * step / 32)
    for share, rate, peak in [
        ("share_of_products", cell["flops"] / 1e12, "peak_tflops"),
        ("share_of_copies", cell["bytes"] / 1e9, "peak_gigabytes_per_second"),
    ]:
        by_round = rate / np.array(cell["step"]["values"]) / np.array(cell[peak]["values"])
        np.testing.assert_allclose(cell[share]["values"], by_round)


@pytest.mark.parametrize(("dtype", "kept"), [("bfloat16", "float32"), ("float64", "float64")])
def test_a_run_trains_in_its_dtype_and_goes_on_where_it_ended(dtype, kept):
    with jax.enable_x64(dtype == "float64"):
        train, step = throughput.training(8, 4, jnp.dtype(dtype), steps=2, epochs=3)
        losses = [float(train()) for _ in range(10)]
    assert losses[-1] < losses[0]
    state, _ = step.out_info
    assert {leaf.dtype for leaf in jax.tree.leaves((state.params, state.m))} == {jnp.dtype(kept)}
    assert ("bf16" in step.as_text()) == (dtype == "bfloat16")


def measurement(step, share):
    """What `throughput` writes, for one network."""
    found = {
        "dtype": "float32", "width": 128, "batch": 32, "examples_per_second": 32 / np.median(step),
        "step": {"values": step}, "joules_per_example": None, "peak_tflops": {"median": 1.0},
        "share_of_products": {"values": share, "median": float(np.median(share))},
    }  # fmt: skip
    return {"machine": {"device": "a", "versions": {"jax": "1", "fnn": "1"}}, "cells": [found]}


def test_two_files_are_set_side_by_side(tmp_path):
    rng = np.random.default_rng(0)
    slow, fast = (rng.normal(mean, 0.05, 20).tolist() for mean in (2.0, 1.0))
    files = [tmp_path / name for name in ("a.json", "b.json")]
    first, second = measurement(slow, [0.4] * 20), measurement(fast, [0.6] * 20)
    second["machine"]["versions"]["jax"] = "2"
    second["cells"].append(second["cells"][0] | {"width": 512})
    for file, found in zip(files, (first, second), strict=True):
        file.write_text(json.dumps(found))
    done = CliRunner().invoke(main, ["compare", *map(str, files)])
    assert done.exit_code == 0, done.output
    assert "jax: 1 | 2" in done.output
    assert "fnn: 1" not in done.output
    ratio, low, high = compare.interval(fast, slow)
    assert 1.8 < low < ratio < high < 2.2
    assert f"{ratio:.3f} ({low:.3f} to {high:.3f})" in done.output
    assert "1.500 (1.500 to 1.500)" in done.output  # of the shares
    assert "only in B: float32, 512, 32" in done.output
    files[1].write_text("{}")
    refused = CliRunner().invoke(main, ["compare", *map(str, files)])
    assert refused.exit_code == 2
    assert "expected a file of `throughput`, got KeyError" in refused.output


def test_noise_alone_is_no_difference():
    rng = np.random.default_rng(1)
    inside = [
        low < 1 < high
        for _ in range(40)
        for _, low, high in [compare.interval(*rng.normal(1, 0.1, (2, 20)).tolist())]
    ]
    assert sum(inside) >= 34


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--widths", "128,0"], "expected positive integers between commas, got '128,0'"),
        (["--batches", "all"], "expected positive integers between commas, got 'all'"),
        (["--dtypes", "int8"], "expected some of float16, bfloat16, float32, float64"),
    ],
)
def test_sizes_that_cannot_be_measured_are_refused(option, message):
    done = CliRunner().invoke(main, ["throughput", *option])
    assert done.exit_code == 2
    assert message in done.output


def test_options_reach_the_parts(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(
        "benchmarks.__main__.measure", lambda *a, **sizes: calls.append((*a, sizes))
    )
    sizes = ["--widths", "8,16", "--batches", "4", "--dtypes", "float32"]
    for arguments in (
        ["--quick", "lines", "throughput", *sizes],
        ["lines", "--out", str(tmp_path)],
        [],
    ):
        assert CliRunner().invoke(main, arguments).exit_code == 0
    expected = {"widths": (8, 16), "batches": (4,), "dtypes": ("float32",)}
    assert calls[0][:2] == ("lines", True)
    assert (calls[1][0], calls[1][1], calls[1][3]) == ("throughput", True, expected)
    assert calls[2] == ("lines", False, tmp_path, {})
    assert len(calls) > 10
    assert "throughput" in [call[0] for call in calls[3:]]


def test_a_packages_counters_are_added_and_may_start_again(tmp_path, monkeypatch):
    assert power.rapl(tmp_path) is None
    for i, (energy, full) in enumerate([(1_000_000, 9_999_999), (9_000_000, 9_999_999)]):
        zone = tmp_path / f"intel-rapl:{i}"
        zone.mkdir()
        (zone / "energy_uj").write_text(f"{energy}\n")
        (zone / "max_energy_range_uj").write_text(f"{full}\n")
    clock = SimpleNamespace(perf_counter=iter([0.0, 2.0]).__next__)
    monkeypatch.setattr(power, "time", clock)
    stop = power.rapl(tmp_path)()
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("3000000\n")
    (tmp_path / "intel-rapl:1" / "energy_uj").write_text("2000000\n")
    assert stop() == 2.5  # 2 J and 3 J, in 2 s


@pytest.mark.parametrize(("printed", "expected"), [(r"100.5\n200.5\n", 150.5), (r"[N/A]\n", None)])
def test_a_gpus_power_is_the_mean_of_what_its_driver_prints(
    printed, expected, tmp_path, monkeypatch
):
    tool, called = tmp_path / "nvidia-smi", tmp_path / "called"
    tool.write_text(f"#!/bin/sh\nprintf '{printed}'\necho $1 > {called}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    stop = power.meter(SimpleNamespace(platform="gpu", local_hardware_id=3))()
    while not (called.exists() and called.read_text()):
        time.sleep(0.01)
    assert stop() == expected
    assert called.read_text() == "--id=3\n"
    monkeypatch.setenv("PATH", "")
    assert power.meter(SimpleNamespace(platform="gpu", local_hardware_id=0)) is None
    assert power.watts(None, lambda: None, 0.0) is None
