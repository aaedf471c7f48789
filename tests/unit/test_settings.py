"""The settings: every allowed form, every refusal, and the arithmetic of surge and unavailable."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zdworker.errors import SettingError
from zdworker.settings import SPECS, Settings, amount, hooks, problems, read, unknown_environment

shares = st.integers(0, 300) | st.integers(0, 100).map(lambda percent: f"{percent}%")
seconds = st.floats(0, 1e6, allow_nan=False)


def refusal(namespace: Mapping[str, object], environ: Mapping[str, str] | None = None) -> str:
    with pytest.raises(SettingError) as caught:
        read(namespace, environ or {})
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_defaults_are_those_of_the_design() -> None:
    assert read({}, {}) == Settings(
        max_surge=1,
        max_unavailable=0,
        boot_timeout=60.0,
        min_ready_seconds=0.0,
        websocket_drain=5.0,
        on_crash="respawn",
    )


def test_every_field_has_a_spec_and_every_spec_a_field() -> None:
    assert {f"zd_{field.name}" for field in fields(Settings)} == SPECS.keys()


def test_the_file_gives_values_and_other_names_are_not_ours() -> None:
    settings = read({"zd_max_surge": "25%", "workers": 4, "ZD_MAX_SURGE": 9, "azd_x": 1, "zd": 1}, {})
    assert settings.max_surge == "25%"


def test_the_environment_wins() -> None:
    settings = read({"zd_max_surge": 2, "zd_boot_timeout": 5}, {"ZD_MAX_SURGE": "3", "PATH": "/bin"})
    assert (settings.max_surge, settings.boot_timeout) == (3, 5.0)


@pytest.mark.parametrize(
    ("name", "value", "normal"),
    [
        ("zd_max_surge", "2", 2),
        ("zd_max_surge", " 025% ", "25%"),
        ("zd_max_surge", "100%", "100%"),
        ("zd_max_unavailable", 3, 3),
        ("zd_boot_timeout", "1.5", 1.5),
        ("zd_boot_timeout", 2, 2.0),
        ("zd_min_ready_seconds", 0, 0.0),
        ("zd_websocket_drain", 0.25, 0.25),
        ("zd_on_crash", "exit", "exit"),
    ],
)
def test_allowed_forms_become_the_normal_one(name: str, value: object, normal: object) -> None:
    got = getattr(read({name: value}, {}), name.removeprefix("zd_"))
    assert got == normal
    assert type(got) is type(normal)


@pytest.mark.parametrize("name", ["zd_max_surge", "zd_max_unavailable"])
@pytest.mark.parametrize(
    "value",
    [
        -1,
        1.0,
        True,
        None,
        "",
        "x",
        "-1",
        "1.5%",
        "101%",
        "25 %",
        "%",
        "٣",  # an Arabic digit
        "9" * 5000,
        [1],
        1.5,
    ],
)
def test_bad_shares_are_refused(name: str, value: object) -> None:
    text = refusal({name: value})
    assert text.startswith(f"{name} = ")
    assert 'a whole number from 0 up, or a percentage from "0%" to "100%"' in text


@pytest.mark.parametrize("name", ["zd_boot_timeout", "zd_min_ready_seconds", "zd_websocket_drain"])
@pytest.mark.parametrize(
    "value",
    [-0.1, True, None, "", "soon", math.nan, math.inf, "inf", "nan", [1], 10**400],
    ids=lambda value: repr(value)[:9],
)
def test_bad_seconds_are_refused(name: str, value: object) -> None:
    text = refusal({name: value})
    assert text.startswith(f"{name} = ")
    assert "a number of seconds" in text


def test_a_boot_needs_time() -> None:
    assert refusal({"zd_boot_timeout": 0}).endswith("a number of seconds above 0")


@pytest.mark.parametrize("value", ["Exit", "", None, 1, True, ["exit"]])
def test_bad_on_crash_is_refused(value: object) -> None:
    assert refusal({"zd_on_crash": value}).endswith('it must be "respawn" or "exit"')


def test_a_bad_value_in_the_environment_names_the_variable() -> None:
    assert refusal({}, {"ZD_BOOT_TIMEOUT": "soon"}).startswith("ZD_BOOT_TIMEOUT (environment) = 'soon' is not valid")


def test_a_bad_value_in_the_file_is_refused_even_where_the_environment_wins() -> None:
    assert refusal({"zd_max_surge": "x"}, {"ZD_MAX_SURGE": "1"}).startswith("zd_max_surge = 'x'")


def test_an_unknown_name_is_refused_with_the_names_that_exist() -> None:
    text = refusal({"zd_max_serge": 1})
    meant = "(did you mean zd_max_surge?)"
    assert text.startswith(f"zd_max_serge is not a setting of zdworker {meant}; available: zd_max_surge, ")
    assert refusal({"zd_colour": 1}).startswith("zd_colour is not a setting of zdworker; available: zd_max_surge, ")


def test_all_problems_are_told_at_once() -> None:
    namespace = {"zd_max_serge": 1, "zd_warmup": 5, "zd_max_surge": 0, "zd_worker_ready": 3}
    found = problems(namespace, {"ZD_BOOT_TIMEOUT": "soon"})
    assert [text.split(" ")[0] for text in found] == [
        "zd_max_serge",
        "zd_warmup",
        "ZD_BOOT_TIMEOUT",
        "zd_worker_ready",
    ]
    assert problems({"zd_max_surge": 0}, {})[0].startswith("zd_max_surge and zd_max_unavailable are both 0")
    assert problems({"zd_max_surge": 0, "zd_max_unavailable": 1}, {}) == []


@given(st.dictionaries(st.sampled_from([*SPECS]), st.none() | st.integers() | st.text() | st.booleans()))
def test_there_are_problems_where_reading_raises(namespace: dict[str, object]) -> None:
    found = problems(namespace, {})
    if found:
        assert refusal(namespace) == found[0]
    else:
        read(namespace, {})


def test_the_health_path() -> None:
    assert read({"zd_health_path": "/health"}, {}).health_path == "/health"
    assert read({"zd_health_path": None}, {}).health_path == ""
    assert read({}, {"ZD_HEALTH_PATH": "/up"}).health_path == "/up"
    for bad in ("health", "/health?x=1", "/a b", 5, ["/health"]):
        assert "it must be a path such as" in refusal({"zd_health_path": bad})


def test_a_warm_up_by_the_health_path_would_try_nothing() -> None:
    for url in ("/health", "http://example.org/health?x=1"):
        text = refusal({"zd_health_path": "/health", "zd_warmup": ["/", url]})
        assert text.startswith(f"zd_warmup names {url}, which is zd_health_path")


def test_unknown_variables_are_listed_not_refused() -> None:
    environ = {
        "ZD_MAX_SERGE": "1",
        "ZD_ARM": "x",
        "ZD_MAX_SURGE": "1",
        "ZD_WARMUP": "/",
        "AZD_X": "",
        "zd_max_serge": "",
    }
    assert unknown_environment(environ) == ["ZD_ARM", "ZD_MAX_SERGE"]
    assert read({}, {"ZD_ARM": "x"}) == Settings()


@pytest.mark.parametrize(("surge", "unavailable"), [(0, 0), ("0%", 0), (0, "0%"), ("00%", "0")])
def test_both_zero_is_refused(surge: object, unavailable: object) -> None:
    assert "both 0" in refusal({"zd_max_surge": surge, "zd_max_unavailable": unavailable})


def test_stop_first_is_allowed() -> None:
    settings = read({"zd_max_surge": 0, "zd_max_unavailable": 1}, {})
    assert (settings.max_surge, settings.max_unavailable) == (0, 1)


def test_the_constructor_checks_too() -> None:
    with pytest.raises(SettingError, match="zd_max_surge"):
        Settings(max_surge=-1)


def test_a_value_with_a_monstrous_repr_still_makes_one_short_line() -> None:
    class Monstrous:
        def __repr__(self) -> str:
            return "a\n" * 1000

    assert len(refusal({"zd_boot_timeout": Monstrous()})) < 200


@pytest.mark.parametrize(("share", "expected"), [(2, (2, False)), ("25%", (25, True)), ("0%", (0, True))])
def test_a_share_is_a_number_or_a_percentage(share: int | str, expected: tuple[int, bool]) -> None:
    assert amount(share) == expected


@given(
    st.builds(
        Settings,
        max_surge=shares,
        max_unavailable=st.integers(1, 100),
        boot_timeout=st.floats(0.001, 1e6),
        min_ready_seconds=seconds,
        warmup=st.lists(st.sampled_from(["/", "/health", "http://example.org/x"])),
        websocket_drain=seconds,
        max_rss=st.none() | st.integers(1, 1 << 40),
        on_crash=st.sampled_from(["respawn", "exit"]),
    )
)
def test_plain_data_comes_back_the_same(settings: Settings) -> None:
    assert Settings.from_plain(json.loads(json.dumps(settings.to_plain()))) == settings


@pytest.mark.parametrize(
    ("given", "paths"),
    [
        (None, ()),
        ([], ()),
        ("", ()),
        ("/health", ("/health",)),
        ("/a, /b /c", ("/a", "/b", "/c")),
        (("/a?x=1,2",), ("/a?x=1,2",)),
        (["https://example.org/health"], ("https://example.org/health",)),
    ],
)
def test_warmup_takes_paths_and_urls(given: object, paths: tuple[str, ...]) -> None:
    assert read({"zd_warmup": given}, {}).warmup == paths


@pytest.mark.parametrize(
    "bad", ["health", ["health"], [1], {"/": 1}, 1, ["ftp://example.org/"], ["http://example.org"], ["/a b"]]
)
def test_warmup_refuses_what_is_no_path(bad: object) -> None:
    assert "zd_warmup = " in refusal({"zd_warmup": bad})
    assert '["/"]' in refusal({"zd_warmup": bad})


@pytest.mark.parametrize(
    ("given", "size"),
    [(None, None), (1, 1), ("512M", 512 << 20), ("1g", 1 << 30), ("64 KB".replace(" ", ""), 64 << 10), ("7", 7)],
)
def test_memory_is_bytes_with_a_unit(given: object, size: int | None) -> None:
    assert read({"zd_max_rss": given}, {}).max_rss == size


@pytest.mark.parametrize("bad", [0, "0", -1, 1.5, True, "M", "1.5G", "10 apples", []])
def test_memory_refuses_what_is_no_size(bad: object) -> None:
    assert '"512M"' in refusal({"zd_max_rss": bad})


def test_plain_data_of_another_version_is_read() -> None:
    assert Settings.from_plain({"max_surge": 2, "of_the_future": [1]}) == Settings(max_surge=2)


def test_bad_plain_data_is_refused() -> None:
    with pytest.raises(SettingError, match="zd_boot_timeout"):
        Settings.from_plain({"boot_timeout": None})


def test_hooks_are_functions_of_their_arguments() -> None:
    def ready(server: object, worker: object) -> None:
        """Take what it gets."""

    assert hooks({"zd_worker_ready": ready, "zd_reload_started": print, "workers": 4}) == {
        "zd_worker_ready": ready,
        "zd_reload_started": print,
    }
    assert read({"zd_worker_ready": ready}, {}) == Settings()
    assert hooks({"zd_reload_finished": None}) == {}


@pytest.mark.parametrize("bad", ["text", 1, lambda server: None, lambda server, worker, more: None])
def test_anything_else_is_no_hook(bad: object) -> None:
    assert "zd_worker_ready must be a function of (server, worker)" in refusal({"zd_worker_ready": bad})


@pytest.mark.parametrize(
    ("value", "percentage"), [(None, None), ("", None), (0, 0.0), (2.5, 2.5), ("5", 5.0), ("5 %", 5.0)]
)
def test_an_error_rate_is_a_percentage(value: object, percentage: float | None) -> None:
    assert read({"zd_max_error_rate": value}, {}).max_error_rate == percentage


@pytest.mark.parametrize("value", [100, "100%", -1, True, "nan", "many", [5]])
def test_what_is_no_error_rate_is_refused(value: object) -> None:
    with pytest.raises(SettingError, match=r"zd_max_error_rate = .* it must be a percentage from 0 to below 100"):
        read({"zd_max_error_rate": value}, {})
