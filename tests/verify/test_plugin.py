"""`pytest --fnn-rules` and `verify.check_rules`: a right rule passes, a wrong one fails the run."""

import json
import subprocess
import sys
import types
from functools import partial
from importlib import metadata

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fnn import verify
from fnn.verify._search import MOST, checked, recording

PACKAGE = """
import jax, jax.numpy as jnp
from functools import partial

@jax.custom_vjp
def right(x, scale):
    return scale * jnp.sin(x)
right.defvjp(
    lambda x, scale: (right(x, scale), (x, scale)),
    lambda r, dy: (dy * r[1] * jnp.cos(r[0]), (dy * jnp.sin(r[0])).sum()))

@jax.custom_jvp
def wrong(x):
    return jnp.where(x > 0, x, 0)
wrong.defjvp(lambda p, t: (wrong(*p), jnp.where(p[0] >= 0, *t, 0)))

@partial(jax.custom_vjp, nondiff_argnums=(1,))
def power(x, n):
    return x**n
power.defvjp(lambda x, n: (x**n, x), lambda n, x, dy: (n * dy * x**(n - 1),))

@jax.custom_vjp
def never(x):
    return x
never.defvjp(lambda x: (x, None), lambda r, dy: (2 * dy,))

@jax.custom_vjp
def loose(x, width):
    return x / width
loose.defvjp(lambda x, w: (loose(x, w), w), lambda w, dy: (dy / w, None))

@jax.custom_vjp
def large(x):
    return x
large.defvjp(lambda x: (x, None), lambda r, dy: (dy,))
"""
TESTS = """
import jax, jax.numpy as jnp
import theirs

def test_all():
    x = jnp.array([0.5, -1.5, 2.0])
    jax.jit(jax.grad(lambda x: theirs.right(x, scale=0.5).sum()))(x)
    jax.vmap(theirs.power, (0, None))(x, 3)
    theirs.large(jnp.zeros(20_000))
    jax.grad(lambda x: jax.lax.scan(lambda c, x: (c, theirs.wrong(x)), 0.0, x)[1].sum())(x)
    jax.grad(lambda x: theirs.loose(x, jnp.array(2.0)).sum())(x)
"""


@pytest.fixture
def project(tmp_path):
    (tmp_path / "theirs.py").write_text(PACKAGE)
    (tmp_path / "test_theirs.py").write_text(TESTS)
    return tmp_path


def run(project, *options):
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"]
    if not metadata.entry_points(group="pytest11", name="fnn"):  # as where fnn is not installed
        command += ["-p", "fnn.pytest_plugin"]
    where = {"cwd": project, "capture_output": True, "text": True, "check": False}
    return subprocess.run([*command, *options], **where)


@pytest.mark.long
def test_the_rules_that_the_tests_run_are_checked(project):
    files = ("--fnn-rules-json", "found.json", "--junitxml", "found.xml")
    done = run(project, "--fnn-rules", "theirs", *files)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "1 failed, 1 passed" in done.stdout
    assert "search_custom: fail" in (project / "found.xml").read_text()
    found = json.loads((project / "found.json").read_text())
    rows = {row["name"]: row for row in found["rules"]}
    verdicts = {name.removeprefix("theirs."): row["verdict"] for name, row in rows.items()}
    assert verdicts == {"right": "pass", "wrong": "fail", "power": "pass", "large": "skipped",
                        "loose": "warning"}  # fmt: skip
    assert rows["theirs.loose"]["differentiated"] == ["args.0"]
    assert "never differentiated here: args.1" in rows["theirs.loose"]["note"]
    assert "20" in rows["theirs.large"]["note"] or "entries" in rows["theirs.large"]["note"]
    assert "FAILED fnn-rules::theirs.wrong" in done.stdout
    assert found["verdict"] == "fail"


@pytest.mark.long
def test_nothing_happens_unless_asked(project):
    done = run(project)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "rules" not in done.stdout
    done = run(project, "--fnn-rules", "another")
    assert done.returncode == 0
    assert "no rule was called" in done.stdout


def test_few_calls_of_a_loop_are_kept():
    rule = jax.custom_jvp(lambda x: 2 * x)
    rule.defjvp(lambda p, t: (rule(*p), 2 * t[0]))
    with recording(__name__) as calls:
        jax.block_until_ready(jax.lax.map(rule, jnp.arange(50.0)))
        jax.effects_barrier()
        rule(1.0)
    rule(2.0)
    assert [len(kept) for kept, _ in calls.values()] == [MOST]


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def product(x, w, n):
    return jnp.sin(x) * w["a"] ** n


@product.defjvp
def product_jvp(n, primals, tangents):
    (x, w), (dx, dw) = primals, tangents
    by_a = n * w["a"] ** (n - 1) * dw["a"]
    return product(x, w, n), jnp.cos(x) * w["a"] ** n * dx + jnp.sin(x) * by_a


X, W = jnp.array([0.5, -1.0]), {"a": jnp.array([2.0, 0.7])}
TOTAL = lambda x, w: product(x, w, 2).sum()


def looped(x):
    step = jax.checkpoint(lambda c, _: (product(c, W, 2), None))
    return jax.lax.scan(step, x, None, 2)[0]


DIFFERENTIATED = {
    "nothing": (lambda: jax.jit(lambda x, w: TOTAL(x, w))(X, W), set()),
    "x": (lambda: jax.grad(TOTAL)(X, W), {"args.0"}),
    "w in jit": (lambda: jax.jit(jax.grad(TOTAL, 1))(X, W), {"args.1.a"}),
    "w of jit": (lambda: jax.grad(jax.jit(lambda x, w: TOTAL(x, w)), 1)(X, W), {"args.1.a"}),
    "both, vmap": (
        lambda: jax.vmap(jax.grad(TOTAL, (0, 1)))(X[None], {"a": W["a"][None]}),
        {"args.0", "args.1.a"},
    ),
    "x, forward, twice": (lambda: jax.hessian(TOTAL)(X, W), {"args.0"}),
    "x by w": (lambda: jax.jacfwd(jax.grad(TOTAL), 1)(X, W), {"args.0", "args.1.a"}),
    "scan, remat": (lambda: jax.grad(lambda x: looped(x).sum())(X), {"args.0"}),
    "stopped": (lambda: jax.grad(lambda x: TOTAL(jax.lax.stop_gradient(x), W))(X), set()),
}  # fmt: skip


@pytest.mark.parametrize(("run", "by"), DIFFERENTIATED.values(), ids=DIFFERENTIATED)
def test_what_is_differentiated_is_recorded_and_nothing_changes(run, by):
    expected = run()
    with recording(__name__) as calls:
        got = run()
    ((kept, seen),) = calls.values()
    assert set().union(*seen.values()) == by
    assert kept[0][1][2] == 2
    chex.assert_trees_all_equal(got, expected)


def test_no_tracer_leaks():
    with jax.checking_leaks(), recording(__name__):
        jax.jit(jax.grad(lambda x: TOTAL(x, W)))(X)


def test_a_key_is_recorded():
    noisy = jax.custom_jvp(lambda key, x: x * jax.random.normal(key, x.shape))
    noisy.defjvp(lambda p, t: (noisy(*p), noisy(p[0], t[1])))
    with recording(__name__) as calls:
        noisy(jax.random.key(0), X)
    assert [len(kept) for kept, _ in calls.values()] == [1]


def test_what_is_differentiated_decides_between_fail_and_warning():
    """The rule is wrong by x where x < 0, and everywhere by w."""
    f = jax.custom_vjp(lambda x, w: jnp.abs(x) * w)
    f.defvjp(lambda x, w: (f(x, w), (x, w)), lambda r, dy: (dy * r[1], 2 * dy * abs(r[0])))
    one, other = np.array([0.5], np.float32), np.array([2.0], np.float32)
    verdicts = []
    for by in ({"args.0"}, {"args.1"}, set()):
        rules = checked({"f": ([(f, (one, other))], {None: by})}, 60)
        verdicts.append(rules.verdict)
        rules.raise_for_verdict() if rules.verdict == "warning" else None
    assert verdicts == ["fail", "fail", "warning"]


def test_workers_are_refused(project):
    pytest.importorskip("xdist")
    done = run(project, "--fnn-rules", "theirs", "-n", "2")
    assert done.returncode == 4
    assert "expected -n0" in done.stderr + done.stdout


@pytest.mark.long
def test_rules_of_a_module():
    theirs = types.ModuleType("theirs")
    exec(PACKAGE, vars(theirs))
    x = np.array([0.5, -1.5], np.float32)
    inputs = {"right": (x, 2.0), "wrong": (x,), "power": (x, 2), "loose": (x, x)}
    found = verify.check_rules(theirs, inputs)
    assert {row.name: row.verdict for row in found.rows} == {
        "right": "pass", "wrong": "fail", "power": "pass", "never": "skipped", "large": "skipped",
        "loose": "fail",
    }  # fmt: skip
    with pytest.raises(AssertionError, match="wrong"):
        found.raise_for_verdict()
    late = verify.check_rules(theirs, {"wrong": (x,)}, seconds=0)
    assert {row.note for row in late.rows} == {"no time is left"}
