"""Check the words of the project: ``python docs/prose.py [FILE ...]``; without a file, all that ``prose.toml`` names.

Rules:

* proselint reads the prose, with the project's own words as one more of its checks. ``prose.toml`` has these words with
  what to write instead, and says which of proselint's checks are off.
* Prose is the text of a Markdown page, the docstrings and comments of a Python file, and the comments of any other
  file. Code, HTML, the targets of links, and what stands in double quotes are skipped.
* A finding is one line: file, line, the words, and what to write. With any finding the exit status is 1.
"""

# ruff: noqa: INP001 (no package: it is run by its path)

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from bisect import bisect
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt
from proselint.checks import __register__ as proselints_own
from proselint.config import DEFAULT
from proselint.registry import CheckRegistry
from proselint.registry.checks import Check, engine, types
from proselint.tools import LintFile

ROOT = Path(__file__).parents[1]
RULES: dict[str, Any] = import_module("tomllib" if sys.version_info >= (3, 11) else "tomli").loads(
    Path(__file__).with_suffix(".toml").read_text()
)
WORDS = {f"(?:{words})".replace(" ", r"\s+"): instead for words, instead in RULES["words"].items()}
CheckRegistry().register_many((*proselints_own, Check(types.PreferredForms(WORDS), engine.Fancy(), "own", "write {}")))
OFF = dict.fromkeys(RULES["off"], False)
CHECKS = {**OFF, **DEFAULT["checks"], **OFF, "own": True}
"""Which checks are used. The first name that fits decides, so a single check stands before its group."""

CODE = "§"
"""Stands in the prose where code or a quotation was: one word of the sentence."""

END = "¶"
"""The line after each paragraph, so that no phrase and no sentence goes on from one into the next."""

LITERAL = re.compile(rf'"[^"{END}]*"|https?://[^\s)]+')
"""A quotation or an address: neither is prose."""

CODE_IN_PYTHON = re.compile(r"(?::\w+:)?(`+)[^`]+\1")
FOR_TOOLS = re.compile(r"^(?:noqa|type|fmt|ruff|mypy|pragma)\b:?[^(]*|^!.*")
"""The start of a comment that a tool reads; its reason, in parentheses, is prose."""

NEW_PARAGRAPH = re.compile(r"\s*(?:$|\* |- |\d+\. |:\w+|>>> )")
COMMENT = re.compile(r"(?:^|\s)#+ (.*)")
SENTENCE = re.compile(rf"[^.?!{END}]+(?:[.?!](?!\s)[^.?!{END}]*)*")

Line = tuple[int, str]


def lines_of_markdown(source: str) -> Iterator[Line]:
    """Yield the prose of a page, with :data:`END` after each paragraph."""
    number = 0
    for token in MarkdownIt("commonmark").enable("table").parse(source):
        number = token.map[0] + 1 if token.map else number
        if token.type != "inline":
            continue
        text = ""
        for child in token.children or ():
            if child.type in ("softbreak", "hardbreak"):
                text += "\n"
            elif child.type in ("text", "code_inline"):
                text += child.content if child.type == "text" else CODE
        for offset, line in enumerate(text.split("\n")):
            yield number + offset, line
        yield number, END


def lines_of_python(source: str) -> Iterator[Line]:
    """Yield the docstrings, those of constants included, and the comments of a file."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            text = CODE_IN_PYTHON.sub(lambda code: CODE + "\n" * code[0].count("\n"), node.value.value)
            for offset, line in enumerate(text.split("\n")):
                if NEW_PARAGRAPH.match(line):
                    yield node.lineno, END
                yield node.lineno + offset, re.sub(r"^\s*(?:[*-] |:\w+(?: \w+)*:)", "", line)
            yield node.lineno, END
    before = 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            number, column = token.start
            if number != before + 1 or token.line[:column].strip():
                yield number, END
            yield number, FOR_TOOLS.sub("", CODE_IN_PYTHON.sub(CODE, token.string.lstrip("# ")))
            before = number


def lines_of_comments(source: str) -> Iterator[Line]:
    """Yield the comments of a file in which ``#`` begins them."""
    for number, line in enumerate(source.split("\n"), 1):
        comment = COMMENT.search(line)
        if not line.lstrip().startswith("#"):
            yield number, END
        if comment and not line.startswith("#!"):
            yield number, CODE_IN_PYTHON.sub(CODE, comment[1])


def findings(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the line and the text of each finding in a file."""
    read = {".md": lines_of_markdown, ".py": lines_of_python}.get(path.suffix, lines_of_comments)
    numbers, starts, prose = [], [], ""
    for number, line in read(path.read_text()):
        numbers.append(number)
        starts.append(len(prose))
        prose += line.strip() + "\n"
    prose = LITERAL.sub(lambda literal: re.sub(r"[^\n]", CODE, literal[0]), prose)

    def line_at(offset: int) -> int:
        return numbers[bisect(starts, offset) - 1]

    for result, _ in LintFile(path.name, prose).lint({"max_errors": 1000, "checks": CHECKS}):
        start, end = (offset - 1 for offset in result.span)  # LintFile puts an empty line before the text
        yield line_at(start), " ".join(f"{prose[start:end]}: {result.message}".split())
    for sentence in SENTENCE.finditer(prose) if read is not lines_of_comments else ():  # a list there has no marks
        words = sentence[0].split()
        if len(words) > RULES["longest_sentence"]:
            text = f"{' '.join(words[:6])} …: {len(words)} words in a sentence; write several, or a list"
            yield line_at(sentence.start() + len(sentence[0]) - len(sentence[0].lstrip())), text


def main(names: list[str]) -> int:
    """Print what is found in the files, and return the exit status."""
    listed = sorted(path for glob in RULES["files"] for path in ROOT.glob(glob) if path.is_file())
    found = 0
    for path in [Path(name) for name in names] or [path for path in listed if path.suffix != ".pyc"]:
        for line, text in sorted(set(findings(path))):
            found += 1
            print(f"{path if names else path.relative_to(ROOT)}:{line}: {text}")  # noqa: T201 (a command prints)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
