"""requirements/lock.txt pins what pyproject.toml requires; `make lock` writes it."""

import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PYTHONS = ("3.10", "3.11", "3.12", "3.13")


def locked() -> list[Requirement]:
    lines = (ROOT / "requirements" / "lock.txt").read_text().splitlines()
    return [Requirement(line) for line in lines if not line.startswith("#")]


def required() -> list[Requirement]:
    """All requirements of simmim, its extras and its build."""
    content = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project = content["project"]
    texts = [*content["build-system"]["requires"], *project["dependencies"]]
    for extra in project["optional-dependencies"].values():
        texts += extra
    requirements = [Requirement(text) for text in texts]
    return [requirement for requirement in requirements if requirement.name != "simmim"]


def environment(python: str) -> dict[str, str]:
    return {
        "python_version": python,
        "python_full_version": f"{python}.7",
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_machine": "x86_64",
    }


def test_a_line_is_one_version_and_names_no_place():
    """Local versions (`+cpu`) and addresses would tie it to one registry."""
    for requirement in locked():
        (pin,) = requirement.specifier
        assert pin.operator == "=="
        assert Version(pin.version).local is None
        assert requirement.url is None
    assert "://" not in (ROOT / "requirements" / "lock.txt").read_text()


@pytest.mark.parametrize("python", PYTHONS)
def test_all_that_is_required_is_pinned_once_within_its_bounds(python):
    pins: dict[str, str] = {}
    for requirement in locked():
        if requirement.marker is None or requirement.marker.evaluate(environment(python)):
            name = canonicalize_name(requirement.name)
            assert name not in pins
            (pin,) = requirement.specifier
            pins[name] = pin.version
    asked = required()
    assert {"torch", "deepspeed", "pytest", "uv"} <= {requirement.name for requirement in asked}
    for requirement in asked:
        assert requirement.specifier.contains(
            pins[canonicalize_name(requirement.name)], prereleases=True
        ), requirement
