"""Errors that zdworker raises: each one's text is a line that tells the user what to do."""


class ZdError(Exception):
    """Base of all errors of zdworker."""


class SettingError(ZdError):
    """A ``zd_`` setting is unknown, not available or has a bad value; the text names it and what is allowed."""


class MessageError(ZdError):
    """Bytes on a channel are not a message of ours."""


class IllegalEvent(ZdError):
    """The core was told something that cannot happen in its present state; nothing has changed."""


class GenerationError(ZdError):
    """A generation cannot be started or used; the text gives the reason."""


class UnsupportedGunicorn(ZdError):
    """This Gunicorn lacks something that zdworker stands on; the text names the versions that are known."""


class WarmupFailed(ZdError):
    """A path of ``zd_warmup`` was not answered as it has to be; the text names it and the answer."""


class ControlError(ZdError):
    """The control socket cannot be opened; the text names it and the reason."""


class NoInstance(ZdError):
    """No running master could be reached; the text says what to do."""


class SeveralInstances(ZdError):
    """More than one master runs and none was named; the text names them."""


class OrderRefused(ZdError):
    """A master does not carry out an order; the text is its reason."""
