"""`fit` on a stream: what any loader gives, read ahead on a thread, and no thread left behind."""

import os
import signal
import threading

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn.training.checks import _array
from fnn.training.streams import _prefetched as ahead

KEY = jax.random.key(0)
X = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
Y = np.arange(20) % 2  # int64, as PyTorch's labels
BATCHES = [(X[i : i + 4], Y[i : i + 4]) for i in range(0, 20, 4)]
NETWORK, LOSS, OPTIMIZER = fnn.dense(3, 2), fnn.softmax_cross_entropy, fnn.adam(0.01)


def trained(data, **more):
    return fnn.fit(NETWORK, LOSS, OPTIMIZER, data, key=KEY, **{"epochs": 2} | more)


def readers():
    return [t for t in threading.enumerate() if t.name == "fnn.prefetch"]


class Loader:
    """Iterated anew each epoch; it counts the batches that were read."""

    def __init__(self, batches):
        self.batches, self.read, self.closed = batches, 0, 0

    def __iter__(self):
        try:
            for batch in self.batches:
                self.read += 1
                yield batch() if callable(batch) else batch
        finally:
            self.closed += 1


def of_torch():
    torch = pytest.importorskip("torch")
    loading = pytest.importorskip("torch.utils.data")
    examples = loading.TensorDataset(torch.from_numpy(X), torch.from_numpy(Y))
    return loading.DataLoader(examples, batch_size=4)


def of_grain():
    grain = pytest.importorskip("grain")
    return grain.MapDataset.source(list(zip(X, Y, strict=True))).batch(4)


def of_grain_loader():
    grain = pytest.importorskip("grain")
    sampler = grain.samplers.IndexSampler(20, shuffle=False, num_epochs=1, seed=0)
    source = list(zip(X, Y, strict=True))
    return grain.DataLoader(
        data_source=source, sampler=sampler, operations=[grain.transforms.Batch(4)]
    )


@pytest.mark.filterwarnings("default")  # their own
@pytest.mark.parametrize("loader", [of_torch, of_grain, of_grain_loader])
def test_a_loader_trains_as_its_batches_do(loader):
    data = loader()
    state, history = trained(data)
    expected, expected_history = trained(BATCHES)
    chex.assert_trees_all_equal(state, expected)
    assert history == expected_history
    assert not readers()


def test_tensors_become_arrays_without_a_copy():
    torch = pytest.importorskip("torch")
    plain, half = torch.ones(8), torch.ones(8, dtype=torch.bfloat16)
    for tensor in (plain, half):
        assert _array(tensor).ctypes.data == tensor.data_ptr()
    assert _array(half).dtype == jnp.bfloat16
    assert _array(X) is X


def test_tensors_too_large_for_jax_are_refused():
    torch = pytest.importorskip("torch")
    batch = torch.from_numpy(X[:4]), torch.tensor([0, 1, 2**40, 0])
    for data, size in (([batch], None), (batch, 2)):
        with pytest.raises(ValueError, match=r"int32, y\[2\] is 1099511627776"):
            trained(data, batch_size=size)


def test_an_exception_of_the_source_arrives_as_it_is():
    error = LookupError("the disk is gone")

    def broken():
        raise error

    loader = Loader([*BATCHES[:3], broken])
    with pytest.raises(LookupError) as caught:
        trained(loader)
    assert caught.value is error
    assert loader.closed == 1
    assert not readers()


def test_a_batch_that_is_refused_closes_the_source():
    loader = Loader([*BATCHES, (X[:4], np.array([0, 1, 1, 0]) + 2**40)])
    with pytest.raises(ValueError, match="expected numbers within int32"):
        trained(loader)
    assert loader.closed == 1
    assert not readers()


def test_ctrl_c_leaves_no_thread():
    def interrupt():
        os.kill(os.getpid(), signal.SIGINT)
        return BATCHES[0]

    loader = Loader([*BATCHES, interrupt] + BATCHES * 100)
    with pytest.raises(KeyboardInterrupt):
        trained(loader)
    assert loader.closed == 1
    assert not readers()


def test_nothing_is_read_beyond_the_epoch_in_which_training_ends():
    loader = Loader(BATCHES)
    validation = X[:4], 1 - Y[:4]  # gets worse from the first epoch on
    _, history = trained(loader, epochs=50, validation=validation, patience=2)
    assert len(history) < 50
    assert loader.read == len(history) * len(BATCHES)
    trained(loader := Loader(BATCHES), epochs=50, on_epoch=lambda *report: True)
    assert loader.read == len(BATCHES)


def test_a_group_is_read_while_another_is_in_use():
    second = threading.Event()

    def items():
        yield 1
        second.set()
        yield 2

    got = []
    for item in ahead(items(), 1):
        assert second.wait(60)  # for ever, if the thread waited for this to end
        got.append(item)
    assert got == [1, 2]


@pytest.mark.parametrize("depth", [1, 3])
def test_no_more_is_read_ahead_than_asked(depth):
    read, full = [], threading.Event()

    def items():
        for i in range(100):
            read.append(i)
            if len(read) == depth + 1:
                full.set()
            yield i

    some = ahead(items(), depth)
    next(some)
    assert full.wait(60)
    threading.Event().wait(0.05)
    assert len(read) == depth + 1
    some.close()
    assert len(read) == depth + 1
    assert not readers()


def test_the_source_sees_the_error_state_of_its_caller():
    def overflowing():
        return np.float32(1e38) * X[:4] * np.float32(1e38), Y[:4]

    with np.errstate(over="raise"), pytest.raises(FloatingPointError):
        trained(Loader([overflowing]))


def test_batches_of_different_dtypes_do_not_go_to_the_device_together():
    """Stacked, the codes would take the wider dtype, or be refused."""
    seen = []

    def forward(params, codes):
        seen.append(codes.dtype.name)
        return jnp.zeros((len(codes), 2)) + params, ()

    network = fnn.Layer(
        lambda key: jnp.zeros(2), forward, lambda p, r, dy, reduce=fnn.total: (dy.sum(0), None)
    )
    codes = np.arange(4)[:, None]
    batches = [(codes.astype(f"int{bits}"), Y[:4]) for bits in (8, 16, 32, 8) * 8]
    fnn.fit(network, LOSS, OPTIMIZER, batches, key=KEY, epochs=1)
    assert set(seen) == {"int8", "int16", "int32"}
