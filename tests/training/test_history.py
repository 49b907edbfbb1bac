"""A history is a list, and shows itself as a table."""

import logging

import jax
import polars

import fnn
from fnn.training.history import History


def test_fit_returns_a_list_that_is_shown_as_a_table():
    x = jax.random.normal(jax.random.key(0), (8, 2))
    settings = {"key": jax.random.key(1), "epochs": 2, "batch_size": 8, "validation": (x, x)}
    network = fnn.mlp((2, 2))
    record = lambda state, grads, value: grads
    _, history = fnn.fit(network, fnn.mse, fnn.sgd(0.1), (x, x), record=record, **settings)
    assert history == list(history)
    assert len(history) == 2
    heads, *rows = str(history).splitlines()
    assert heads.split() == ["epoch", "loss", "validation", "loss"]
    assert [row.split()[0] for row in rows] == ["1", "2"]
    assert f"{history[1]['loss']:.4g}" == rows[1].split()[1]


def test_html_escapes_and_has_a_row_per_epoch():
    shown = History([{"loss": 0.5, "a<b": 1.0}, {"loss": 0.25, "a<b": 2.0}])._repr_html_()
    assert "<th>a&lt;b</th>" in shown
    assert "<tr><td>2</td><td>0.25</td><td>2</td></tr>" in shown


def test_a_long_history_shows_both_ends_and_an_empty_one_its_head():
    lines = str(History({"loss": float(i)} for i in range(50))).splitlines()
    assert [lines[1].split(), lines[11].split(), lines[-1].split()] == [
        ["1", "0"], ["...", "..."], ["50", "49"],
    ]  # fmt: skip
    assert len(lines) == 22
    assert str(History()) == "epoch"


def test_entries_may_differ_in_what_they_have():
    history = History([{"loss": 0.5}, {"loss": 0.25, "accuracy": 1.0}])
    assert str(history).splitlines()[1].split() == ["1", "0.5"]
    assert polars.DataFrame(history).shape == (2, 2)


def test_epochs_and_saved_files_are_logged_and_nothing_is_printed(tmp_path, caplog, capfd):
    x = jax.random.normal(jax.random.key(0), (8, 2))
    settings = {"key": jax.random.key(1), "epochs": 2, "batch_size": 8}
    state, _ = fnn.fit(fnn.mlp((2, 2)), fnn.mse, fnn.sgd(0.1), (x, x), **settings)
    assert capfd.readouterr() == ("", "")
    assert not logging.getLogger("fnn").handlers
    with caplog.at_level(logging.INFO, "fnn"):
        fnn.fit(fnn.mlp((2, 2)), fnn.mse, fnn.sgd(0.1), (x, x), **settings)
        fnn.checkpoint.save(tmp_path / "state", state)
    first, second, saved = caplog.messages
    assert first.startswith("epoch 1 of 2: {'loss': ")
    assert second.startswith("epoch 2 of 2")
    assert saved == f"saved {tmp_path / 'state'}"
