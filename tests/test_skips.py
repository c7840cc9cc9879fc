"""In CI nothing is skipped but for the listed reasons."""

import pytest
from conftest import LISTED_SKIPS, fail_unlisted_skip


def skipped(reason: str) -> pytest.TestReport:
    where = ("tests/test_x.py", 1, f"Skipped: {reason}")
    return pytest.TestReport(
        "test_x", ("tests/test_x.py", 1, "test_x"), {}, "skipped", where, "call"
    )


def test_what_is_skipped_for_an_unlisted_reason_fails(monkeypatch):
    monkeypatch.setenv("SIMMIM_SKIPS", "listed")
    report = skipped("could not import 'deepspeed'")
    fail_unlisted_skip(report)
    assert report.failed
    assert "could not import 'deepspeed'" in report.longreprtext


@pytest.mark.parametrize("reason", sorted(LISTED_SKIPS))
def test_a_listed_reason_is_let_through(monkeypatch, reason):
    monkeypatch.setenv("SIMMIM_SKIPS", "listed")
    report = skipped(reason)
    fail_unlisted_skip(report)
    assert report.skipped


def test_on_other_machines_a_missing_package_skips_its_tests(monkeypatch):
    monkeypatch.delenv("SIMMIM_SKIPS", raising=False)
    report = skipped("could not import 'deepspeed'")
    fail_unlisted_skip(report)
    assert report.skipped
