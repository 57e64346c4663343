"""What a request may meet in the engine beside the errors of its own texts and of the model."""

from __future__ import annotations

from poolgraph.errors import Overloaded, PoolgraphError


class QueueFull(Overloaded):
    """The queue has no room; nothing of the request was taken in.

    Args:
        retry_after: Whole seconds after which there should be room, at least 1.
        num_tokens: Tokens that wait.
        limit: Tokens that may wait.
    """

    def __init__(self, retry_after: int, *, num_tokens: int, limit: int) -> None:
        super().__init__(f"the queue is full: {num_tokens} tokens wait, and {limit} may; try again in {retry_after} s")
        self.retry_after = retry_after


class AnswerTooLarge(PoolgraphError):
    """The answers of a request, a row a token, would take more memory than one may.

    Args:
        num_bytes: What they would take.
        limit: What they may.
    """

    def __init__(self, num_bytes: int, limit: int) -> None:
        super().__init__(
            f"the answers of this request, a row a token, would take {num_bytes} bytes; this server allows {limit} "
            "(--max-answer). Send fewer or shorter texts a request."
        )


class DeadlineExceeded(Overloaded):
    """The request's time was over before all of its texts had run."""

    def __init__(self, timeout: float) -> None:
        super().__init__(f"the request was not answered within its {timeout:g} s; send it again, or allow more time")
        self.timeout = timeout


class EngineStopped(PoolgraphError):
    """The engine takes no work: it is closing, or a model thread died and is not back yet."""


class ModelNotFound(PoolgraphError):
    """No model of that name is served.

    Args:
        name: The name asked for; None where none was given and there are several models.
        known: The names of the models served.
    """

    def __init__(self, name: str | None, known: tuple[str, ...]) -> None:
        message = (
            f"The model `{name}` does not exist."
            if name is not None
            else f"model is required where several are served; there are {list(known)}"
        )
        super().__init__(message)
        self.name = name
        self.known = known


class NotReady(PoolgraphError):
    """The model does not give the answer to its probe that it should."""
