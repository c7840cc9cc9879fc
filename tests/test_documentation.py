"""What the documentation tells a reader to type does what it says."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import compose
from documentation.commands import as_typed, small, type_command
from documentation.pages import PAGES, ROOT, name, options_in_prose, snippets
from documentation.things import OrdinaryThings, Things
from omegaconf import OmegaConf

from simmim.cli.main import config_directory

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.unchecked]


# What a newcomer types first: with its defaults, on ordinary images.
FIRST_STEPS = {
    "README.md",
    "docs/quickstart.md",
    "docs/own-data.md",
    "docs/with-labels.md",
    "docs/choosing.md",
    "docs/resolution-transfer.md",
    "docs/reconstructions.md",
}


@pytest.fixture(scope="session")
def tiny_things(tmp_path_factory: pytest.TempPathFactory) -> Things:
    return Things(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def ordinary_things(tmp_path_factory: pytest.TempPathFactory) -> Things:
    return OrdinaryThings(tmp_path_factory.mktemp("ordinary"))


def typed_pages() -> Iterator[Any]:
    """Pages with commands; README's are typed by `make test` already."""
    for page in PAGES:
        if snippets(page):
            is_slow = name(page) != "README.md"
            yield pytest.param(page, id=name(page), marks=[pytest.mark.slow] if is_slow else [])


@pytest.mark.parametrize("page", typed_pages())
def test_what_a_page_tells_to_type_works(page, request, tmp_path, monkeypatch):
    """In one folder from top to bottom, as a reader does."""
    is_first = name(page) in FIRST_STEPS
    things = request.getfixturevalue("ordinary_things" if is_first else "tiny_things")
    additions = as_typed if is_first else small
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for snippet in snippets(page):
        things.provide(snippet.text, tmp_path)
        try:
            if snippet.language == "python":
                # Code of the first steps stands by itself.
                names = names or ({} if is_first else things.names())
                exec(compile(snippet.text, name(page), "exec"), names)
            else:
                type_command(snippet.text, tmp_path, additions)
        except BaseException as error:
            # Which line of the page it was stands first.
            raise AssertionError(f"{name(page)}:{snippet.line}: {snippet.text}") from error


def dotted(node: object, prefix: str = "") -> set[str]:
    if not isinstance(node, dict):
        return set()
    names = {f"{prefix}{key}" for key in node}
    return names.union(*(dotted(value, f"{prefix}{key}.") for key, value in node.items()))


@pytest.fixture(scope="module")
def options() -> set[str]:
    """The dotted names of all options, with every choice of every group."""
    roots = [path.stem for path in config_directory().glob("*.yaml")]
    found = set()
    for root in roots:
        found |= dotted(OmegaConf.to_container(compose(root, []), resolve=False))
    for path in config_directory().glob("*/*.yaml"):
        group = path.parent.name
        nodes = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
        is_global = "@package _global_" in path.read_text()
        found |= dotted(nodes if is_global else {group: nodes})
    return found


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_the_options_that_a_page_names_are_there(page, options):
    groups = {option.partition(".")[0] for option in options}
    named = [
        f"{name(page)}:{line}: {option}"
        for line, option in options_in_prose(page)
        if option.partition(".")[0] in groups and option not in options
    ]
    assert named == []


def test_the_reader_is_told_of_every_stage_and_script():
    """What nobody is told of is not used."""
    told = "\n".join(page.read_text() for page in PAGES)
    modules = [path.stem for path in config_directory().glob("*.yaml")]
    scripts = [
        path.name
        for path in (ROOT / "scripts").glob("*.py")
        if 'if __name__ == "__main__"' in path.read_text()
    ]
    scripts += [path.parent.name for path in (ROOT / "scripts").glob("*/__main__.py")]
    missing = [stage for stage in modules if f"simmim.{stage}" not in told]
    assert missing + [script for script in scripts if script not in told] == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_a_fenced_block_says_what_it_is(page):
    """An unnamed block would be neither run nor known to be no command."""
    fences = re.findall(r"^ *```(\w*)", page.read_text(), re.MULTILINE)
    assert all(fences[::2])


def test_a_page_that_tells_to_type_something_unknown_fails(tmp_path):
    with pytest.raises(pytest.fail.Exception, match="nothing says how to test `frobnicate x`"):
        type_command("frobnicate x", tmp_path, small)
    with pytest.raises(Exception, match=r"mask\.rato"):
        type_command("torchrun -m simmim.pretrain mask.rato=0.5", tmp_path, small)
