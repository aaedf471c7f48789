"""TLS that cannot be loaded is named by setting, file and reason; what a worker could load is not refused."""

from __future__ import annotations

import os
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
from gunicorn.config import Config

from tests.harness.certificates import make_certificate
from tests.harness.worker_classes import ALL
from zdworker import UvicornWorker, WSGIWorker, descendants
from zdworker.errors import GenerationError, TlsError
from zdworker.forkserver.tls_check import refuse_bad_tls

DECRYPTED = "openssl pkey -in key.pem -out encrypted.pem -aes128 -passout pass:secret"


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate and its key, the key encrypted, another key, and a file that is none of them."""
    made = tmp_path_factory.mktemp("certificates")
    make_certificate(made)
    (made / "other").mkdir()
    make_certificate(made / "other")
    subprocess.run(DECRYPTED.split(), cwd=made, check=True, capture_output=True)
    (made / "text.pem").write_text("this is no certificate\n")
    (made / "both.pem").write_text((made / "certificate.pem").read_text() + (made / "key.pem").read_text())
    return made


@pytest.fixture
def configured(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Make Gunicorn's configuration, in the directory of the certificates."""
    monkeypatch.chdir(directory)

    def make(**settings: Any) -> Any:
        cfg = Config()
        for name, value in {"certfile": "certificate.pem", "keyfile": "key.pem", **settings}.items():
            cfg.set(name, value)
        return cfg

    return make


def reason(worker_class: Any, cfg: Any) -> str:
    """Return why a generation with this configuration is refused, "" if it is not."""
    try:
        refuse_bad_tls(worker_class, cfg)
    except GenerationError as error:
        return str(error).removeprefix("TLS cannot load: ")
    return ""


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "missing certificate": ({"certfile": "no.pem"}, "certfile no.pem cannot be read: No such file or directory"),
    "missing key": ({"keyfile": "no.pem"}, "keyfile no.pem cannot be read: No such file or directory"),
    "a directory": ({"keyfile": "other"}, "keyfile other cannot be read: Is a directory"),
    "no certificate": ({"certfile": "text.pem"}, "certfile text.pem holds no certificate in PEM: "),
    "only a key": ({"keyfile": "key.pem", "certfile": None}, "keyfile is key.pem, but there is no certfile"),
    "no key": ({"keyfile": None}, "certfile certificate.pem with the key in certfile certificate.pem cannot be used: "),
    "another key": ({"keyfile": "other/key.pem"}, "keyfile other/key.pem does not belong to certfile certificate.pem"),
    "encrypted key": ({"keyfile": "encrypted.pem"}, "keyfile encrypted.pem is encrypted, and there is no password: "),
    "missing ca_certs": ({"ca_certs": "no.pem"}, "ca_certs no.pem cannot be read: No such file or directory"),
    "bad ca_certs": ({"ca_certs": "text.pem"}, "ca_certs text.pem cannot be used: "),
    "bad ciphers": ({"ciphers": "NONE-OF-THESE"}, "ciphers 'NONE-OF-THESE' cannot be used: "),
    "bad cert_reqs": ({"cert_reqs": 7}, "cert_reqs 7 cannot be used: "),
}


@pytest.mark.parametrize("kind", BAD)
def test_every_class_names_setting_and_file(configured: Callable[..., Any], kind: str) -> None:
    settings, text = BAD[kind]
    for worker in ALL:
        if worker.name == "GeventWorker":
            continue  # it patches the process that checks, which warns here; the integration tests have it
        found = reason(worker_class_of(worker.name), configured(**settings))
        assert found.startswith(text), worker
        assert "\n" not in found


def worker_class_of(name: str) -> Any:
    import zdworker

    return getattr(zdworker, name)


@pytest.mark.parametrize("worker", [UvicornWorker, WSGIWorker])
@pytest.mark.parametrize(
    "settings", [{}, {"certfile": "both.pem", "keyfile": None}, {"ca_certs": "other/certificate.pem", "cert_reqs": 2}]
)
def test_what_can_be_loaded_is_not_refused(
    configured: Callable[..., Any], worker: Any, settings: dict[str, Any]
) -> None:
    assert reason(worker, configured(**settings)) == ""


# -- the hook ssl_context --------------------------------------------------------------------------------------------


def raises(conf: Any, default: Any) -> Any:
    raise KeyError("VAULT_TOKEN")


def exits(conf: Any, default: Any) -> Any:
    raise SystemExit(2)


def by_default(conf: Any, default: Any) -> Any:
    return default()


def returns_nothing(conf: Any, default: Any) -> Any:
    default()


def knows_the_password(conf: Any, default: Any) -> Any:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(conf.certfile, conf.keyfile, "secret")
    return context


def falls_back(conf: Any, default: Any) -> Any:
    try:
        return default()
    except FileNotFoundError:
        conf.set("keyfile", "key.pem")
        return default()


@pytest.mark.parametrize(
    ("hook", "settings", "text"),
    [
        (raises, {}, "the hook ssl_context raised KeyError: 'VAULT_TOKEN'"),
        (exits, {}, "SystemExit: 2"),
        (returns_nothing, {}, "the hook ssl_context returned NoneType, which is no ssl.SSLContext"),
        (by_default, {"keyfile": "no.pem"}, "keyfile no.pem cannot be read: No such file or directory"),
        (by_default, {"keyfile": "other/key.pem"}, BAD["another key"][1]),
        (knows_the_password, {"keyfile": "encrypted.pem"}, ""),
        (falls_back, {"keyfile": "no.pem"}, ""),
    ],
)
def test_the_hook(
    configured: Callable[..., Any], capfd: pytest.CaptureFixture[str], hook: Any, settings: dict[str, Any], text: str
) -> None:
    assert reason(WSGIWorker, configured(ssl_context=hook, **settings)) == text
    assert ("Traceback" in capfd.readouterr().err) == (hook in (raises, exits))


def test_uvicorn_does_not_call_the_hook(configured: Callable[..., Any]) -> None:
    assert reason(UvicornWorker, configured(ssl_context=raises)) == ""


def test_an_encrypted_key_with_a_password_for_uvicorn(configured: Callable[..., Any]) -> None:
    class Knowing(UvicornWorker):
        CONFIG_KWARGS: ClassVar[dict[str, Any]] = {"ssl_keyfile_password": "secret"}

    class Mistaken(UvicornWorker):
        CONFIG_KWARGS: ClassVar[dict[str, Any]] = {"ssl_keyfile_password": "guess"}

    cfg = configured(keyfile="encrypted.pem")
    assert reason(Knowing, cfg) == ""
    assert reason(Mistaken, cfg).startswith("keyfile encrypted.pem cannot be decrypted with the password: ")


def test_a_context_that_uvicorn_gets_elsewhere(configured: Callable[..., Any]) -> None:
    class Elsewhere(UvicornWorker):
        CONFIG_KWARGS: ClassVar[dict[str, Any]] = {"ssl_context_factory": raises}

    assert reason(Elsewhere, configured(keyfile="no.pem")) == ""


# -- what only the worker can know -----------------------------------------------------------------------------------


def hook(*_arguments: Any) -> None:
    """Stand for a hook that may bring the files, or set what the hook ``ssl_context`` reads."""


@pytest.mark.parametrize("name", ["on_reload", "pre_fork", "post_fork", "post_worker_init"])
def test_hooks_may_bring_the_files(configured: Callable[..., Any], name: str) -> None:
    cfg = configured(keyfile="no.pem")
    cfg.settings[name].value = hook
    assert reason(WSGIWorker, cfg) == ""
    with pytest.raises(TlsError, match=r"keyfile no\.pem cannot be read"):
        WSGIWorker.zd_check_tls(cfg)


@pytest.mark.parametrize("name", ["on_starting", "when_ready", "child_exit", "nworkers_changed"])
def test_hooks_in_the_master_may_set_variables(configured: Callable[..., Any], name: str) -> None:
    for ssl_context, text in ((raises, ""), (None, BAD["another key"][1])):
        cfg = configured(keyfile="other/key.pem")
        if ssl_context is not None:
            cfg.set("ssl_context", ssl_context)
        cfg.settings[name].value = hook
        assert reason(WSGIWorker, cfg) == text


def test_hooks_of_zdworker_may_set_variables(configured: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zdworker.gunicorn_config.zd_hooks", lambda _cfg: {"zd_reload_started": hook})
    assert reason(WSGIWorker, configured(ssl_context=raises)) == ""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become someone else")
def test_the_check_has_the_rights_of_a_worker(configured: Callable[..., Any], directory: Path) -> None:
    for path in (directory, *directory.parents):  # which pytest makes for its own user alone
        if path.owner() == "root" and path.name.startswith(("certificates", "pytest")):
            path.chmod(0o755)
    key = directory / "key.pem"
    key.chmod(0o600)
    cfg = configured()
    assert reason(WSGIWorker, cfg) == ""
    cfg.set("user", "nobody")
    assert reason(WSGIWorker, cfg) == "keyfile key.pem cannot be read as the user nobody: Permission denied"
    key.chmod(0o644)
    assert reason(WSGIWorker, cfg) == ""


def test_no_process_is_left(configured: Callable[..., Any]) -> None:
    before = descendants.children(os.getpid())
    assert reason(WSGIWorker, configured(keyfile="no.pem")) != ""
    assert descendants.children(os.getpid()) == before
