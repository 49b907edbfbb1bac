"""Commands whose outputs are at the place of inputs."""

import os

import pytest
from click.testing import CliRunner

from fnn import cli, runs
from fnn.runs import files, training


def command(*args):
    result = CliRunner().invoke(cli.fnn, [str(a) for a in args])
    assert not result.exception or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    (folder / "a.csv").write_text("a,y\n" + "".join(f"{i}.5,{i * 2}.25\n" for i in range(30)))
    settings = runs.Settings((), "relu", "sgd", 0.1, 8, 1, seed=0)
    files.save(folder, training.prepare(folder / "a.csv", settings)[0])
    return folder


@pytest.mark.parametrize(
    "line",
    [
        "predict . a.csv --out a.csv",
        "predict . a.csv --out link.csv",
        "predict . a.csv --out run.safetensors",
        "explain . a.csv --out a.csv",
        "explain . a.csv --out run.safetensors",
        "export . run.safetensors",
        "train history.csv --out . --overwrite",
        "train a.csv --out other",
    ],
)
def test_no_command_replaces_what_it_reads_or_what_belongs_to_no_run(line, trained, monkeypatch):
    monkeypatch.chdir(trained)
    if not os.path.exists("link.csv"):
        os.symlink("a.csv", "link.csv")
        os.mkdir("other")
    for name in ("history.csv", "other/history.csv"):
        (trained / name).write_text((trained / "a.csv").read_text())
    before = {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}
    result = command(*line.split())
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert "would be replaced" in result.stderr or "does not belong to a run" in result.stderr
    assert {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()} == before
