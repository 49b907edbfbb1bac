"""The wheel and the sdist: what is in them, and whether the installed package passes its tests."""

import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest

import fnn

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[1]
TESTS = ["layers/test_layers.py", "test_losses.py", "test_optimizers.py", "verify/test_shipped.py"]


def run(*command, cwd):
    """The command's output, in an environment that does not lead to the checkout."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHONPATH", "JAX_"))}
    done = subprocess.run(command, cwd=cwd, env=kept, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def created(folder):
    """An empty virtual environment's Python."""
    venv.create(folder, with_pip=True)
    return folder / ("Scripts" if os.name == "nt" else "bin") / "python"


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """The sdist, and the wheel that is built from it, as a release builds them."""
    folder = tmp_path_factory.mktemp("built")
    python = created(folder / "venv")
    run(python, "-m", "pip", "install", "-q", "build", cwd=folder)
    ignored = shutil.ignore_patterns(".*", "*.egg-info", "build", "dist", "site", "__pycache__")
    shutil.copytree(ROOT, folder / "fnn", ignore=ignored)
    run(python, "-m", "build", "--outdir", folder / "dist", folder / "fnn", cwd=folder)
    return folder / "dist"


def test_what_the_wheel_and_the_sdist_contain(dist):
    (wheel,), (sdist,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        info = f"fnn-{fnn.__version__}.dist-info"
        fields = HeaderParser().parsestr(archive.read(f"{info}/METADATA").decode())
    sources = {p.relative_to(ROOT).as_posix() for p in (ROOT / "fnn").rglob("*.py*")}
    sources = {name for name in sources if not name.endswith(".pyc")}
    sources |= {"fnn/py.typed", "fnn/runs/report.html"}
    assert {name for name in names if not name.startswith(info)} == sources
    assert any(name.endswith("LICENSE") for name in names)
    assert (fields["Name"], fields["Version"]) == ("fnn", fnn.__version__)
    assert fields["License-Expression"] == "Apache-2.0"
    assert {d.split(">")[0] for d in fields.get_all("Requires-Dist") if "extra" not in d} == {
        "jax", "jaxlib", "numpy",
    }  # fmt: skip
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert {"README.md", "LICENSE", "pyproject.toml", "tests/conftest.py", *sources} <= inside
    assert wheel.stat().st_size < 1_000_000


def test_the_installed_package_passes_its_tests(dist, tmp_path):
    (wheel,) = dist.glob("*.whl")
    python = created(tmp_path / "venv")
    run(python, "-m", "pip", "install", "-q", wheel, cwd=tmp_path)
    code = "import fnn, jax; print(fnn.__file__); print(fnn.mlp((2, 3)).init(jax.random.key(0)))"
    assert str(tmp_path / "venv") in run(python, "-c", code, cwd=tmp_path).splitlines()[0]
    missing = subprocess.run(
        [python.parent / "fnn", "train", "iris"], cwd=tmp_path, capture_output=True, text=True
    )
    assert missing.returncode != 0
    assert "fnn[cli]" in missing.stderr

    run(python, "-m", "pip", "install", "-q", f"{wheel}[test]", cwd=tmp_path)
    shutil.copytree(ROOT / "tests", tmp_path / "tests")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    tests = [f"tests/{name}" for name in TESTS]
    printed = run(python, "-m", "pytest", "-n", "0", "-o", "addopts=", *tests, cwd=tmp_path)
    assert "passed" in printed
    run(python.parent / "fnn", "train", "iris", "--epochs", "2", cwd=tmp_path)
    assert (tmp_path / "runs" / "iris" / "run.safetensors").exists()


def test_the_python_that_runs_is_one_that_the_package_names():
    classifier = f"Programming Language :: Python :: 3.{sys.version_info.minor}"
    assert classifier in (ROOT / "pyproject.toml").read_text()
