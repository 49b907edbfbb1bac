"""The rules that the sources keep: floors, autodiff only in the judge, names, the registry."""

import ast
from pathlib import Path

import pytest
from cases import LAYERS, LOSSES, OPTIMIZERS

import fnn

PACKAGE = Path(fnn.__file__).parent
FLOORS = [
    {"base"},
    {"reductions", "initializers", "schedules", "permutations"},
    {"activations", "layers", "combinators", "losses", "optimizers"},
    {"models", "backprop"},
    {"faults", "files", "readers", "report"},
    {"trajectory", "per_example", "curvature", "training"},
    {"verify", "data", "checkpoint", "plots"},
    {"selfcheck", "runs"},
    {"cli"},
    {"__main__", "__init__"},
]
AUTODIFF = {"grad", "value_and_grad", "vjp", "jvp", "linearize", "jacfwd", "jacrev", "jacobian",
            "hessian", "fwd_and_bwd"}  # fmt: skip
SOURCES = {path.stem: path.read_text() for path in sorted(PACKAGE.glob("*.py"))}


def imports(source):
    """The modules of this package that a source imports, wherever in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("fnn"):
            yield from (
                [node.module.split(".")[1]] if "." in node.module else [a.name for a in node.names]
            )
        elif isinstance(node, ast.Import):
            yield from (a.name.split(".")[1] for a in node.names if a.name.startswith("fnn."))


def autodiff(source):
    """The uses of JAX's autodiff in a source: jax.grad, from jax import grad, api.grad."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("jax"):
            found += [alias.name for alias in node.names if alias.name in AUTODIFF]
        elif isinstance(node, ast.Attribute) and node.attr in AUTODIFF:
            root = node.value
            while isinstance(root, ast.Attribute):
                root = root.value
            if isinstance(root, ast.Name) and root.id == "jax":
                found.append(node.attr)
    return found


def floor(module):
    return next((i for i, modules in enumerate(FLOORS) if module in modules), None)


@pytest.mark.parametrize("module", SOURCES)
def test_imports_go_down(module):
    assert floor(module) is not None, f"{module} stands on no floor"
    for other in imports(SOURCES[module]):
        below = other in SOURCES and floor(other) < floor(module)
        assert below, f"{module} imports {other}"


@pytest.mark.parametrize("module", SOURCES)
def test_autodiff_is_the_judges_alone(module):
    assert module == "verify" or autodiff(SOURCES[module]) == []


def test_the_search_for_autodiff_finds_it():
    assert autodiff(SOURCES["verify"])
    for planted in (
        "import jax\ng = jax.grad(f)",
        "from jax import vjp",
        "from jax._src.api import jvp",
        "import jax\njax.extend.x.linearize(f)",
    ):
        assert autodiff(planted), planted
    assert not autodiff("from fnn.backprop import value_and_grad\nfnn.value_and_grad(a, b)")


@pytest.mark.parametrize("module", SOURCES)
def test_nothing_banned(module):
    tree = ast.parse(SOURCES[module])
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            starred = [k for k in node.keywords if k.arg is None]
            assert not starred, f"{module}:{node.lineno} passes **kwargs along"
    assert module != "utils"
    assert "optax" not in SOURCES[module].replace("optax multiply", "")


def test_every_public_name_is_there():
    names = """Layer Loss Optimizer Outer Direct total dense identity sigmoid tanh relu softmax
        leaky_relu elu selu gelu silu softplus elementwise layer_norm serial skip repeat mlp mse
        cross_entropy softmax_cross_entropy binary_cross_entropy sigmoid_binary_cross_entropy mae
        huber objective value_and_grad differentiable sgd momentum rmsprop adam adamw adagrad
        nadam lion clip_by_global_norm add_l2 make_step make_epoch make_train fit schedules
        verify per_example curvature"""
    assert [name for name in names.split() if not hasattr(fnn, name)] == []
    for name in ["constant", "exponential_decay", "step_decay", "cosine_decay", "linear_warmup"]:
        assert hasattr(fnn.schedules, name)


def test_every_constructor_is_a_case():
    """A public layer, loss or optimizer that the registry leaves out is untested."""
    listed = {case.name.split("/")[0] for case in LAYERS + LOSSES + OPTIMIZERS}
    for module in ("activations", "layers", "combinators", "losses", "optimizers", "models"):
        tree = ast.parse(SOURCES[module])
        defined = [n.name for n in tree.body if isinstance(n, ast.FunctionDef)]
        defined += [n.targets[0].id for n in tree.body if isinstance(n, ast.Assign)]
        public = {name for name in defined if not name.startswith("_") and name[0].islower()}
        assert public <= listed, f"{module}: {public - listed}"


@pytest.mark.parametrize("module", SOURCES)
def test_public_things_are_documented(module):
    tree = ast.parse(SOURCES[module])
    assert ast.get_docstring(tree), f"{module} has no docstring"
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{module}.{node.name}"
