"""The contracts that the sources keep: who imports whom, where autodiff is called, what is public,
documented and annotated, and that every constructor is in the catalogue."""

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
from cases import LAYERS, LOSSES, OPTIMIZERS

import fnn
from fnn import catalog

PACKAGE = Path(fnn.__file__).parent
AUTODIFF = {"grad", "value_and_grad", "vjp", "jvp", "linearize", "jacfwd", "jacrev", "jacobian",
            "hessian", "fwd_and_bwd", "custom_vjp", "custom_jvp", "linear_transpose"}  # fmt: skip
ALLOWED = {
    "adapters.functions": {"vjp"},
    "autodiff": {"custom_jvp", "linear_transpose", "jvp"},
    "curvature": {"linear_transpose"},
}
"""Beside `verify`, which checks: an adapter, where a user's function brings autodiff's derivative
with it; `autodiff`, which puts a layer's own backward into what JAX differentiates; and
`curvature`, which reads one from the other side."""
MATHEMATICS = {
    "base", "reductions", "backprop", "autodiff", "activations", "losses", "initializers",
    "optimizers", "schedules", "models", "layers", "combinators", "memory", "precision",
    "per_example", "curvature", "parallel", "training", "shuffle", "fitting", "wrappers",
    "adapters", "numbers",
}  # fmt: skip


def sources():
    """The dotted names below `fnn` of all modules, in sub-packages too, and their sources."""
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        yield name, path.read_text()


SOURCES = dict(sources())
every_module = pytest.mark.parametrize("module", SOURCES)


def imports(module, source, lazily=True):
    """The modules that a source imports, by their full names; with lazily=False only those that
    it imports when it is itself imported."""
    tree = ast.parse(source)
    inside = set()
    if not lazily:
        for function in ast.walk(tree):
            if isinstance(function, ast.FunctionDef):
                inside |= set(ast.walk(function))
    for node in ast.walk(tree):
        if node in inside:
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full.removeprefix("fnn.") in SOURCES else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def ours(module, source, **which):
    """The modules of this package that a source imports."""
    found = {name.removeprefix("fnn.") for name in imports(module, source, **which)
             if name.startswith("fnn.")}  # fmt: skip
    return {name for name in found if name in SOURCES} - {module}


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


def cycle(graph):
    """A cycle of the graph {module: modules it imports}, or None."""
    done, path = set(), []

    def visit(module):
        if module in path:
            return path[path.index(module) :]
        if module in done:
            return None
        path.append(module)
        found = next((c for other in sorted(graph[module]) if (c := visit(other))), None)
        path.pop()
        done.add(module)
        return found

    return next((c for module in graph if (c := visit(module))), None)


def room(module):
    return module.split(".")[0]


def test_no_module_imports_itself_through_others():
    graph = {name: ours(name, source, lazily=False) for name, source in SOURCES.items()}
    assert cycle(graph) is None
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": set()}) == ["a", "b", "c"]
    assert any(graph.values())


@every_module
def test_the_mathematics_stands_on_jax_and_numpy_alone(module):
    if room(module) not in MATHEMATICS:
        return
    for name in imports(module, SOURCES[module]):
        top = name.split(".")[0]
        assert top in {"fnn", "jax", "numpy"} or top in sys.stdlib_module_names, name
        assert not name.startswith(("fnn.verify", "fnn.data", "fnn.cli")), name


@every_module
def test_checking_and_data_do_not_know_each_other_and_nobody_imports_the_command(module):
    others = {room(name) for name in ours(module, SOURCES[module])}
    assert room(module) != "verify" or "data" not in others
    assert room(module) != "data" or "verify" not in others
    assert room(module) in ("cli", "__main__") or "cli" not in others


def test_the_reader_of_imports_sees_sub_packages():
    assert {"verify._checks", "cli.runs", "layers.dense"} <= set(SOURCES)
    planted = "from fnn.cli import runs\nimport fnn.data.readers\nfrom fnn import verify\n"
    assert ours("x", planted) >= {"cli.runs", "verify"}
    assert list(imports("x", "def f():\n    import optax", lazily=False)) == []


@every_module
def test_autodiff_is_called_by_the_checker_alone(module):
    if room(module) != "verify":
        assert set(autodiff(SOURCES[module])) <= ALLOWED.get(module, set())


def test_the_search_for_autodiff_finds_it():
    assert any(autodiff(source) for name, source in SOURCES.items() if room(name) == "verify")
    for planted in (
        "import jax\ng = jax.grad(f)",
        "from jax import vjp",
        "from jax._src.api import jvp",
        "import jax\njax.extend.x.linearize(f)",
    ):
        assert autodiff(planted), planted
    assert not autodiff("from fnn.backprop import value_and_grad\nfnn.value_and_grad(a, b)")


@every_module
def test_nothing_banned(module):
    for node in ast.walk(ast.parse(SOURCES[module])):
        if isinstance(node, ast.Call):
            starred = [k for k in node.keywords if k.arg is None and isinstance(k.value, ast.Name)]
            assert not starred, f"{module}:{node.lineno} passes **kwargs along"
    assert "utils" not in module
    assert "optax" not in {name.split(".")[0] for name in imports(module, SOURCES[module])}


def test_every_public_name_is_there():
    names = """Layer Loss Optimizer at statistics Outer Direct Rows total dense identity sigmoid
        tanh relu softmax leaky_relu elu selu gelu silu softplus elementwise layer_norm batch_norm
        dropout embedding conv2d max_pool mean_pool flatten serial skip repeat fork add concatenate
        masked frozen remat reversible compute_in accumulate average partition scale_loss from_optax
        to_optax mlp mse cross_entropy softmax_cross_entropy binary_cross_entropy
        sigmoid_binary_cross_entropy mae huber
        objective value_and_grad differentiable sgd momentum rmsprop adam adamw adagrad nadam lion
        clip_by_global_norm add_l2 make_step make_epoch make_train fit schedules verify
        per_example curvature checkpoint data"""
    assert set(names.split()) <= set(fnn.__all__)
    for name in fnn.__all__:
        assert getattr(fnn, name) is not None
    for name in ["constant", "exponential_decay", "step_decay", "cosine_decay", "linear_warmup"]:
        assert hasattr(fnn.schedules, name)
    with pytest.raises(AttributeError, match="no attribute 'dens'"):
        fnn.dens  # noqa: B018
    assert fnn.__version__


def defined(module):
    """The public functions, classes and values that a module defines, by name."""
    tree = ast.parse(SOURCES[module])
    names = [n.name for n in tree.body if isinstance(n, ast.FunctionDef)]
    names += [n.targets[0].id for n in tree.body if isinstance(n, ast.Assign)]
    return {name for name in names if not name.startswith("_") and name[0].islower()}


def test_every_constructor_is_in_the_catalogue():
    """A public layer, loss or optimizer that the catalogue leaves out is untested."""
    listed = {case.name.split("/")[0] for case in LAYERS + LOSSES + OPTIMIZERS}
    modules = ["activations", "combinators", "losses", "optimizers", "models"]
    helpers = ("layers.shapes", "layers.windows")
    modules += [name for name in SOURCES if name.startswith("layers.") and name not in helpers]
    modules += ["memory", "precision", "wrappers"]
    # Their gradient is zero by definition, which no check can tell from a missing one.
    listed |= {"frozen", "stop_gradient"}
    for module in modules:
        assert defined(module) <= listed, f"{module}: {defined(module) - listed}"


@every_module
def test_public_things_are_documented_and_annotated(module):
    tree = ast.parse(SOURCES[module])
    assert ast.get_docstring(tree), f"{module} has no docstring"
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{module}.{node.name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            bare = {a.arg for a in arguments if a.annotation is None} - {"self", "cls"}
            assert not bare, f"{module}:{node.lineno} {node.name}: {bare}"
            assert node.returns is not None, f"{module}:{node.lineno} {node.name}"


def test_every_combinator_is_tested_with_random_layers():
    """What takes a layer and returns one passes keys and statistics on: `test_varying.py`."""
    combine = {
        name
        for module in ("combinators", "memory", "precision")
        for name in defined(module)
        if inspect.isfunction(getattr(fnn, name))
    }
    assert combine == set(catalog.COMBINATORS) | {"frozen"}


def test_signatures_can_be_read_at_run_time():
    """Annotations are real names, for whoever reads them with `inspect`."""
    for name in fnn.__all__:
        value = getattr(fnn, name)
        if inspect.isfunction(value):
            inspect.signature(value, eval_str=True)


def test_importing_fnn_imports_nothing_heavy():
    """In an interpreter of its own: neither jax nor numpy before a name is used."""
    program = "import sys, fnn; print({'jax', 'numpy', 'sklearn'} & set(sys.modules))"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_lazily_imported_names_are_those_of_the_stub():
    for name in fnn.__all__:
        home = fnn._HOMES[name]
        if home != "fnn":
            assert getattr(importlib.import_module(home), name) is getattr(fnn, name)
