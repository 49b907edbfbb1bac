"""`pytest --fnn-rules` and `verify.check_rules`: a right rule passes, a wrong one fails the run."""

import json
import subprocess
import sys
import types
from importlib import metadata

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fnn import verify
from fnn.verify._search import MOST, recording

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
    jax.lax.scan(lambda c, x: (c, theirs.wrong(x)), 0.0, x)
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


def test_the_rules_that_the_tests_run_are_checked(project):
    files = ("--fnn-rules-json", "found.json", "--junitxml", "found.xml")
    done = run(project, "--fnn-rules", "theirs", *files)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "1 failed, 1 passed" in done.stdout
    assert "search_custom: fail" in (project / "found.xml").read_text()
    found = json.loads((project / "found.json").read_text())
    rows = {row["name"]: row for row in found["rules"]}
    verdicts = {name.removeprefix("theirs."): row["verdict"] for name, row in rows.items()}
    assert verdicts == {"right": "pass", "wrong": "fail", "power": "pass", "large": "skipped"}
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
    assert [len(kept) for kept in calls.values()] == [MOST]
    before = {name: len(kept) for name, kept in calls.items()}
    rule(1.0)
    assert before == {name: len(kept) for name, kept in calls.items()}


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
    found = verify.check_rules(theirs, {"right": (x, 2.0), "wrong": (x,), "power": (x, 2)})
    assert {row.name: row.verdict for row in found.rows} == {
        "right": "pass", "wrong": "fail", "power": "pass", "never": "skipped", "large": "skipped"
    }  # fmt: skip
    with pytest.raises(AssertionError, match="wrong"):
        found.raise_for_verdict()
    late = verify.check_rules(theirs, {"wrong": (x,)}, seconds=0)
    assert {row.note for row in late.rows} == {"no time is left"}
