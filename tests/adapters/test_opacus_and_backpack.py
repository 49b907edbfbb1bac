"""Per-example gradients and curvature beside those of Opacus and BackPACK, computed by them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn import curvature, per_example

pytestmark = pytest.mark.long

torch = pytest.importorskip("torch")
nn = torch.nn
KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
TABLE = RNG.normal(size=(7, 6)).astype(np.float32)
IMAGES = RNG.normal(size=(7, 6, 6, 2)).astype(np.float32)
CODES = RNG.integers(0, 9, (7, 4))
LABELS = RNG.integers(0, 3, 7)


def image_network():
    return fnn.serial(
        fnn.conv2d(2, 4), fnn.relu, fnn.max_pool((2, 2)), fnn.flatten(3), fnn.dense(36, 3)
    )


CASES = {
    "mlp": (
        lambda: fnn.mlp((6, 5, 3), fnn.tanh),
        lambda: nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)),
        TABLE,
    ),
    "norm": (
        lambda: fnn.serial(fnn.dense(6, 5), fnn.layer_norm(5), fnn.sigmoid, fnn.dense(5, 3)),
        lambda: nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.Sigmoid(), nn.Linear(5, 3)),
        TABLE,
    ),
    "conv": (
        image_network,
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(36, 3),
        ),
        IMAGES,
    ),
    "codes": (
        lambda: fnn.serial(fnn.embedding(9, 2), fnn.flatten(2), fnn.dense(8, 3)),
        lambda: nn.Sequential(nn.Embedding(9, 2), nn.Flatten(), nn.Linear(8, 3)),
        CODES,
    ),
}


def pair(case):
    """Network, params and x of a case, and the PyTorch module with the same weights and its x."""
    ours, theirs, x = CASES[case]
    network, module = ours(), theirs()
    params = network.init(KEY)
    state = fnn.to_torch(params, module.state_dict())
    module.load_state_dict({name: torch.tensor(np.array(a)) for name, a in state.items()})
    there = torch.tensor(np.ascontiguousarray(x.transpose(0, 3, 1, 2)) if x.ndim == 4 else x)
    return network, params, jnp.asarray(x), module, there


def as_ours(module, params, kept):
    """Arrays by the parameters of a module, as a tree like params."""
    named = {name: kept(p).detach().numpy() for name, p in module.named_parameters()}
    return fnn.from_torch(named, params)


def rows_as_ours(module, params, kept):
    """The same for arrays with one row per example."""
    each = [as_ours(module, params, lambda p, i=i: kept(p)[i]) for i in range(len(LABELS))]
    return jax.tree.map(lambda *rows: jnp.stack(rows), *each)


def close(a, b, rtol=2e-4, atol=2e-6):
    for left, right in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(left, right, rtol=rtol, atol=atol)


def ours_on(statistic, network, params, x, *args, loss=fnn.softmax_cross_entropy, y=LABELS):
    return jax.jit(statistic(network, loss, *args))(params, x, jnp.asarray(y))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CASES)
def test_gradients_of_single_examples_are_those_of_opacus(case):
    from opacus.grad_sample import GradSampleModule

    network, params, x, module, there = pair(case)
    wrapped = GradSampleModule(module, loss_reduction="sum")
    nn.CrossEntropyLoss(reduction="sum")(wrapped(there), torch.tensor(LABELS)).backward()
    expected = rows_as_ours(module, params, lambda p: p.grad_sample)
    close(ours_on(per_example.gradients, network, params, x), expected)
    norms = sum(jnp.sum(g.reshape(7, -1) ** 2, 1) for g in jax.tree.leaves(expected))
    close(ours_on(per_example.squared_norms, network, params, x), norms)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CASES)
def test_a_clipped_gradient_is_that_of_opacus(case):
    from opacus.grad_sample import GradSampleModule
    from opacus.optimizers import DPOptimizer

    network, params, x, module, there = pair(case)
    norms = ours_on(per_example.squared_norms, network, params, x)
    bound = float(jnp.median(jnp.sqrt(norms)))
    wrapped = GradSampleModule(module)
    optimizer = DPOptimizer(
        torch.optim.SGD(wrapped.parameters(), lr=1.0),
        noise_multiplier=0.0,
        max_grad_norm=bound,
        expected_batch_size=7,
    )
    nn.CrossEntropyLoss()(wrapped(there), torch.tensor(LABELS)).backward()
    optimizer.pre_step()
    expected = as_ours(module, params, lambda p: p.grad)
    _, got = ours_on(per_example.clipped_value_and_grad, network, params, x, bound)
    close(got, expected)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", ["mlp", "conv", "codes"])
def test_moments_and_gradients_are_those_of_backpack(case):
    """BackPACK 1.7 has no rule for LayerNorm."""
    from backpack import backpack, extend, extensions

    network, params, x, module, there = pair(case)
    module = extend(module)
    loss = extend(nn.CrossEntropyLoss(reduction="sum"))
    kinds = (extensions.BatchGrad(), extensions.SumGradSquared(), extensions.BatchL2Grad())
    with backpack(*kinds):
        loss(module(there), torch.tensor(LABELS)).backward()
    expected = rows_as_ours(module, params, lambda p: p.grad_batch)
    close(ours_on(per_example.gradients, network, params, x), expected)
    norms = sum(p.batch_l2.detach().numpy() for p in module.parameters())
    close(ours_on(per_example.squared_norms, network, params, x), norms)
    moment = as_ours(module, params, lambda p: p.sum_grad_squared / 7)
    close(ours_on(per_example.second_moment, network, params, x), moment)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", ["mlp", "conv"])
@pytest.mark.parametrize("loss", ["softmax_cross_entropy", "mse"])
def test_the_diagonal_of_the_gauss_newton_matrix_is_that_of_backpack(case, loss):
    from backpack import backpack, extend, extensions

    network, params, x, module, there = pair(case)
    module = extend(module)
    y = LABELS if loss == "softmax_cross_entropy" else np.eye(3, dtype=np.float32)[LABELS]
    theirs = nn.CrossEntropyLoss() if loss == "softmax_cross_entropy" else nn.MSELoss()
    with backpack(extensions.DiagGGNExact()):
        extend(theirs)(module(there), torch.tensor(y)).backward()
    expected = as_ours(module, params, lambda p: p.diag_ggn_exact)
    got = ours_on(curvature.ggn_diagonal, network, params, x, loss=getattr(fnn, loss), y=y)
    close(got, expected)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("loss", ["softmax_cross_entropy", "mse"])
def test_kronecker_factors_are_those_of_backpack(loss):
    """KFLR: the exact root of the loss's Hessian, for each weight (S, A); ours holds the bias in
    A's last row and column."""
    from backpack import backpack, extend, extensions

    network, params, x, module, there = pair("mlp")
    module = extend(module)
    y = LABELS if loss == "softmax_cross_entropy" else np.eye(3, dtype=np.float32)[LABELS]
    theirs = nn.CrossEntropyLoss() if loss == "softmax_cross_entropy" else nn.MSELoss()
    with backpack(extensions.KFLR()):
        extend(theirs)(module(there), torch.tensor(y)).backward()
    got = ours_on(curvature.kronecker_factors, network, params, x, loss=getattr(fnn, loss), y=y)
    for block, layer in zip((got[0], got[2]), (module[0], module[2]), strict=True):
        S, A = (factor.detach().numpy() for factor in layer.weight.kflr)
        expected = np.einsum("ij,kl->ijkl", S, A)
        close(np.einsum("ij,kl->ijkl", block.S, block.A[:-1, :-1]), expected)
