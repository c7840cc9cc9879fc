"""Hooks of mkdocs.yml: README.md is the site's first page, and links into the code become names.

The pages link to files of the repository (`../conf/experiment`), which a reader of the repository
follows; the site has no such files, and shows their paths. One that is not there is an error.
"""

import re
from pathlib import Path, PurePosixPath
from posixpath import normpath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s]+)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds README.md as `index.md`, its links seen from `docs/`."""
    readme = (ROOT / "README.md").read_text()
    seen_from_docs = re.sub(r"\]\(docs/", "](", readme)
    seen_from_docs = _LINK.sub(
        lambda link: link[0] if is_of_site(link[2]) else named(link[1], link[2]),
        seen_from_docs,
    )
    files.append(File.generated(config, "index.md", content=seen_from_docs))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Replaces links that leave `docs/` by the paths that they lead to."""
    if page.file.src_uri == "index.md":
        return markdown
    place = PurePosixPath("docs", page.file.src_uri).parent

    def replace(link: re.Match[str]) -> str:
        target = normpath(str(place / link[2].partition("#")[0]))
        if "://" in link[2] or link[2].startswith("#") or target.startswith("docs/"):
            return link[0]
        return named(link[1], target)

    return _LINK.sub(replace, markdown)


def is_of_site(link: str) -> bool:
    """Whether a link of README.md, seen from `docs/`, stays within the site or leaves for another."""
    target = link.partition("#")[0]
    return "://" in link or not target or (ROOT / "docs" / target).exists()


def named(text: str, path: str) -> str:
    """The text of a link and the file of the repository that it leads to."""
    if not (ROOT / path).exists():
        raise PluginError(f"a page links to {path}, which is not there")
    shown = f"`{path}`"
    return shown if text.strip("`") in (path, Path(path).name) else f"{text} ({shown})"
