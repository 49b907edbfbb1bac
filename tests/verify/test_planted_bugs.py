"""Every planted bug fails the checker, at every scale of the loss; the code without it passes."""

import jax
import jax.numpy as jnp
import pytest
from bugs import GRADIENT_BUGS, RIGHT_UPDATES, SETTINGS, UPDATE_BUGS, Steps, optimizer
from cases import OPTIMIZERS
from wild_bugs import WILD

from fnn import verify

SCALES = (1e-4, 1.0, 1e4)
# A bug that can be anywhere is planted in one of two networks, in turn.
PLANTED = [
    (s, bug)
    for i, bug in enumerate(GRADIENT_BUGS)
    for s in (SETTINGS if bug.where else [SETTINGS[i % 2]])
    if bug.where in s.name
]
RULES = {case.name: case.rule for case in OPTIMIZERS}
PARAMS = {"W": jax.random.normal(jax.random.key(0), (4, 3)), "b": jnp.array([0.5, 0.0, -1.0])}


def test_there_are_enough():
    assert len({bug.kind for _, bug in PLANTED} | {bug.kind for bug in UPDATE_BUGS}) >= 30
    assert len(PLANTED) + len(UPDATE_BUGS) >= 60


@pytest.mark.long
@pytest.mark.parametrize("setting", SETTINGS, ids=lambda s: s.name)
def test_the_code_without_a_bug_passes(setting):
    f = setting.value_and_grad(Steps())
    params, x, y = setting.data()
    for scale in SCALES:
        report = verify.check_gradients(f, setting.objective, params, x, y, jnp.asarray(scale))
        report.raise_for_verdict()


@pytest.mark.long
@pytest.mark.parametrize(
    ("setting", "bug"), PLANTED, ids=[f"{bug.kind}-{s.name}" for s, bug in PLANTED]
)
def test_a_gradient_bug_fails_at_every_scale(setting, bug):
    f = setting.value_and_grad(bug.steps)
    params, x, y = setting.data()
    for scale in SCALES:
        report = verify.check_gradients(f, setting.objective, params, x, y, jnp.asarray(scale))
        assert report.verdict == "fail", f"{bug.kind} at {scale}\n{report}"
        assert max(map(len, str(report).splitlines())) <= 100


@pytest.mark.parametrize("bug", RIGHT_UPDATES, ids=lambda b: b.kind)
def test_an_update_without_a_bug_passes(bug):
    verify.check_optimizer(optimizer(bug.wrong), RULES[bug.rule], PARAMS).raise_for_verdict()


@pytest.mark.parametrize("bug", UPDATE_BUGS, ids=lambda b: b.kind)
def test_an_update_bug_fails(bug):
    report = verify.check_optimizer(optimizer(bug.wrong), RULES[bug.rule], PARAMS)
    assert report.verdict == "fail", str(report)
    assert max(map(len, str(report).splitlines())) <= 100


@pytest.mark.long
@pytest.mark.parametrize("bug", WILD.values(), ids=WILD)
def test_a_bug_from_an_issue_thread_fails_and_its_fix_passes(bug):
    inputs = (bug.params, bug.x)
    verify.check_vjp(bug.forward, bug.right, *inputs).raise_for_verdict()
    report = verify.check_vjp(bug.forward, bug.wrong, *inputs)
    assert report.verdict == "fail", str(report)
    assert bug.cause in " ".join(str(report).split()), str(report)


def test_weight_decay_in_an_update_is_named():
    decaying = lambda rate, t, theta, g, m, v: (theta - rate * (g + 0.1 * theta), m, v)
    report = verify.check_optimizer(optimizer(decaying), RULES["sgd"], PARAMS)
    assert report.verdict == "fail"
    assert "an L2 term is in it alone" in " ".join(str(report).split()), str(report)
