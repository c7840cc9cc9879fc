"""What the documentation tells a reader to type does what it says."""

import re

import pytest
from conftest import compose
from documentation.commands import type_command
from documentation.pages import PAGES, ROOT, name, options_in_prose, snippets
from documentation.things import Things
from omegaconf import OmegaConf

from simmim.command_line import config_directory

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="session")
def things(tmp_path_factory: pytest.TempPathFactory) -> Things:
    return Things(tmp_path_factory.mktemp("things"))


@pytest.mark.parametrize("page", [page for page in PAGES if snippets(page)], ids=name)
def test_what_a_page_tells_to_type_works(page, things, tmp_path, monkeypatch):
    """In one folder from top to bottom, as a reader does."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for snippet in snippets(page):
        things.provide(snippet.text, tmp_path)
        try:
            if snippet.language == "python":
                names = names or things.names()
                exec(compile(snippet.text, name(page), "exec"), names)
            else:
                type_command(snippet.text, tmp_path)
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
        found |= dotted(nodes if group == "experiment" else {group: nodes})
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
    missing = [stage for stage in modules if f"simmim.{stage}" not in told]
    assert missing + [script for script in scripts if script not in told] == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_a_fenced_block_says_what_it_is(page):
    """An unnamed block would be neither run nor known to be no command."""
    fences = re.findall(r"^ *```(\w*)", page.read_text(), re.MULTILINE)
    assert all(fences[::2])


def test_a_page_that_tells_to_type_something_unknown_fails(tmp_path):
    with pytest.raises(pytest.fail.Exception, match="nothing says how to test `frobnicate x`"):
        type_command("frobnicate x", tmp_path)
    with pytest.raises(Exception, match=r"mask\.rato"):
        type_command("torchrun -m simmim.pretrain mask.rato=0.5", tmp_path)
