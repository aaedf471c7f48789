"""The errors that zdworker raises. The text of each is one line that tells the user what to do."""


class ZdError(Exception):
    """Base of all errors of zdworker."""


class SettingError(ZdError):
    """A ``zd_`` setting is unknown, not available or has a bad value; the text names it and what is allowed."""


class MessageError(ZdError):
    """Bytes on a channel are not a message of zdworker's."""


class IllegalEvent(ZdError):
    """The core received an event that cannot happen in its present state; nothing has changed."""


class GenerationError(ZdError):
    """A generation cannot be started or used; the text gives the reason."""


class UnsupportedGunicorn(ZdError):
    """This Gunicorn lacks something that zdworker needs; the text names the versions that are known."""


class WarmupFailed(ZdError):
    """The application did not answer a path of ``zd_warmup`` as required; the text names the path and the answer."""


class TlsError(ZdError):
    """TLS cannot be loaded; the text names the setting, the file and the reason."""


class ControlError(ZdError):
    """The control socket cannot be opened; the text names it and the reason."""


class NoInstance(ZdError):
    """No running master could be reached; the text says what to do."""


class SeveralInstances(ZdError):
    """More than one master runs and none was named; the text names them."""


class ContradictoryNames(ZdError):
    """A master was named twice, and the names are those of different masters; the text has both."""


class OrderRefused(ZdError):
    """The master refuses an order; the text is its reason."""
