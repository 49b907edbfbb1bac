"""The page about a run: one file, in a browser, at two widths."""

import base64
import re
import shutil
import subprocess
from functools import partial

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge

from fnn import runs
from fnn.runs import evaluation, report, training

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
SETTINGS = runs.Settings((8,), "tanh", "adam", 0.01, 32, 3, seed=1, members=2)


def page(folder, source):
    run, examples = training.prepare(source, SETTINGS)
    run = training.advance(run, examples)
    parts = examples.train, examples.test
    scores = report.Scores.of(run, *parts)
    made = partial(report.page, run, *parts, scores, "a <b>.csv")
    assert report.write(folder, run.progress.history, "a <b>.csv", made) == []
    return (folder / report.PAGE).read_text(), scores


def test_baselines_are_scikit_learns():
    for source, model in (("wine", LogisticRegression(max_iter=1000)), ("diabetes", Ridge())):
        run, (train, _, test, _) = training.prepare(source, SETTINGS)
        model.fit(*run.standardised(train))
        base = report.Scores.of(run, train, test)
        if source == "wine":
            guess = model.predict_proba(run.inputs.apply(test.x))
            expected = evaluation.Classified.of(run.classes, test.y, guess)
        else:
            guess = run.outputs.undo(model.predict(run.inputs.apply(test.x)).reshape(-1, 1))
            expected = evaluation.Predicted.of(run.values, test.y, guess, run.outputs.mean)
        assert base.linear.chief[1] == pytest.approx(expected.chief[1], rel=5e-3)
        assert base.mean.chief[1] > base.linear.chief[1]


@pytest.mark.sampled(2)
@pytest.mark.parametrize("source", ["breast_cancer", "diabetes"])
def test_the_page_says_what_the_command_says(tmp_path, source):
    text, scores = page(tmp_path, source)
    assert scores.summary() in text
    assert "a &lt;b&gt;.csv" in text
    assert "$" not in text
    assert not re.search(r'(src|href)="(?!data:)', text)
    assert text.count("<img") == 4
    assert base64.b64encode((tmp_path / report.PICTURE).read_bytes()).decode() in text
    assert "The rows most wrong" in text
    assert all(name in text for name in scores.network.measures())


@pytest.mark.long
@pytest.mark.skipif(CHROMIUM is None, reason="there is no browser")
@pytest.mark.parametrize("width", [1200, 400])
def test_the_page_in_a_browser(tmp_path, width):
    page(tmp_path, "diabetes")
    probe = "<script>document.title = document.documentElement.scrollWidth + ' ' + [...document.images].every(i => i.naturalWidth > 0)</script>"  # noqa: E501
    (tmp_path / "p.html").write_text((tmp_path / report.PAGE).read_text() + probe)
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += [f"--window-size={width},2000", (tmp_path / "p.html").as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    needs, loaded = re.findall(r"<title>(\d+) (\w+)</title>", dom)[0]
    assert loaded == "true"
    assert int(needs) <= max(width, 500)  # a browser's least width
    assert np.isfinite(int(needs))
