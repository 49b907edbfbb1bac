"""`fit` from given parameters, and a run kept in a folder."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn

KEY = jax.random.key(8)
X = jax.random.normal(KEY, (40, 4))
Y = (X[:, 0] > 0).astype(jnp.int32)
NETWORK, LOSS = fnn.mlp((4, 8, 2)), fnn.softmax_cross_entropy


def fit(epochs, **given):
    settings = {"key": KEY, "batch_size": 10, "validation": (X[:9], Y[:9])}
    return fnn.fit(NETWORK, LOSS, fnn.adam(0.3), (X, Y), epochs=epochs, **settings | given)


@pytest.mark.long
def test_fit_begins_with_the_given_params():
    params = NETWORK.init(jax.random.key(99))
    state, history = fit(1, params=params, batch_size=40)
    step = fnn.make_step(NETWORK, LOSS, fnn.adam(0.3))
    expected, value = step(fnn.adam(0.3).init(params), (X, Y))
    chex.assert_trees_all_close(state.params, expected.params, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(history[0]["loss"], value, rtol=1e-5)
    mesh = jax.make_mesh((1,), ("data",))
    again, _ = fit(1, params=params, batch_size=40, mesh=mesh)
    chex.assert_trees_all_close(again.params, state.params, rtol=1e-4, atol=1e-5)


def test_a_run_in_a_folder_resumes_as_if_it_had_never_stopped(tmp_path):
    folder = tmp_path / "runs" / "a"
    state, history = fit(6)
    fit(3, folder=folder)
    seen = []
    resumed, same = fit(6, folder=str(folder), on_epoch=lambda *of: seen.append(of[0]))
    chex.assert_trees_all_equal(resumed, state)
    assert (same, seen) == (history, [4, 5, 6])
    last = fnn.checkpoint.load(folder / "last.safetensors", like=state)
    chex.assert_trees_all_equal(last, state)
    assert fnn.checkpoint.read_metadata(folder / "last.safetensors")["history"] == history
    _, over = fit(6, folder=folder, on_epoch=lambda *of: pytest.fail("it has had its epochs"))
    assert over == history


def test_the_best_state_is_kept_and_found_again(tmp_path):
    """At this rate the best epoch is not the last; patience ends both runs at the same one."""
    best, history = fit(30, patience=4)
    ended, same = fit(30, patience=4, folder=tmp_path)
    chex.assert_trees_all_equal(ended, best)
    held = fnn.checkpoint.load(tmp_path / "best.safetensors", like=best)
    chex.assert_trees_all_equal(held, best)
    assert len(history) < 30
    resumed, again = fit(30, patience=4, folder=tmp_path)
    chex.assert_trees_all_equal(resumed, best)
    assert history == same == again
    losses = [entry["validation_loss"] for entry in history]
    assert int(held.step) == 4 * (1 + int(np.argmin(losses))) < int(4 * len(losses))


@pytest.mark.long
def test_a_run_interrupted_within_its_epochs_is_kept(tmp_path):
    def interrupt(number, state, entry):
        if number == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(4, folder=tmp_path, on_epoch=interrupt, record=lambda *noted: noted[2])
    _, history = fit(4, folder=tmp_path, record=lambda *noted: noted[2])
    assert history == [entry | extra for entry, extra in zip(fit(4)[1], history, strict=True)]
    assert ["record" in entry for entry in history] == [False, False, True, True]


def test_what_does_not_go_together_is_refused(tmp_path):
    state, history = fit(1, folder=tmp_path)
    start = fnn.Progress(state, history, state)
    for given in ({"params": state.params}, {"folder": tmp_path}):
        with pytest.raises(ValueError, match="fit: expected either start or params"):
            fit(2, start=start, **given)
    with pytest.raises(fnn.checkpoint.CheckpointError):
        fnn.fit(fnn.mlp((4, 9, 2)), LOSS, fnn.adam(0.3), (X, Y), key=KEY, epochs=2, batch_size=10,
                folder=tmp_path)  # fmt: skip
