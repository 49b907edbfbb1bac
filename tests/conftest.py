import os

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_num_cpu_devices", int(os.environ.get("FNN_TEST_DEVICES", 2)))


@pytest.fixture(autouse=True)
def little_optimization(request):
    """Most tests compile more than they compute, so XLA is told to optimize little. What is
    marked `optimized` is compiled as users do it: what is compared bit for bit, and what reads
    compiled programs."""
    optimized = request.node.get_closest_marker("optimized") is not None
    jax.config.update("jax_disable_most_optimizations", not optimized)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


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
