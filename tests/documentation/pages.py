"""What a page of the documentation tells its reader to type: shell commands and Python."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

# What ends so is a file and no option.
_FILES = (".py", ".yaml", ".html", ".json", ".jsonl", ".csv", ".safetensors", ".ckpt", ".log")
# What begins so between backticks is a command.
_IN_PROSE = ("python -m simmim.", "python scripts/", "make ", "pip install ")
# A line of an indented block that begins so is a command; in a block fenced as `bash` every line is.
_BEGINNINGS = ("python ", "make ", "pip ", "torchrun ", "srun ", "sbatch ", "tensorboard ")


class Block(NamedTuple):
    """A fenced or indented block; `language` is `indented` for the latter."""

    language: str
    line: int
    text: str


class Snippet(NamedTuple):
    """Something to type: a command (one logical line) or a block of Python."""

    language: str
    line: int
    text: str


def name(page: Path) -> str:
    """As test names and messages have it."""
    return page.relative_to(ROOT).as_posix()


def snippets(page: Path) -> list[Snippet]:
    """All that a page tells to type, from top to bottom; commands in prose too."""
    lines = page.read_text().splitlines()
    found = [snippet for block in blocks(lines) for snippet in in_block(block)]
    return sorted([*found, *in_prose(lines)], key=lambda snippet: snippet.line)


def blocks(lines: list[str]) -> Iterator[Block]:
    """Fenced blocks, and indented ones that follow an empty line."""
    number = 0
    while number < len(lines):
        start = number
        number += 1
        if fence := re.match(r"( *)(```+)\s*(\w*)", lines[start]):
            while not lines[number].lstrip().startswith(fence[2]):
                number += 1
            text = [line.removeprefix(fence[1]) for line in lines[start + 1 : number]]
            yield Block(fence[3], start + 2, "\n".join(text))
            number += 1
        elif lines[start].startswith("    ") and (start == 0 or not lines[start - 1].strip()):
            while number < len(lines) and (lines[number].startswith("    ") or not lines[number]):
                number += 1
            text = [line[4:] for line in lines[start:number]]
            yield Block("indented", start + 1, "\n".join(text))


def in_block(block: Block) -> Iterator[Snippet]:
    """The commands of a block, or the whole of one of Python."""
    if block.language == "python":
        yield Snippet("python", block.line, block.text)
    elif block.language in ("bash", "indented"):
        line = block.line
        for command in re.findall(r"(?:.*\\\n)*.*\n?", block.text):
            typed = command.replace("\\\n", " ").strip()
            is_command = block.language == "bash" or typed.startswith(_BEGINNINGS)
            if is_command and typed and not typed.startswith("#"):
                yield Snippet("bash", line, typed)
            line += command.count("\n")


def in_prose(lines: list[str]) -> Iterator[Snippet]:
    """Commands between backticks; those with a part left out (… or <…>) are no commands."""
    for number, line in enumerate(lines, start=1):
        for text in re.findall(r"(?<!`)`([^`]+)`(?!`)", line):
            if text.startswith(_IN_PROSE) and not re.search(r"[…<]", text):
                yield Snippet("bash", number, text)


def words(command: str) -> list[str]:
    """The words of a command, without its comment, the environment variables before it, and `…`."""
    typed = [word for word in shlex.split(re.sub(r"(^|\s)#.*", "", command)) if word != "…"]
    while typed and re.match(r"[A-Z_]+=", typed[0]):
        typed.pop(0)
    return typed


def options_in_prose(page: Path) -> Iterator[tuple[int, str]]:
    """What stands between backticks and looks like a dotted option: `optim.lr`, `mask.ratio=0.5`."""
    for number, line in enumerate(page.read_text().splitlines(), start=1):
        for text in re.findall(r"(?<!`)`([^`\s]+)`(?!`)", line):
            option = re.match(r"([a-z_]+(?:\.[a-z_0-9]+)+)(?:=.*)?$", text)
            if option and not option[1].endswith(_FILES):
                yield number, option[1]
