"""The master's cache of modules: whole or not at all, with the modules of the configuration in force."""

from __future__ import annotations

import importlib
import os
import sys
import sysconfig
import threading
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from zdworker.errors import GenerationError
from zdworker.master.hook_environment import HookEnvironment
from zdworker.master.module_cache import ROUNDS, ModuleCache, before_configuration, composed

SUFFIX = importlib.machinery.EXTENSION_SUFFIXES[0]


class Stage:
    """A directory with modules, and the cache of a master whose first configuration begins to import now."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        sys.path.insert(0, str(directory))
        app = SimpleNamespace(cfg=SimpleNamespace(settings={"config": SimpleNamespace(value="")}))
        self.cache = ModuleCache(app)

    def write(self, name: str, text: str) -> Path:
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        importlib.invalidate_caches()
        return path

    def evaluate(self, *names: str) -> Any:
        """Evaluate a configuration that imports these modules; return the first one, and put all in."""
        found, imported = self.cache.evaluate(lambda: [importlib.import_module(name) for name in names], [])
        self.cache.exchange(imported)
        return found[0]


State = tuple[dict[str, Any], list[str], list[Any], list[Any]]


def state() -> State:
    """What an import goes by in this process, the modules of the standard library aside, which may come at any time."""
    modules = {
        name: module for name, module in sys.modules.items() if name.split(".")[0] not in sys.stdlib_module_names
    }
    return modules, list(sys.path), list(sys.meta_path), list(sys.path_hooks)


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    modules, path, meta_path, path_hooks = dict(sys.modules), list(sys.path), list(sys.meta_path), list(sys.path_hooks)
    yield Stage(tmp_path)
    for name in sys.modules.keys() - modules.keys():
        if name.partition(".")[0] not in sys.stdlib_module_names:
            del sys.modules[name]
    sys.path[:], sys.meta_path[:], sys.path_hooks[:] = path, meta_path, path_hooks


def raising(*names: str) -> Callable[[], None]:
    """Return a configuration that imports modules and raises."""

    def evaluate() -> None:
        for name in names:
            importlib.import_module(name)
        raise LookupError("of the configuration")

    return evaluate


def test_each_evaluation_imports_what_is_on_disk(stage: Stage) -> None:
    stage.write("zd_a.py", "import zd_b\nVALUE = zd_b.VALUE")
    for value in ("one", "two!", "three"):
        stage.write("zd_b.py", f"VALUE = {value!r}")
        assert value == stage.evaluate("zd_a").VALUE
        assert value == sys.modules["zd_a"].VALUE


def test_the_modules_come_in_and_go_with_their_configuration(stage: Stage) -> None:
    stage.write("zd_a.py", "VALUE = 1")
    stage.write("zd_gone.py", "")
    first = stage.evaluate("zd_a", "zd_gone")
    before = state()
    stage.write("zd_a.py", "VALUE = 1 + 1")
    second, imported = stage.cache.evaluate(lambda: importlib.import_module("zd_a"), [])
    assert state() == before, "an evaluation by itself changes nothing"
    kept = stage.cache.exchange(imported)
    assert sys.modules["zd_a"] is second is not first
    assert "zd_gone" not in sys.modules
    stage.cache.exchange(kept)
    assert state() == before
    assert sys.modules["zd_a"] is first


def test_a_failed_evaluation_restores_everything(stage: Stage) -> None:
    """Modules, the attributes of a package that stays, the import path, finders."""
    stage.write("zd_package/__init__.py", "")
    stage.write("zd_package/part.py", "")
    finder = (
        "import sys\nclass Finder:\n    @staticmethod\n    def find_spec(*_): return None\nsys.meta_path.append(Finder)"
    )
    stage.write("zd_finder.py", f"{finder}\nsys.path_hooks.append(Finder.find_spec)\nsys.path.append('/nowhere')")
    package = importlib.import_module("zd_package")
    stage.cache = ModuleCache(SimpleNamespace(cfg=SimpleNamespace(settings={"config": SimpleNamespace(value="")})))
    part = stage.evaluate("zd_package.part", "zd_finder")
    before = state()
    assert "/nowhere" in sys.path
    with pytest.raises(LookupError):
        stage.cache.evaluate(raising("zd_package.part", "zd_finder"), [])
    assert state() == before
    assert package.__dict__["part"] is part
    new = stage.evaluate("zd_package.part", "zd_finder")
    assert package.__dict__["part"] is new is not part
    assert sys.modules["zd_package"] is package, "what was there before the configuration stays"
    assert [len(found) for found in state()[1:]] == [len(found) for found in before[1:]], "nothing adds up"


def test_what_is_not_the_configurations_stays(stage: Stage) -> None:
    stage.write("tabnanny.py", "VALUE = 'of the site'")
    stage.write("zd_a.py", "import colorsys, tabnanny, zdworker.command.openmetrics")
    stage.evaluate("zd_a")
    names = ("colorsys", "zdworker.command.openmetrics", "threading")
    kept, own = [sys.modules[name] for name in names], sys.modules["tabnanny"]
    assert own.VALUE == "of the site"
    stage.evaluate("zd_a")
    again = sys.modules.pop("tabnanny")  # nothing else may meet it
    assert [sys.modules[name] for name in names] == kept
    assert again is not own, "named as one of the standard library, but the site's"


def test_an_extension_module_is_handed_out_again(stage: Stage) -> None:
    stage.write("zd_package/__init__.py", "")
    stage.write("zd_package/fast.py", "")
    stage.write(
        "zd_a.py", "import zd_package.fast\nfast = zd_package.fast\nfrom zd_package.fast import __spec__ as spec"
    )
    first = stage.evaluate("zd_a")
    first.fast.__file__ = f"/somewhere/fast{SUFFIX}"
    spec, package = first.fast.__spec__, sys.modules["zd_package"]
    for _ in range(2):
        (second, imported) = stage.cache.evaluate(lambda: importlib.import_module("zd_a"), [])
        assert imported.kept == ["zd_package.fast"]
        stage.cache.exchange(imported)
        assert second is not first
        assert second.fast is first.fast
        assert second.spec is spec is first.fast.__spec__
        assert second.zd_package is not package, "only the extension module is kept"
    assert stage.evaluate("zd_package") is not None
    assert "zd_package.fast" not in sys.modules, "what no configuration needs any more is not in the cache"
    assert stage.evaluate("zd_package.fast") is first.fast


def installed(stage: Stage, name: str, text: str) -> Path:
    place = stage.directory / "site-packages"
    path = stage.write(f"site-packages/{name}", text)
    if str(place) not in sys.path:
        sys.path.append(str(place))
        stage.cache.path = list(sys.path)
    return path


def old(stage: Stage) -> None:
    """Let what is on disk be older than the evaluations, by more than the margin."""
    stage.cache.since += 10**12


def test_an_installed_package_is_new_when_one_has_changed(stage: Stage) -> None:
    installed(stage, "zd_library/__init__.py", "import zd_other\nOTHER = zd_other.VALUE")
    installed(stage, "zd_other.py", "VALUE = 1")
    first = stage.evaluate("zd_library")
    old(stage)
    assert stage.evaluate("zd_library") is first
    installed(stage, "zd_other.py", "VALUE = 2")
    assert stage.evaluate("zd_library").OTHER == 2, "imported again as well, for it refers to what has changed"
    changed = sys.modules["zd_library"]
    old(stage)
    sys.path.remove(str(stage.directory / "site-packages"))
    place = (stage.directory / "site-packages").rename(stage.directory / "dist-packages")
    stage.cache.path = [*sys.path, str(place)]
    assert stage.evaluate("zd_library") is not changed, "it is somewhere else now"


def test_an_installed_package_with_an_extension_module_is_kept_whole(stage: Stage) -> None:
    installed(stage, "zd_library/__init__.py", "import zd_library.fast")
    installed(stage, "zd_library/fast.py", "")
    installed(stage, "zd_library/more.py", "")
    stage.write("zd_a.py", "import zd_library")
    first = stage.evaluate("zd_a", "zd_library.more").zd_library
    first.fast.__file__ = str(stage.directory / f"site-packages/zd_library/fast{SUFFIX}")
    _result, imported = stage.cache.evaluate(lambda: importlib.import_module("zd_a"), [])
    assert imported.kept == ["zd_library"]
    assert imported.modules["zd_library"] is first
    assert imported.modules["zd_library.more"] is first.more


def test_a_package_that_cannot_be_imported_twice_is_left_as_it_is(stage: Stage) -> None:
    installed(stage, "zd_once.py", "import sys\nassert not hasattr(sys, 'zd_once')\nsys.zd_once = 1")
    stage.write("zd_a.py", "import zd_once")
    try:
        first = stage.evaluate("zd_a")
        second, imported = stage.cache.evaluate(lambda: importlib.import_module("zd_a"), [])
        assert second is not first
        assert second.zd_once is first.zd_once
        assert imported.not_renewed == ["zd_once"]
    finally:
        del sys.zd_once  # type: ignore[attr-defined]


def test_a_package_that_has_something_registered_is_imported_again(stage: Stage) -> None:
    """The site's own module is executed a second time, and finds in the library what it has registered."""
    library = "known = []\ndef register(name):\n    assert name not in known\n    known.append(name)"
    installed(stage, "zd_registry.py", library)
    stage.write("zd_a.py", "import zd_registry\nzd_registry.register('requests')")
    first = stage.evaluate("zd_a")
    old(stage)
    second, imported = stage.cache.evaluate(lambda: importlib.import_module("zd_a"), [])
    assert second.zd_registry is not first.zd_registry
    assert imported.not_renewed == []


def in_thread(function: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append(function())
        except BaseException as error:  # noqa: BLE001  # it is looked at by the test
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, outcome


WAITS = "import zd_stage\nzd_stage.began.set()\nassert zd_stage.go_on.wait(30)\n"


@pytest.fixture
def turns() -> Iterator[Any]:
    """A module that one which is imported waits in."""
    module: Any = types.ModuleType("zd_stage")
    module.began, module.go_on = threading.Event(), threading.Event()
    sys.modules["zd_stage"] = module
    yield module
    module.go_on.set()
    del sys.modules["zd_stage"]


def test_a_hook_has_its_own_modules_while_another_configuration_is_evaluated(turns: Any, stage: Stage) -> None:
    stage.write("zd_late.py", "VALUE = 1")
    stage.write("zd_a.py", "VALUE = 1\nimport zd_late")
    first = stage.evaluate("zd_a")
    stage.write("zd_late.py", "VALUE = 22")
    stage.write("zd_a.py", f"VALUE = 22\n{WAITS}import zd_late\nLATE = zd_late")
    thread, outcome = in_thread(lambda: stage.cache.evaluate(lambda: importlib.import_module("zd_a"), []))
    assert turns.began.wait(30)
    assert sys.modules["zd_a"] is not first
    with stage.cache.of_hooks(), stage.cache.of_hooks():
        assert sys.modules["zd_a"] is first
        assert importlib.import_module("zd_late").VALUE == 1
        turns.go_on.set()
    thread.join(30)
    second, imported = outcome[0]
    assert (second.VALUE, second.LATE.VALUE) == (22, 22), "evaluated once more, for it may have met the hook's module"
    assert sys.modules["zd_a"] is first
    stage.cache.exchange(imported)
    assert sys.modules["zd_late"].VALUE == 22


SETS = "import os\nos.environ['ZD_OF_CONFIGURATION'] = {value!r}\nos.environ.pop('ZD_TAKEN_OUT', None)\n"


def variables() -> dict[str, str | None]:
    return {name: os.environ.get(name) for name in ("ZD_OF_CONFIGURATION", "ZD_TAKEN_OUT", "ZD_OF_HOOK")}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> dict[str, str | None]:
    monkeypatch.setenv("ZD_OF_CONFIGURATION", "one")
    monkeypatch.setenv("ZD_TAKEN_OUT", "there")
    monkeypatch.delenv("ZD_OF_HOOK", raising=False)
    return variables()


def test_the_environment_comes_in_and_goes_with_its_configuration(
    stage: Stage, environment: dict[str, str | None]
) -> None:
    stage.write("zd_a.py", SETS.format(value="two"))
    _found, imported = stage.cache.evaluate(lambda: importlib.import_module("zd_a"), [])
    assert variables() == environment, "it is only evaluated"
    kept = stage.cache.exchange(imported)
    assert variables() == {"ZD_OF_CONFIGURATION": "two", "ZD_TAKEN_OUT": None, "ZD_OF_HOOK": None}
    stage.cache.exchange(kept)
    assert variables() == environment


def test_a_failed_evaluation_restores_the_environment(stage: Stage, environment: dict[str, str | None]) -> None:
    stage.write("zd_a.py", SETS.format(value="two"))
    with pytest.raises(LookupError):
        stage.cache.evaluate(raising("zd_a"), [])
    assert variables() == environment


@pytest.mark.parametrize("given_up", [False, True])
def test_a_hook_has_its_own_environment_while_another_configuration_is_evaluated(
    turns: Any, stage: Stage, environment: dict[str, str | None], given_up: bool
) -> None:
    hooks = HookEnvironment(SimpleNamespace(), stage.cache.environment)
    stage.write("zd_a.py", SETS.format(value="two") + WAITS)
    thread, outcome = in_thread(lambda: stage.cache.evaluate(lambda: importlib.import_module("zd_a"), []))
    assert turns.began.wait(30)
    with stage.cache.of_hooks():
        assert variables() == environment
        os.environ["ZD_OF_HOOK"] = "yes"
        if given_up:
            stage.cache.give_up()
        turns.go_on.set()
    assert hooks.changes() == {"ZD_OF_HOOK": "yes"}, "and nothing of the configuration"
    thread.join(30)
    assert variables() == {**environment, "ZD_OF_HOOK": "yes"}
    if not given_up:
        _found, imported = outcome[0]
        stage.cache.exchange(imported)
        assert variables() == {"ZD_OF_CONFIGURATION": "two", "ZD_TAKEN_OUT": None, "ZD_OF_HOOK": "yes"}


def test_the_environment_of_a_configuration_that_was_superseded_goes_with_it(
    stage: Stage, environment: dict[str, str | None]
) -> None:
    """A canary's configuration gives way to a newer one, which fails: the one before both is restored."""
    stage.write("zd_a.py", SETS.format(value="two"))
    _found, imported = stage.cache.evaluate(lambda: importlib.import_module("zd_a"), [])
    kept = stage.cache.exchange(imported)
    stage.write("zd_a.py", "import os\nos.environ['ZD_OF_HOOK'] = 'three'")
    stage.evaluate("zd_a")
    assert variables() == {**environment, "ZD_OF_HOOK": "three"}
    stage.cache.exchange(kept)
    assert variables() == environment


def test_what_two_configurations_set_alike_belongs_to_both(stage: Stage, environment: dict[str, str | None]) -> None:
    stage.write("zd_a.py", SETS.format(value="two"))
    stage.evaluate("zd_a")
    stage.write("zd_a.py", f"VALUE = 2\n{SETS.format(value='two')}")
    stage.evaluate("zd_a")
    assert variables() == {"ZD_OF_CONFIGURATION": "two", "ZD_TAKEN_OUT": None, "ZD_OF_HOOK": None}
    stage.write("zd_a.py", "VALUE = 3")
    stage.evaluate("zd_a")
    assert variables() == environment, "a configuration that sets nothing"


COUNTS = "zd_stage.rounds += 1\nzd_stage.began.set()\nassert zd_stage.go_on.wait(30)\nzd_stage.go_on.clear()\n"


def test_an_order_for_a_worker_does_not_disturb_an_evaluation(
    turns: Any, stage: Stage, environment: dict[str, str | None]
) -> None:
    """What hooks have set is asked for with each order: nothing of the configuration is among it."""
    hooks = HookEnvironment(SimpleNamespace(), stage.cache.environment)
    turns.rounds = 0
    stage.write("zd_a.py", "import zd_stage\n" + SETS.format(value="two") + COUNTS)
    thread, _outcome = in_thread(lambda: stage.cache.evaluate(lambda: importlib.import_module("zd_a"), []))
    assert turns.began.wait(30)
    assert hooks.changes() == {}
    turns.go_on.set()
    thread.join(30)
    assert turns.rounds == 1


def test_in_the_round_that_hooks_share_variables_stay_apart(
    turns: Any, stage: Stage, environment: dict[str, str | None]
) -> None:
    hooks = HookEnvironment(SimpleNamespace(), stage.cache.environment)
    turns.rounds = 0
    stage.write("zd_a.py", "import zd_stage\n" + SETS.format(value="two") + COUNTS)
    thread, outcome = in_thread(lambda: stage.cache.evaluate(lambda: importlib.import_module("zd_a"), []))
    for number in range(1, ROUNDS + 1):
        assert turns.began.wait(30)
        turns.began.clear()
        assert turns.rounds == number
        with stage.cache.of_hooks():
            os.environ["ZD_OF_HOOK"] = str(number)
        assert hooks.changes() == {"ZD_OF_HOOK": str(number)}
        turns.go_on.set()
    thread.join(30)
    assert variables() == {**environment, "ZD_OF_HOOK": "3"}
    _found, imported = outcome[0]
    assert imported.environment == {"ZD_OF_CONFIGURATION": "two", "ZD_TAKEN_OUT": None}


def test_nothing_is_evaluated_while_another_configuration_comes_into_force(turns: Any, stage: Stage) -> None:
    turns.rounds = 0
    stage.write("zd_a.py", "import zd_stage\n" + COUNTS)
    thread, outcome = in_thread(lambda: stage.cache.evaluate(lambda: importlib.import_module("zd_a"), []))
    assert turns.began.wait(30)
    turns.began.clear()
    with stage.cache.undisturbed():
        assert "zd_a" not in sys.modules
        turns.go_on.set()
        assert not turns.began.wait(0.1)
    assert turns.began.wait(30)
    turns.go_on.set()
    thread.join(30)
    assert turns.rounds == 2
    assert outcome[0][0].__name__ == "zd_a"


def test_a_forked_process_imports_in_every_thread(turns: Any, stage: Stage) -> None:
    """Its threads may have the number of one in the master whose evaluation was given up."""
    stage.write("zd_a.py", WAITS)
    stage.write("zd_more.py", "")
    thread, _outcome = in_thread(lambda: stage.cache.evaluate(lambda: importlib.import_module("zd_a"), []))
    assert turns.began.wait(30)
    stage.cache.give_up()
    finder = sys.meta_path[0]
    assert finder.barred == {thread.ident}  # type: ignore[attr-defined]
    pid = os.fork()
    if pid == 0:
        os._exit(len(finder.barred))  # type: ignore[attr-defined]
    assert os.waitpid(pid, 0)[1] == 0
    turns.go_on.set()
    thread.join(30)


@pytest.mark.parametrize("end", ["imports", "returns"])
def test_an_evaluation_begins_again_when_another_configuration_comes_into_force(
    turns: Any, stage: Stage, end: str
) -> None:
    """A canary fails while a newer reload's configuration is evaluated: the one before is restored, the newer waits."""
    stage.write("zd_a.py", "VALUE = 1")
    first = stage.evaluate("zd_a")
    stage.write("zd_a.py", "VALUE = 22")
    found, imported = stage.cache.evaluate(lambda: importlib.import_module("zd_a"), [])
    kept = stage.cache.exchange(imported)
    assert sys.modules["zd_a"] is found
    stage.write("zd_more.py", "")
    stage.write("zd_a.py", f"VALUE = 333\n{WAITS}" + ("import zd_more" if end == "imports" else ""))
    thread, outcome = in_thread(lambda: stage.cache.evaluate(lambda: importlib.import_module("zd_a"), []))
    assert turns.began.wait(30)
    stage.cache.exchange(kept)
    assert sys.modules["zd_a"] is first
    turns.go_on.set()
    thread.join(30)
    newest, imported = outcome[0]
    assert newest.VALUE == 333
    assert sys.modules["zd_a"] is first
    stage.cache.exchange(imported)
    assert sys.modules["zd_a"] is newest


@pytest.mark.parametrize("end", ["raises", "returns"])
def test_an_evaluation_that_is_given_up_disturbs_no_later_one(turns: Any, stage: Stage, end: str) -> None:
    """It hangs in the import of a module, of which it has the lock; later it goes on, and its import fails or not."""
    stage.write("zd_a.py", "VALUE = 1")
    first = stage.evaluate("zd_a")
    before = state()
    stage.write("zd_a.py", WAITS + ("import zd_more" if end == "raises" else "VALUE = 22"))
    stage.write("zd_more.py", "")
    thread, outcome = in_thread(lambda: stage.cache.evaluate(lambda: importlib.import_module("zd_a"), []))
    assert turns.began.wait(30)
    stage.cache.give_up()
    assert state() == before
    stage.write("zd_a.py", "VALUE = 333")
    second = stage.evaluate("zd_a")
    assert second.VALUE == 333
    turns.go_on.set()
    thread.join(30)
    assert isinstance(outcome[0], GenerationError)
    assert sys.modules["zd_a"] is second is not first
    assert "zd_more" not in sys.modules
    importlib.import_module("zd_more")  # other threads import as ever


def test_the_modules_before_the_first_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    def before(*names: str, config: str = "") -> set[str]:
        modules: dict[str, Any] = {name: types.ModuleType(name) for name in names}
        main: Any = types.ModuleType("__main__")
        main.program = types.ModuleType("program")
        modules["__main__"] = main
        monkeypatch.setattr(sys, "modules", modules)
        app = SimpleNamespace(cfg=SimpleNamespace(settings={"config": SimpleNamespace(value=config)}))
        found = before_configuration(app)
        monkeypatch.undo()
        return set(found) - {"__main__"}

    assert before("gunicorn.app.base", "a", "__config__", "b", "zdworker") == {"gunicorn.app.base", "a"}
    assert before("gunicorn.app.base", "a", "zdworker") == {"gunicorn.app.base", "a", "zdworker"}
    named = ("b", "configuration", "zdworker")
    assert before("gunicorn.app.base", *named, config="python:configuration") == {"gunicorn.app.base"}
    found = before("gunicorn.app.base", "a", "program", *named, config="python:configuration")
    assert found == {"gunicorn.app.base", "a", "program"}


def test_a_generations_path_with_this_interpreters_library(tmp_path: Path) -> None:
    library = sysconfig.get_path("stdlib")
    other = tmp_path / "lib/python3.99"
    other.mkdir(parents=True)
    (other / "os.py").touch()
    own = ["/first", f"{tmp_path}/python311.zip", library, f"{library}/lib-dynload", "/last"]
    path = ["/new", "/lib/python399.zip", str(other), f"{other}/lib-dynload", "/packages"]
    assert composed(path, own) == ["/new", *own[1:4], "/packages"]
    assert composed(["/new"], own) == ["/new", *own[1:4]]
    assert composed([], own) == own


def test_the_path_of_a_configuration_is_physical(stage: Stage) -> None:
    release = stage.write("releases/1/zd_a.py", "").parent
    (stage.directory / "current").symlink_to(release)
    path = [*sys.path, str(stage.directory / "current"), str(release)]
    _module, imported = stage.cache.evaluate(lambda: importlib.import_module("zd_a"), path)
    assert imported.path.count(str(release.resolve())) == 1
    assert str(stage.directory / "current") not in imported.path
