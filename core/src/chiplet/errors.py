"""Every error that Chiplet raises on purpose.

ChipletError
|-- ConfigError          a setting is wrong; the person at the command line can mend it
|   |-- ModelError       the checkpoint is missing, damaged, refused or of an unknown kind
|   `-- PluginError      a plugin asked for by name cannot be used
|-- RequestError         one request is wrong; the client can mend it
|   |-- PromptTooLong    prompt and answer do not fit into the context length
|   `-- QueueFull        too many requests are waiting; try again later
`-- EngineError          the engine failed underneath a sound request
    `-- EngineRestarted  the engine died and is being started again

A message says the value, what was allowed and the remedy.
"""

from __future__ import annotations


class ChipletError(Exception):
    """Root of all errors raised on purpose."""


class ConfigError(ChipletError):
    """A setting is wrong.

    Attributes:
        remedy: what to do about it, one sentence; shown on its own line by the command line.
    """

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(message)
        self.remedy = remedy

    def __str__(self) -> str:
        message = super().__str__()
        return f"{message} {self.remedy}" if self.remedy else message

    @property
    def problem(self) -> str:
        """The message without the remedy."""
        return super().__str__()


class ModelError(ConfigError):
    """The checkpoint is missing, damaged, refused or of an unknown kind."""


class PluginError(ConfigError):
    """A plugin that was asked for by name cannot be used."""


class RequestError(ChipletError):
    """One request is wrong; nobody else is disturbed.

    Attributes:
        param: the name of the offending field as the client wrote it, if there is one.
        code: a stable word that programs can test.
    """

    code = "invalid_value"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class PromptTooLong(RequestError):
    """Prompt and requested answer do not fit into the context length."""

    code = "context_length_exceeded"


class QueueFull(RequestError):
    """Too many requests are waiting.

    Attributes:
        retry_after_s: a sensible time to wait before trying again.
    """

    code = "queue_full"

    def __init__(self, message: str, *, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class EngineError(ChipletError):
    """The engine failed underneath a sound request.

    Attributes:
        deny: implementations to blame, as `--deny` takes them; an engine that is started again
            does without them.
        is_crash: something broke down; not so if a process was ended from outside.
    """

    code = "engine_error"

    def __init__(self, message: str, *, deny: tuple[str, ...] = (), is_crash: bool = True) -> None:
        super().__init__(message)
        self.deny = deny
        self.is_crash = is_crash


class EngineRestarted(EngineError):
    """The engine died; it is being started again and the request may be repeated."""

    code = "engine_restarted"
