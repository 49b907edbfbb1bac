"""The site: its links, anchors and names, the tasks in two clicks, and its pages in a browser.

It is built where mkdocs is installed; FNN_SITE names a folder that has it already.
"""

import functools
import http.server
import json
import os
import queue
import re
import shutil
import subprocess
import sys
import threading
from html import unescape
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[1]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
TASKS = {
    "check my custom_vjp": ("checker/", "custom_vjp"),
    "sweep learning rates": ("sweeps/", "learning rate"),
    "train on a table": ("tables/", "fnn train"),
    "per-example gradients": ("per-example/", "per-example gradients"),
    "many devices": ("scale/", "devices"),
    "what will it cost on an H100": ("scale/", "H100"),
}
"""A reader's task: the page that serves it and words that stand there."""
HARNESS = """<!doctype html><title>harness</title><body><script>
(async () => {
  const found = [];
  for (const path of PAGES) {
    const frame = document.createElement("iframe");
    frame.style.cssText = "width: 1200px; height: 900px";
    frame.src = path;
    const loaded = new Promise(done => frame.onload = done);
    document.body.append(frame);
    await loaded;
    const page = frame.contentDocument;
    const style = frame.contentWindow.getComputedStyle(page.body);
    for (const width of [1200, 400]) {
      frame.style.width = width + "px";
      found.push({
        path, width,
        needs: page.documentElement.scrollWidth,
        title: page.querySelector("h1")?.textContent ?? "",
        broken: [...page.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src),
        ground: style.backgroundColor,
        ink: style.color,
      });
    }
    frame.remove();
  }
  await fetch("/found", {method: "POST", body: JSON.stringify(found)});
})();
</script>"""
"""Opens each page at two widths, and sends what it measured there."""


class Page(HTMLParser):
    """A page's anchors, its links and its text."""

    def __init__(self, text):
        super().__init__()
        self.anchors, self.links, self.code, self.inside = set(), [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.anchors |= {attrs[name] for name in ("id", "name") if attrs.get(name)}
        if tag == "a" and "href" in attrs:
            self.links.append(attrs["href"])
        if tag in ("img", "script") and attrs.get("src"):
            self.links.append(attrs["src"])
        if tag in ("a", "pre", "h1", "h2", "h3", "h4", "code"):
            self.inside.append(tag)

    def handle_endtag(self, tag):
        if tag in self.inside:
            while self.inside.pop() != tag:
                pass

    def handle_data(self, data):
        if self.inside and self.inside == ["code"]:
            self.code.append(data)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site."""
    if "FNN_SITE" in os.environ:
        return Path(os.environ["FNN_SITE"])
    if any(find_spec(name) is None for name in ("mkdocs", "material", "mkdocstrings", "jupytext")):
        pytest.skip("mkdocs is not installed")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", folder]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site):
    """{the path of each page: what it has}."""
    found = sorted(site.rglob("index.html"))
    return {p.parent.relative_to(site).as_posix().strip("."): Page(p.read_text()) for p in found}


def target_of(path, link):
    """The path below the site and the anchor of a link; None where it leads out."""
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return None
    where = os.path.normpath(os.path.join("/", path, unquote(parts.path)))
    return where.strip("/"), unquote(parts.fragment)


def test_every_link_and_anchor_leads_somewhere(site, pages):
    wrong = []
    for path, page in pages.items():
        for link in page.links:
            target = target_of(path, link)
            if target is None:
                continue
            where, anchor = target
            exists = where in pages or (site / where).is_file()
            if not exists or (anchor and where in pages and anchor not in pages[where].anchors):
                wrong.append((path, link))
    assert not wrong


def test_public_names_have_an_anchor_and_lead_to_it(pages, monkeypatch):
    pytest.importorskip("mkdocs")
    monkeypatch.syspath_prepend(ROOT / "docs" / "site")
    import hooks

    anchors = set().union(*(page.anchors for path, page in pages.items() if path[:3] == "api"))
    names = {name: anchor for name, anchor in hooks.NAMES.items() if name not in hooks.SHORT}
    assert {a for a in names.values() if not a.startswith("api/")} <= anchors
    for path, page in pages.items():
        if path not in ("changelog", "command"):
            left = {text for text in page.code if re.sub(r"\(.*", "", text) in names}
            assert not left, (path, left)


def test_a_program_leads_to_the_reference(site):
    shown = (site / "index.html").read_text()
    assert re.search(r'href="api/models/#fnn.models.mlp"><span class="n">fnn</span>', shown)


@pytest.mark.parametrize("task", TASKS)
def test_a_task_is_two_clicks_away(site, pages, task):
    path, words = TASKS[task]
    path = path.strip("/")
    first = {target_of("", link)[0] for link in pages[""].links if target_of("", link)}
    second = {
        target_of(page, link)[0]
        for page in first & set(pages)
        for link in pages[page].links
        if target_of(page, link)
    }
    assert path in first | second
    text = unescape(re.sub(r"<[^>]+>", "", (site / path / "index.html").read_text()))
    assert words.lower() in text.lower()


def test_equations_are_set_and_notebooks_are_pages(site):
    dense = (site / "api" / "layers" / "index.html").read_text()
    assert "Z  = X W<sup>T</sup> + b" in dense
    assert "dZ<sup>T</sup> X" in dense
    sweep = site / "notebooks" / "sweep"
    assert "<img" in (sweep / "index.html").read_text()
    assert len(list(site.glob("notebooks/*.ipynb"))) == 3


@pytest.fixture
def served(site):
    """Where the site and the harness are served, and what the harness sent."""
    sent = queue.Queue()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def answer(self, content):
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_GET(self):
            if self.path != "/harness":
                return super().do_GET()
            paths = [f"/{p.parent.relative_to(site)}/" for p in sorted(site.rglob("index.html"))]
            return self.answer(HARNESS.replace("PAGES", json.dumps(paths)).encode())

        def do_POST(self):
            content = self.rfile.read(int(self.headers["Content-Length"]))
            self.answer(b"")
            sent.put(json.loads(content))

    handler = functools.partial(Handler, directory=str(site))
    with http.server.ThreadingHTTPServer(("localhost", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://localhost:{server.server_port}", sent
        server.shutdown()


def brightness(colour):
    return sum(map(int, re.findall(r"\d+", colour)[:3])) / 3


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_pages_in_a_browser(served, scheme, tmp_path):
    address, sent = served
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"]
    flags += ["--disable-background-networking", "--disable-component-update"]
    flags += [f"--user-data-dir={tmp_path}", "--remote-debugging-port=0"]
    flags += [f"--blink-settings=preferredColorScheme={int(scheme == 'light')}"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    browser = subprocess.Popen([CHROMIUM, *flags, f"{address}/harness"], **quiet)
    try:
        found = sent.get(timeout=240)
    finally:
        browser.terminate()
        browser.wait(30)
    assert len(found) >= 80
    for page in found:
        assert page["needs"] <= page["width"], page  # nothing to scroll sideways
        assert page["title"], page
        assert not page["broken"], page
        dark = brightness(page["ground"]) < brightness(page["ink"])
        assert dark == (scheme == "dark"), page
