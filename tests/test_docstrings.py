"""Public names say what they are: shapes, units, errors, sources.

Public is what the pages of docs/api/ list, which has to be all that a package's `__all__` and the
configuration name.
"""

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.utils import get_object

from simmim import analysis, checkpoints, data
from simmim.cli.main import config_directory, find_stage
from simmim.models import swin
from simmim.training import callbacks, optim

API = Path(__file__).parent.parent / "docs" / "api"
PUBLIC = sorted(
    {
        name
        for page in API.glob("*.md")
        for name in re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE)
    }
)
# One function a configuration; `report` takes no configuration.
STAGES = {find_stage(path.stem) for path in config_directory().glob("*.yaml")}
# A table of arguments is data, told of where create_encoder is.
NO_CODE = {"simmim.models.swin.ARCHITECTURES"}
# Whose ideas are the papers' or other programs'.
FROM_PAPERS = (
    "simmim.models.swin.",
    "simmim.models.masking.",
    "simmim.models.losses.",
    "simmim.models.heads.",
)
SOURCE = re.compile(r"arXiv|SimMIM, section|Swin V[12]|\(V[12]|github|official")


def named_by_packages() -> set[str]:
    packages = (analysis, callbacks, checkpoints, data, swin, optim)
    return {f"{package.__name__}.{name}" for package in packages for name in package.__all__}


def nodes(node: Any) -> list[dict[str, Any]]:
    """All nodes of a configuration file that name what they build."""
    if not isinstance(node, dict):
        return []
    found = [node] if "_target_" in node else []
    return found + [target for value in node.values() for target in nodes(value)]


TARGETS = [
    (path.relative_to(config_directory()).as_posix(), node)
    for path in sorted(config_directory().rglob("*.yaml"))
    for node in nodes(yaml.safe_load(path.read_text()))
]


def is_same(name: str, public: set[Any]) -> bool:
    return name in NO_CODE or get_object(name) in public


def test_all_that_packages_and_configurations_name_is_on_a_page():
    public = {get_object(name) for name in PUBLIC}
    named = named_by_packages() | {node["_target_"] for _, node in TARGETS}
    import simmim

    named |= {f"simmim.{name}" for name in simmim.__all__}
    assert [name for name in sorted(named) if not is_same(name, public)] == []


def callables(name: str) -> list[tuple[str, Callable[..., Any]]]:
    """The name itself and, of a class, the public methods and properties that it defines."""
    found = get_object(name)
    if not inspect.isclass(found):
        return [(name, found)]
    members = [
        (f"{name}.{key}", member.fget if isinstance(member, property) else member)
        for key, member in vars(found).items()
        if not key.startswith("_") and (inspect.isfunction(member) or isinstance(member, property))
    ]
    return [(name, found), *members]


def docstring(found: Any) -> str:
    """Its own or, of an overriding method, what it overrides has."""
    return inspect.getdoc(found) or ""


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_says_what_it_is(name):
    for full_name, found in callables(name):
        summary = docstring(found).partition("\n")[0]
        assert len(summary.split()) >= 2, f"{full_name} has no docstring"
        assert "dict(" not in summary, f"{full_name} has only what Python writes by itself"


@pytest.mark.parametrize("name", PUBLIC)
def test_tensors_have_their_shapes_in_signatures(name):
    for full_name, found in callables(name):
        signed = found.__init__ if inspect.isclass(found) else found
        bare = [
            parameter
            for parameter, hint in getattr(signed, "__annotations__", {}).items()
            if re.fullmatch(r"(torch\.)?Tensor( \| None)?", hint_text(hint))
        ]
        assert bare == [], f"{full_name}: {bare} have no shape"


def hint_text(hint: Any) -> str:
    return hint.__name__ if inspect.isclass(hint) else str(hint)


@pytest.mark.parametrize("name", PUBLIC)
def test_errors_are_told(name):
    """Where a public function itself raises UserError, its docstring (or its class's) says when."""
    owner = get_object(name)
    for full_name, found in callables(name):
        body = checks(found)
        if not inspect.isfunction(body) or not raises_user_error(body):
            continue
        told = docstring(found) + docstring(owner)
        assert re.search(r"Raises|UserError", told), f"{full_name} raises UserError and is silent"


def checks(found: Any) -> Any:
    """The function that refuses arguments: a class's constructor, or what a dataclass has for it."""
    if inspect.isclass(found):
        found = getattr(found, "__post_init__", found.__init__)
    return inspect.unwrap(found)


def raises_user_error(function: Callable[..., Any]) -> bool:
    return "raise UserError" in inspect.getsource(function)


@pytest.mark.parametrize(
    "name", [name for name in PUBLIC if name.startswith(FROM_PAPERS) and ".hooks." not in name]
)
def test_what_comes_from_a_paper_names_it(name):
    found = get_object(name)
    module = inspect.getmodule(found)
    assert SOURCE.search(docstring(found) + (module.__doc__ or "")), f"{name} names no source"


@pytest.mark.parametrize("name", PUBLIC)
def test_arguments_are_explained(name):
    """By name in the docstring, or by the comment beside the option that sets them.

    But for tensors, whose shapes say it, and what Lightning and torch give to methods.
    """
    found = get_object(name)
    if is_explained_elsewhere(found):
        return
    told = docstring(found) + " " + " ".join(comments(found))
    explained = set(re.findall(r"\w+", told))
    missing = [
        parameter.name
        for parameter in inspect.signature(found).parameters.values()
        if parameter.name not in explained
        and not says_by_its_type(parameter)
        and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    ]
    assert missing == [], f"{name} does not explain {missing}"


def is_explained_elsewhere(found: Any) -> bool:
    """Stages take what conf/<stage>.yaml says; some classes have another library's constructor."""
    inherits = inspect.isclass(found) and "__init__" not in vars(found) and not is_tuple(found)
    return found in STAGES or inherits


def is_tuple(found: type) -> bool:
    return issubclass(found, tuple)


def comments(found: Any) -> list[str]:
    """The names of the options that configurations set this by, with a comment or a clear name."""
    lines = []
    for path, node in TARGETS:
        if get_object(node["_target_"]) is found:
            text = (config_directory() / path).read_text()
            lines += re.findall(r"^ *(\w+):[^#\n]*# \S", text, re.MULTILINE)
    return lines


def says_by_its_type(parameter: inspect.Parameter) -> bool:
    """Shapes, the configuration's nodes, and the field's words for what everyone knows."""
    text = hint_text(parameter.annotation)
    return "jaxtyping" in text or "Tensor" in text or parameter.name in KNOWN


KNOWN = {
    "path", "encoder", "classifier", "weights", "image_size", "window_size", "in_channels",
    "batch_size", "num_workers", "num_classes", "seed", "run_dir", "root", "channels", "num_heads",
    "num_samples", "features", "images", "mask", "normalisation",
}  # fmt: skip
