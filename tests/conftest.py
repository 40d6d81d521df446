"""Settings of every test run."""

from collections.abc import Generator
from typing import TypeVar

import pytest
from hypothesis import settings

# No deadline: a shared machine is slow at random. Derandomised: the same examples in every run.
settings.register_profile("repository", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("repository")

Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)


def pytest_addoption(parser: pytest.Parser) -> None:
    """--allow-skips: for an environment without some of the extras."""
    parser.addoption(
        "--allow-skips", action="store_true", help="let tests skip for a missing library too"
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test that skips itself."""
    return _judged((yield), item.config)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """A file that skips itself, by `importorskip` at its top."""
    return _judged((yield), collector.config)


def _judged(report: Report, config: pytest.Config) -> Report:
    """A skip is a failure, so that no check is lost unseen; only a GPU may be missing."""
    if report.skipped and not config.getoption("--allow-skips"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if not reason.removeprefix("Skipped: ").startswith("no GPU"):
            report.outcome = "failed"
            report.longrepr = f"{reason}\nOnly a missing GPU may skip a test (or --allow-skips)."
    return report
