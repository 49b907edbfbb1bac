"""`pytest --fnn-rules PACKAGE`: check the derivative rules that a package's tests run.

While the tests run, the arguments of each `jax.custom_vjp` and `jax.custom_jvp` of the package are
recorded; then each rule is checked at these arguments and at special values of them. A table is
printed at the end; the run fails if a rule does. Without the option nothing happens.
"""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest


def pytest_addoption(parser: Any) -> None:
    """The options of this plugin."""
    group = parser.getgroup("fnn", "checks of derivative rules")
    group.addoption("--fnn-rules", metavar="PACKAGE", help="check the rules of this package")
    group.addoption("--fnn-rules-json", metavar="FILE", help="write what was found as JSON")
    group.addoption("--fnn-rules-seconds", type=float, default=60, metavar="N", help="in all (60)")


def pytest_configure(config: Any) -> None:
    """Start recording if the option is set."""
    if config.getoption("fnn_rules"):
        if config.getoption("numprocesses", None):
            raise pytest.UsageError("--fnn-rules records in one process: expected -n0")
        config.pluginmanager.register(_Rules(config), "fnn-rules-session")


class _Rules:
    """The hooks of a session that records."""

    def __init__(self, config: Any) -> None:
        from fnn.verify import _search

        self.config, self.open, self.checked = config, ExitStack(), _search.checked
        self.found: Any = ""
        self.calls = self.open.enter_context(_search.recording(config.getoption("fnn_rules")))

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: Any) -> None:
        self.open.close()
        self.found = self.checked(self.calls, self.config.getoption("fnn_rules_seconds"))
        for row in self.found.rows:
            if row.verdict == "fail":  # as a test of its own, for the counts and JUnit's file
                where = f"fnn-rules::{row.name}", ("fnn-rules", None, row.name)
                report = pytest.TestReport(*where, {}, "failed", str(row.report), "call")
                session.config.hook.pytest_runtest_logreport(report=report)
        if self.found.verdict == "fail" and session.exitstatus in (0, 5):
            session.exitstatus = 1
        if path := self.config.getoption("fnn_rules_json"):
            Path(path).write_text(self.found.to_json())

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        terminalreporter.section(f"derivative rules of {self.config.getoption('fnn_rules')}")
        terminalreporter.line(str(self.found) or "no rule was called")
