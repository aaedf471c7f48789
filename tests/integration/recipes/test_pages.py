"""The pages of the recipes: they show the files as they are, and every file of theirs is shown."""

from __future__ import annotations

import subprocess

import pytest

from tests.harness import documents
from tests.harness.recipes import DEPLOY, EXAMPLE

PAGES = sorted(page for page in documents.pages() if page.startswith("docs/recipes/"))


@pytest.mark.parametrize("page", PAGES)
def test_a_recipe_s_page_shows_its_files_as_they_are(page: str) -> None:
    for block in documents.blocks(page):
        if block.title:
            assert block.text == (EXAMPLE / block.title).read_text(), block.title


def test_every_recipe_s_file_is_shown() -> None:
    titles = {block.title for page in PAGES for block in documents.blocks(page)}
    files = {str(file.relative_to(EXAMPLE)) for file in DEPLOY.rglob("*") if file.is_file()}
    assert files <= titles


@pytest.mark.parametrize("page", PAGES)
def test_a_recipe_s_commands_are_shell(page: str) -> None:
    for block in documents.blocks(page):
        if block.language == "sh":
            subprocess.run(["bash", "-n"], input=block.text, text=True, check=True)


def test_every_recipe_s_page_is_listed() -> None:
    listed = documents.text("docs/recipes/index.md")
    assert [page for page in PAGES if f"({page.rpartition('/')[2]})" not in listed] == ["docs/recipes/index.md"]
