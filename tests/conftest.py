import gc
import os
from collections import Counter
from functools import wraps

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

gc.set_threshold(100_000, 20, 100)  # JAX's caches are millions of objects, which it looks through
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_num_cpu_devices", int(os.environ.get("FNN_TEST_DEVICES", 2)))

if JAX_0_10 := jax.__version_info__[:2] == (0, 10):
    from jax._src import compiler

    compiler_options = compiler.get_compile_options

    @wraps(compiler_options)
    def without_fusion_emitters(*args, **kwargs):
        """The options of a compilation that takes half the time. JAX has no public way to give XLA
        an option for all programs but the environment, which other processes inherit; and after
        jax 0.10 XLA no longer has this option."""
        options = compiler_options(*args, **kwargs)
        options.env_option_overrides = [
            *options.env_option_overrides,
            ("xla_cpu_use_fusion_emitters", False),
        ]
        return options


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Marks as `long` what `sampled` leaves out of the default tests."""
    seen = Counter()
    for item in items:
        if sampled := item.get_closest_marker("sampled"):
            if seen[item.path, item.originalname] % sampled.args[0]:
                item.add_marker("long")
            seen[item.path, item.originalname] += 1


def optimize(much):
    """Whether XLA compiles as users do it, or little and fast."""
    jax.config.update("jax_disable_most_optimizations", not much)
    if JAX_0_10:
        compiler.get_compile_options = compiler_options if much else without_fusion_emitters


optimize(False)


@pytest.fixture(autouse=True)
def optimized(request):
    """Most tests compile more than they compute, so XLA is told to optimize little. What is
    marked `optimized` is compiled as users do it: what is compared bit for bit, and what reads
    compiled programs. What another test has compiled stays as it is: single operations."""
    optimize(request.node.get_closest_marker("optimized") is not None)
    yield
    optimize(False)


@pytest.fixture(scope="session")
def compilation_cache_folder(tmp_path_factory):
    return str(tmp_path_factory.mktemp("compiled"))


@pytest.fixture(scope="module")
def compiled_once(compilation_cache_folder):
    """For tests that build the same few programs over and over, here and in other processes."""
    settings = {
        "jax_compilation_cache_dir": compilation_cache_folder,
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
        del os.environ[name.upper()]
    compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def undrawn():
    """For tests of the command that do not look at its pictures, which take most of its time."""
    from fnn.runs import _plots

    with pytest.MonkeyPatch.context() as patch:
        real = _plots.image
        patch.setattr(_plots, "image", lambda draw, *args: b"\x89PNG")
        yield real


@pytest.fixture
def drawn(undrawn, monkeypatch):
    """For a test that looks at them among tests that do not."""
    from fnn.runs import _plots

    monkeypatch.setattr(_plots, "image", undrawn)
