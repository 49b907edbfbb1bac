"""The contracts that the sources keep: who imports whom, where autodiff is called, what is public,
documented and annotated, that every constructor is in the catalogue, and how large things may
be."""

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
from cases import LAYERS, LOSSES, OPTIMIZERS, TREE_LOSSES

import fnn
from fnn import catalog
from fnn.verify import cases

PACKAGE = Path(fnn.__file__).parent
AUTODIFF = {"grad", "value_and_grad", "vjp", "jvp", "linearize", "jacfwd", "jacrev", "jacobian",
            "hessian", "fwd_and_bwd", "custom_vjp", "custom_jvp", "linear_transpose"}  # fmt: skip
ALLOWED = {
    "adapters.functions": {"vjp"},
    "autodiff": {"custom_jvp", "linear_transpose", "jvp"},
    "curvature": {"linear_transpose", "jvp"},
    "layers.kernels": {"custom_jvp", "jvp"},
}
"""Beside `verify`, which checks: an adapter, where a user's function brings autodiff's derivative
with it; `autodiff`, which puts a layer's own backward into what JAX differentiates; `curvature`,
which reads one from the other side, and whose Hessian-vector product is the derivative of a
hand-written gradient; and `layers.kernels`, whose derivative, for those who differentiate a
forward pass, is that of the plain operations."""
MATHEMATICS = {
    "base", "axes", "numbers", "reductions", "backprop", "autodiff", "activations", "losses",
    "initializers", "optimizers", "wrappers", "schedules", "models", "layers", "combinators",
    "memory", "precision", "per_example", "curvature", "parallel", "training", "adapters",
    "export", "catalog", "gradients", "inspection",
}  # fmt: skip
LINES = 60
"""The most lines of code that a function may have."""
LONG = {"cli.train.train"}
"""Functions that have more."""
PUBLIC = 330
"""The most functions and classes at module level without an underscore, in the whole package."""


PACKAGES = {".".join(path.parent.relative_to(PACKAGE).parts) for path in PACKAGE.rglob("*.py")}


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
            checking = isinstance(function, ast.If) and "TYPE_CHECKING" in ast.dump(function.test)
            if isinstance(function, ast.FunctionDef) or checking:
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
        assert not name.startswith(("fnn.verify", "fnn.data", "fnn.runs", "fnn.cli")), name


@every_module
def test_checking_and_data_do_not_know_each_other(module):
    others = {room(name) for name in ours(module, SOURCES[module])}
    assert room(module) != "verify" or "data" not in others
    assert room(module) != "data" or "verify" not in others


def test_the_command_is_thin():
    """What runs, verify and the estimators can do, they can do without it."""
    importers = {room(name) for name in SOURCES if "cli" in map(room, ours(name, SOURCES[name]))}
    assert importers <= {"cli", "__main__"}


def test_the_reader_of_imports_sees_sub_packages():
    assert {"training.fitting", "cli.train", "layers.dense"} <= set(SOURCES)
    planted = "from fnn.cli import train\nimport fnn.data._readers\nfrom fnn import verify\n"
    assert ours("x", planted) >= {"cli.train", "verify", "data._readers"}
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
    nodes = list(ast.walk(ast.parse(SOURCES[module])))
    caught = {n.args.kwarg.arg for n in nodes if isinstance(n, ast.FunctionDef) and n.args.kwarg}
    for node in nodes:
        for keyword in node.keywords if isinstance(node, ast.Call) else ():
            passed = keyword.arg is None and getattr(keyword.value, "id", None) in caught
            assert not passed, f"{module}:{node.lineno} passes **kwargs along"
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


CATALOGUED = {
    "activations", "layers", "models", "combinators", "memory", "precision", "losses",
    "optimizers", "wrappers",
}  # fmt: skip
NO_CONSTRUCTORS = ("layers.kernels", "layers.shapes", "layers.windows")
HELPERS = {"attended", "by_name", "check_gradients", "check_state", "for_each", "loss_scale",
           "number_at", "perceptron", "scaled_gradients", "with_params"}  # fmt: skip


@pytest.mark.parametrize("module", [name for name in SOURCES if room(name) in CATALOGUED])
def test_every_constructor_is_in_the_catalogue(module):
    """A layer, loss or optimizer that is not exported has no case, so that it is untested."""
    if module not in NO_CONSTRUCTORS:
        listed = set().union(*(table for name, table in vars(catalog).items() if name.isupper()))
        assert defined(module) - HELPERS <= listed


def test_every_name_of_the_catalogue_is_tested():
    """A name has a case, in `fnn.verify.cases`, and what has one goes through the tests."""
    tested = {case.name.split("/")[0] for case in LAYERS + LOSSES + TREE_LOSSES + OPTIMIZERS}
    for name, table in vars(catalog).items():
        if name.isupper():
            assert set(table) <= tested | {*cases.UNCHECKED}, name


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
    """What takes a layer and returns one passes keys and statistics on: `test_combinators.py`."""
    combine = {
        name
        for module in ("combinators", "memory", "precision")
        for name in defined(module)
        if inspect.isfunction(getattr(fnn, name))
    }
    assert combine == set(cases.COMBINATORS) | {"frozen", "lora"}


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


IMPORT_ALL = """
import importlib, jax
values = lambda: {name: getattr(jax.config, name, None) for name in jax.config._value_holders}
before = values()
for module in %r:
    importlib.import_module(f"fnn.{module}")
after = values()
print({name: (before[name], after[name]) for name in before if before[name] != after[name]})
"""


def test_importing_any_module_changes_no_setting_of_jax_and_prints_nothing():
    """In a process of its own, in which every module of the package is imported."""
    modules = [name for name in SOURCES if name not in ("", "__main__")]
    command = [sys.executable, "-W", "error", "-c", IMPORT_ALL % modules]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("{}\n", "")


def test_the_catalogue_is_quick_to_import():
    """It builds no layer: the modules that it names are not even imported."""
    program = "import sys, fnn.catalog; print([name for name in sys.modules if name[:4] == 'fnn.'])"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['fnn.catalog']"


def lines_of_code(source):
    """(qualified name, lines of code) of each function, without docstrings, comments and blanks."""
    tree, text = ast.parse(source), source.splitlines()
    is_string = lambda value: isinstance(value, ast.Constant) and isinstance(value.value, str)
    strings = [n for n in ast.walk(tree) if isinstance(n, ast.Expr) and is_string(n.value)]
    documented = {i for n in strings for i in range(n.lineno, n.end_lineno + 1)}
    code = {
        i
        for i, line in enumerate(text, 1)
        if i not in documented and line.strip() and not line.strip().startswith("#")
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            yield node.name, len(code & set(range(node.lineno, node.end_lineno + 1)))


def test_no_function_is_long():
    long = {
        f"{module}.{name}"
        for module, source in SOURCES.items()
        for name, lines in lines_of_code(source)
        if lines > LINES
    }
    assert long <= LONG
    planted = 'def f():\n    """A.\n\n    B."""\n    # c\n\n    return 1\n'
    assert list(lines_of_code(planted)) == [("f", 2)]


def public():
    """The functions and classes without an underscore at module level, by module."""
    for module, source in SOURCES.items():
        if not any(part.startswith("_") and part != "__main__" for part in module.split(".")):
            for node in ast.parse(source).body:
                kinds = ast.FunctionDef | ast.ClassDef
                if isinstance(node, kinds) and not node.name.startswith("_"):
                    yield module, node.name


def test_there_are_few_public_names():
    assert len(list(public())) <= PUBLIC


def test_no_module_and_function_of_a_package_share_a_name():
    """`from fnn.package import name` has one meaning: a package hands on no name of its modules."""
    for package in (PACKAGES & {*SOURCES}) - {
        "cli"
    }:  # which has a command and its file by one name
        tree = ast.parse(SOURCES[package])
        imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        handed_on = {a.asname or a.name for node in imports for a in node.names}
        handed_on |= {name for module, name in public() if module == package}
        handed_on |= {name for name in fnn.__all__ if not package and fnn._HOMES[name] != "fnn"}
        shared = {name for name in handed_on if f"{package}.{name}".lstrip(".") in SOURCES}
        assert shared == set(), package
