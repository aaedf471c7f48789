"""The documentation keeps its word: its links lead somewhere, what it names exists, what it shows is run.

Rules:

* A block of code counts as run when a test takes it out of its page. ``tests/integration/docs/test_pages.py`` follows
  the pages in ``FOLLOWED`` from top to bottom; other tests ask those of the recipes for the block that begins with
  some words (``commands(page, "some words")``). Else its text has to stand, word for word, in a file of
  ``example_app/``, which other tests run; or each of its lines in a block that is run.
* What is left stands in ``SHOWN``, with the test that runs the same, or with the reason for which none does.
* Output (``text``) and diagrams are not for anybody to type. What zdworker prints is compared with its code.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import click
import pytest
from gunicorn.config import Config

from tests.harness import documents
from tests.harness.documents import FOLLOWED, ROOT
from tests.libraries.stand_ins import STAND_INS
from zdworker import settings
from zdworker.command import cli
from zdworker.workers.base import ZeroDowntime

PAGES = documents.pages()
OUTPUT = ("text", "json", "mermaid")

DEMO = "tests/integration/docs/test_demo.py::test_the_demo_loses_no_request"
DRAWING = "not run: a drawing"
JUDGED = "tests/integration/judged/test_judged_deploys.py::"
DEBUGGING = "tests/unit/test_debugging_page.py::test_a_fork_server_is_started_by_hand"
STATE = "tests/integration/recipes/test_state.py::"
MACHINES = "tests/integration/recipes/test_several_machines.py::"
HOSTS = "tests/machines/test_rolling_deploy.py::test_a_rolling_deploy_stops_where_its_code_is_given_up"

UPGRADE = "tests/integration/upgrade/"

SHOWN = {
    ("docs/upgrade.md", "zdworker upgrade"): f"{UPGRADE}test_upgrade.py::test_the_command_prints_versions",
    ("docs/upgrade.md", "zdworker reload --upgrade"): f"{UPGRADE}test_versions.py::test_reload_and_upgrade_in_one",
    ("README.md", "gunicorn -k zdworker.UvicornWorker app:app   # start it once"): (
        "tests/integration/docs/test_pages.py::test_a_documentation_page_can_be_followed"  # that is first-deploy.md
    ),
    ("README.md", "zd_canary_seconds = 30"): f"{JUDGED}test_code_that_fails_a_fifth_of_its_requests_is_given_up",
    ("README.md", "$ .venv/bin/python example_app/demo.py"): DEMO,
    ("README.md", "python3 -m venv .venv && .venv/bin/pip install -q -e '.[demo]'"): DEMO,
    (
        "README.md",
        "python3 -m venv .venv && .venv/bin/pip install -q tox",
    ): "not run: it runs the tests, as .ci/run does",
    ("CONTRIBUTING.md", "python3 -m venv --upgrade-deps"): "not run: it makes the environment that runs the tests",
    ("CONTRIBUTING.md", ".venv/bin/towncrier create"): "not run: it adds a fragment; tox -e lint reads all of them",
    ("docs/architecture.md", "steady                        gunicorn master"): DRAWING,
    (
        "docs/reference/command.md",
        'eval "$(zdworker completion bash)"',
    ): "tests/integration/command/test_completion.py::test_a_tab_completes_commands",
    ("docs/debugging.md", "import os"): DEBUGGING,
    ("docs/debugging.md", "python load.py"): DEBUGGING,
    ("docs/debugging.md", "py-spy dump"): "not run: py-spy is no tool of the tests, and may need privileges",
    ("docs/debugging.md", ".venv/bin/pytest"): "not run: it runs tests",
    ("docs/debugging.md", "tox -e soak"): "not run: it runs the soak, which the integration tests do with other seeds",
    (
        "docs/embedding.md",
        "import os",
    ): "tests/integration/field/test_launchers.py::test_a_launcher_that_asks_is_run_once_more_for_each_generation",
    (
        "docs/reference/command.md",
        "zdworker check",
    ): "tests/integration/command/test_check.py::test_all_bad_settings_are_told_at_once",
    (
        "docs/judged-deploys.md",
        "zd_canary_seconds = 30",
    ): f"{JUDGED}test_code_that_fails_a_fifth_of_its_requests_is_given_up",
    ("docs/judged-deploys.md", "def zd_judge"): f"{JUDGED}test_hooks_learn_of_the_canary_and_may_give_it_up",
    ("docs/state.md", "import fcntl"): f"{STATE}test_one_scheduler",  # and metrics.py
    ("docs/state.md", 'bind = "127.0.0.1:8000"'): f"{STATE}test_values_that_workers_share",
    ("docs/state.md", "import multiprocessing"): f"{STATE}test_values_that_workers_share",
    ("docs/state.md", "import os"): f"{STATE}test_a_device_for_each_worker",  # and the next one
    ("docs/state.md", "import metrics"): f"{STATE}test_metrics_by_slot",
    (
        "docs/own-worker-class.md",
        "# my_worker.py",
    ): "tests/integration/classes/test_third_party.py::test_third_party_class_reloads_under_load",
    (
        "docs/recipes/docker.md",
        "docker compose up",
    ): "not run: it takes a Docker daemon; the container's life is tested without",
    (
        "docs/recipes/kubernetes.md",
        "kubectl apply",
    ): "not run: it takes a cluster; the manifests are checked by the API's types",
    ("docs/recipes/proxies.md", "nginx -t"): "not run: the machine's own nginx; its file is tested with one of ours",
    (
        "docs/recipes/proxies.md",
        "caddy validate",
    ): "not run: the machine's own Caddy; its file is tested with one of ours",
    (
        "docs/recipes/several-machines.md",
        'bind = "0.0.0.0:8000"',
    ): f"{MACHINES}test_machines_are_replaced_one_after_the_other",
    (
        "docs/recipes/notifications.md",
        "export CHAT_WEBHOOK_URL",
    ): "not run: the address is a secret of the chat; the tests give the master one of their own",
    ("docs/recipes/notifications.md", "sentry_sdk.init"): "not run: it takes Sentry's library; a test has the variable",
    ("docs/recipes/index.md", "useradd"): HOSTS,
    ("docs/recipes/ansible.md", "zd_canary_seconds = 30"): HOSTS,
    ("docs/recipes/systemd.md", "install -m 644"): "not run: it makes a service; systemd-analyze verifies the unit",
    (
        "docs/recipes/supervisord.md",
        "echo 'd /run/app",
    ): "not run: the machine's own supervisord; its file is tested with one of ours",
}
"""By page and the beginning of a block's first line."""

BLOCKS = [block for page in PAGES for block in documents.blocks(page) if block.language not in OUTPUT]
EXAMPLES = [path for path in sorted((ROOT / "example_app").rglob("*")) if path.is_file()]

parametrize_pages = pytest.mark.parametrize("page", PAGES)


# -- links ---------------------------------------------------------------------------------------------------------


def dead(page: str) -> Iterator[str]:
    """Yield the links of a page that lead nowhere, or (from the site) out of the site."""
    for target in documents.links(page):
        if re.match(r"https?://", target):
            continue
        name, _, anchor = target.partition("#")
        path = ((ROOT / page).parent / name).resolve() if name else ROOT / page
        within = path.is_relative_to(ROOT / "docs") or not page.startswith("docs/")
        found = path.exists() and within
        if not found or (anchor and anchor not in documents.anchors(str(path.relative_to(ROOT)))):
            yield target


@parametrize_pages
def test_links_lead_somewhere(page: str) -> None:
    assert list(dead(page)) == []


def test_a_dead_link_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.md").write_text(
        "# A `b` c\n[1](#a-b-c) [2](#b) [3](c.md) [4](../x.md) ![5](https://x.org/y)\n"
    )
    (tmp_path / "x.md").touch()
    monkeypatch.setattr(documents, "ROOT", tmp_path)
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    assert list(dead("docs/a.md")) == ["#b", "c.md", "../x.md"]


# -- blocks --------------------------------------------------------------------------------------------------------


def taken() -> Iterator[tuple[str, str, str]]:
    """Yield page, beginning and file of each ``commands(page, "beginning")`` in the integration tests."""
    for path in sorted((ROOT / "tests" / "integration").rglob("test_*.py")):
        tree = ast.parse(path.read_text())
        assigned = [node for node in tree.body if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)]
        names = {ast.unparse(node.targets[0]): ast.unparse(node.value) for node in assigned}
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "commands" and len(node.args) == 2:
                page, beginning = (names.get(ast.unparse(word), ast.unparse(word)) for word in node.args)
                yield f"docs/recipes/{ast.literal_eval(page)}", ast.literal_eval(beginning), str(path.relative_to(ROOT))


TAKEN = list(taken())


def taken_by(block: documents.Block) -> str:
    """Return the test that takes a block out of its page, or "" when none does."""
    if block.page in FOLLOWED:
        return "tests/integration/docs/test_pages.py"
    return next((file for page, words, file in TAKEN if page == block.page and block.text.startswith(words)), "")


RUN_LINES = {line for block in BLOCKS if taken_by(block) for line in block.text.splitlines()}


def run_by(block: documents.Block) -> str:
    """Return what runs a block, or the reason for which nothing does; "" when nobody knows."""
    for (page, opening), test in SHOWN.items():
        if block.page == page and block.opening.startswith(opening):
            return test
    if taken_by(block):
        return taken_by(block)
    if set(block.text.splitlines()) <= RUN_LINES:
        return "another block"
    for path in EXAMPLES:
        if block.text.strip() in path.read_text(encoding="utf-8", errors="replace"):
            return str(path.relative_to(ROOT))
    return ""


@parametrize_pages
def test_each_block_is_run(page: str) -> None:
    left = [f"{page}:{block.line}: {block.opening}" for block in BLOCKS if block.page == page and not run_by(block)]
    assert left == [], "have a test run them, or say in SHOWN why there is none"


@pytest.mark.parametrize(("place", "test"), SHOWN.items(), ids=[f"{page}: {opening}" for page, opening in SHOWN])
def test_what_is_said_to_run_a_block_exists(place: tuple[str, str], test: str) -> None:
    assert any(block.page == place[0] and block.opening.startswith(place[1]) for block in BLOCKS), "no such block"
    if not test.startswith("not run: "):
        file, _, name = test.partition("::")
        nodes = ast.walk(ast.parse((ROOT / file).read_text()))
        assert name in {node.name for node in nodes if isinstance(node, ast.FunctionDef)}


# -- names ---------------------------------------------------------------------------------------------------------


@parametrize_pages
def test_zd_names_exist(page: str) -> None:
    known = {*settings.SPECS, *settings.HOOKS, *dir(ZeroDowntime), settings.GENERATION_VARIABLE.lower()}
    named = set(re.findall(r"\bzd_[a-z_]+[a-z]\b", documents.text(page)))
    variables = {name.lower() for name in re.findall(r"\bZD_[A-Z_]+[A-Z]\b", documents.text(page))}
    assert (named | variables) - known == set()


def commands(page: str) -> Iterator[list[str]]:
    """Yield the words of each ``zdworker`` command that a page shows, in its prose and in its blocks."""
    lines = documents.spans(page)
    lines += [
        line for block in documents.blocks(page) if block.language not in OUTPUT for line in block.text.splitlines()
    ]
    for line in lines:
        for found in re.findall(r"(?:^|(?<!from)[\s;&(=/'\"])zdworker((?: +[^\s;&|()#'\"`]+)+)", line):
            words = found.split()
            if re.fullmatch(r"--?[a-z-]+|[a-z]+", words[0]):
                yield words


@parametrize_pages
def test_commands_are_the_commands(page: str) -> None:
    for words in commands(page):
        known: click.Command = cli.main
        if not words[0].startswith("-"):
            assert words[0] in cli.main.commands, words
            known = cli.main.commands[words[0]]
        options = {option for parameter in known.get_params(click.Context(known)) for option in parameter.opts}
        if words[0] == "check":  # whose arguments are Gunicorn's
            options |= {option for setting in Config().settings.values() for option in setting.cli or ()}
        assert {word.partition("=")[0] for word in words if word.startswith("-")} <= options, words


def test_commands_are_found() -> None:
    assert ["status", "--json"] in list(commands("docs/troubleshooting.md"))
    assert ["reload"] in list(commands("docs/first-deploy.md"))


# -- the libraries -------------------------------------------------------------------------------------------------


def test_the_libraries_are_those_that_are_tried() -> None:
    table = documents.text("docs/fork-safety.md").partition("<!-- libraries: ")[2].partition("<!-- end of libraries")[0]
    assert [line for line in table.splitlines() if line.startswith("| ")][2:] == [one.row() for one in STAND_INS]


# -- what zdworker prints ------------------------------------------------------------------------------------------


def literals() -> Iterator[str]:
    """Yield the texts in the package's code, with ``…`` for what is filled in."""
    for path in sorted((ROOT / "zdworker").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                yield "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield re.sub(r"%[sdr]", "…", node.value)


def pattern(line: str) -> re.Pattern[str]:
    return re.compile(".*".join(re.escape(part) for part in line.split("…")), re.DOTALL)


LITERALS = [text for text in literals() if sum(map(str.isalpha, text)) >= 8]


def printed(line: str) -> bool:
    """Whether zdworker prints ``line``, or a line of which it is a part."""
    return any(pattern(line).search(text) or pattern(text).fullmatch(line) for text in LITERALS)


LINES = [
    line
    for block in documents.blocks("docs/troubleshooting.md")
    if block.language == "text"
    for line in block.text.splitlines()
]


@pytest.mark.parametrize("line", LINES)
def test_lines_are_those_that_are_printed(line: str) -> None:
    assert printed(line)


def test_other_lines_are_noticed() -> None:
    assert len(LINES) > 25
    assert not printed("Reload to generation … succeeded, the code that was running is still serving: …")


# -- pictures, and the site's own check ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pictures() -> ModuleType:
    return documents.script("pictures")


def test_pictures_are_up_to_date(pictures: ModuleType) -> None:
    assert pictures.main(["--check"]) == 0, "run: python docs/pictures.py"
    there = {path for path in (ROOT / "docs" / "pictures").glob("*.svg") if not path.name.startswith("deploys-")}
    assert {path for path, _ in pictures.drawn()} == there  # those of deploys are drawn from measurements


def test_pictures_are_drawn_in_light_and_dark_and_load_nothing(pictures: ModuleType) -> None:
    for path, text in pictures.drawn():
        assert "prefers-color-scheme: dark" in text, path
        assert re.findall(r"(?:href|url\()[^#]*//", text) == [], path


@pytest.mark.parametrize(
    ("output", "warns"),
    [
        ('<a href="https://x.org">', False),
        ('<link rel="stylesheet" href="assets/a.css"><script src="b.js"></script>', False),
        ('<script src="https://x.org/b.js"></script>', True),
        ('<link href="//x.org/a.css" rel="stylesheet">', True),
        ("<img alt='' src=https://x.org/c.svg>", True),
    ],
)
def test_a_page_that_loads_from_elsewhere_is_warned_of(
    output: str, warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    page = SimpleNamespace(file=SimpleNamespace(src_uri="index.md"))
    documents.script("site_checks").on_post_page(output, page)
    assert bool(caplog.records) is warns


def test_a_table_of_prose_has_its_headings_in_its_cells() -> None:
    """A phone shows such a table as a list; figures, and tables of two columns, it shows as they are."""
    checks = documents.script("site_checks")

    def table(*headings: str, long: str) -> str:
        cells = "".join("<td>1</td>" for _ in headings[1:])
        return (
            f"<table><tr>{''.join(f'<th>{one}</th>' for one in headings)}</tr><tr>{cells}<td>{long}</td></tr></table>"
        )

    found = checks.on_page_content(table("a", "<em>b</em>", 'the "c"', long="word " * 20))
    assert re.findall('<td data-column="([^"]*)">', found) == ["a", "b", "the &quot;c&quot;"]
    for kept in (table("a", "b", "c", long="12"), table("a", "b", long="word " * 20)):
        assert checks.on_page_content(kept) == kept


def test_a_line_ends_within_long_names_only() -> None:
    checks = documents.script("site_checks")
    assert checks.on_page_content("<code>zd_max_surge</code>") == '<code class="whole">zd_max_surge</code>'
    assert checks.on_page_content("<code>reload/test_broken_deploys:test_it</code>") == (
        "<code>reload/<wbr>test_<wbr>broken_<wbr>deploys:<wbr>test_<wbr>it</code>"
    )
    block = "<pre><code>zdworker reload\n</code></pre>"
    assert checks.on_page_content(block) == block
