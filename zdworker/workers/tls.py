"""The check of what TLS is made of: a mistake is found before a worker accepts, and is named.

Rules:

* Some classes make a TLS context once when they boot, others make one for each connection (Gunicorn's ``sync`` and
  ``gthread``). The latter are ready whatever the files hold, and every handshake fails.
* All classes read the files in the worker, after the change of user and after ``post_fork`` and ``post_worker_init``.
  So the check runs where the rights of a worker apply.
* OpenSSL's own errors name neither a setting nor a file, so the parts are loaded one after the other.
* An error has a cause (``__cause__``) only if a hook has raised, whose place in the file is of interest.
* Nothing here asks for the password of a key. OpenSSL would ask at the terminal, in each worker.
"""

from __future__ import annotations

import os
import pwd
import ssl
import traceback
from dataclasses import dataclass
from typing import Any

from zdworker import texts
from zdworker.errors import TlsError


@dataclass(frozen=True)
class TlsSettings:
    """The settings that a context is made of, by Gunicorn's names, and the password of the key."""

    certfile: str | None
    keyfile: str | None
    ca_certs: str | None
    cert_reqs: int
    ciphers: str | None
    password: str | None = None


def check_gunicorns(cfg: Any) -> None:
    """Load TLS as Gunicorn's own classes do, by the ``ssl_context`` hook if there is one.

    :param cfg: Gunicorn's configuration.
    :raises TlsError: that fails.
    """
    if not cfg.is_ssl:
        return
    hook = cfg.settings["ssl_context"]
    if hook.value is hook.default:
        check_settings(_settings(cfg))
        return
    from gunicorn import sock

    try:
        context = sock.ssl_context(cfg)
    except Exception as error:
        if _came_from_the_default(error):
            check_settings(_settings(cfg))  # now, because the hook may have set some of them
        raise TlsError(f"the hook ssl_context raised {texts.reason(error)}") from error
    if not callable(getattr(context, "wrap_socket", None)):
        raise TlsError(f"the hook ssl_context returned {type(context).__name__}, which is no ssl.SSLContext")


def _settings(cfg: Any) -> TlsSettings:
    return TlsSettings(
        certfile=cfg.certfile,
        keyfile=cfg.keyfile,
        ca_certs=cfg.ca_certs,
        cert_reqs=cfg.cert_reqs,
        ciphers=cfg.ciphers,
    )


def _came_from_the_default(error: BaseException) -> bool:
    """Return whether a hook's error comes out of the function that Gunicorn gives to the hook for its own context."""
    frames = traceback.walk_tb(error.__traceback__)
    return any(frame.f_code.co_name == "default_ssl_context_factory" for frame, _line in frames)


def check_settings(settings: TlsSettings) -> None:
    """Make a context of ``settings``.

    :raises TlsError: that fails.
    """
    for name in ("certfile", "keyfile", "ca_certs"):
        _check_readable(name, getattr(settings, name))
    if not settings.certfile:
        raise TlsError(f"keyfile is {settings.keyfile}, but there is no certfile")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _check_certificate(context, settings)
    try:
        context.verify_mode = ssl.VerifyMode(settings.cert_reqs)
    except ValueError as error:
        raise TlsError(f"cert_reqs {settings.cert_reqs} cannot be used: {error}") from None
    try:
        if settings.ca_certs:
            context.load_verify_locations(settings.ca_certs)
    except OSError as error:
        raise TlsError(f"ca_certs {settings.ca_certs} cannot be used: {error}") from None
    try:
        if settings.ciphers:
            context.set_ciphers(settings.ciphers)
    except OSError as error:
        raise TlsError(f"ciphers {settings.ciphers!r} cannot be used: {error}") from None


def _check_readable(name: str, path: str | None) -> None:
    if not path:
        return
    try:
        with open(path, "rb") as file:
            file.read(1)
    except OSError as error:
        by = f" as the user {_user()}" if isinstance(error, PermissionError) else ""
        raise TlsError(f"{name} {path} cannot be read{by}: {error.strerror}") from None


def _user() -> str:
    uid = os.geteuid()
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _check_certificate(context: ssl.SSLContext, settings: TlsSettings) -> None:
    asked = False

    def password() -> str:
        nonlocal asked
        asked = True
        return settings.password or ""

    key = f"keyfile {settings.keyfile}" if settings.keyfile else f"the key in certfile {settings.certfile}"
    try:
        context.load_cert_chain(str(settings.certfile), settings.keyfile, password)
    except (OSError, ValueError) as error:
        if asked and not settings.password:
            reason = "is encrypted, and there is no password: decrypt it, or load it in the hook ssl_context"
            raise TlsError(f"{key} {reason}") from None
        if getattr(error, "reason", None) == "KEY_VALUES_MISMATCH":
            raise TlsError(f"{key} does not belong to certfile {settings.certfile}") from None
        if not _holds_certificate(str(settings.certfile)):
            raise TlsError(f"certfile {settings.certfile} holds no certificate in PEM: {error}") from None
        if asked:
            raise TlsError(f"{key} cannot be decrypted with the password: {error}") from None
        raise TlsError(f"certfile {settings.certfile} with {key} cannot be used: {error}") from None


def _holds_certificate(path: str) -> bool:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(path)
    except (OSError, ValueError):
        return False
    return True
