"""The errors that poolgraph raises, one tree, and the warning of texts that were cut.

PoolgraphError
├── ExportError             the checkpoint cannot become an artifact
│   ├── UnsupportedArchitecture
│   ├── Float16RangeError   numbers of the model are beyond fp16's range
│   └── VerificationError   the artifact disagrees with the reference
├── ArtifactError           the directory on disk is not a valid artifact
│   └── ManifestError
├── ProviderError           an execution provider that was asked for does not load
├── InputError              the caller's texts, parameters or files are not acceptable (also a ValueError)
├── TaskNotSupported        the model cannot do this task (also a ValueError)
├── Overloaded              the queue is full or the deadline passed
└── SessionError            ONNX Runtime failed; the original is ``__cause__``
"""

from __future__ import annotations


class PoolgraphError(Exception):
    """Base of every error that poolgraph raises on purpose."""


class ExportError(PoolgraphError):
    """The checkpoint cannot become an artifact."""


class UnsupportedArchitecture(ExportError):
    """No row of the architecture table and no convertible class fits the checkpoint."""


class Float16RangeError(ExportError):
    """Numbers of the model are beyond fp16's range; bf16 holds them.

    Args:
        reason: Which numbers.
        cure: What helps; ends the message.
    """

    def __init__(self, reason: str, cure: str = "export with --precision bf16") -> None:
        super().__init__(reason, cure)
        self.reason = reason
        self.cure = cure

    def __str__(self) -> str:
        return f"{self.reason}; {self.cure}"


class VerificationError(ExportError):
    """The artifact's answers disagree with the reference implementation's."""


class ArtifactError(PoolgraphError):
    """The directory on disk is not a valid artifact."""


class ManifestError(ArtifactError):
    """The manifest cannot be read: wrong version, unknown keys or wrong types."""


class ProviderError(PoolgraphError):
    """An execution provider that was asked for does not load on this machine."""


class InputError(PoolgraphError, ValueError):
    """The caller's texts, parameters or files are not acceptable.

    Args:
        message: What is wrong, with the value and what is allowed.
        parameter: The parameter at fault, where there is one.
        value: Its value.
    """

    def __init__(self, message: str, *, parameter: str | None = None, value: object = None) -> None:
        super().__init__(message)
        self.message = message
        self.parameter = parameter
        self.value = value

    def __str__(self) -> str:
        if self.parameter is None:
            return self.message
        return f"{self.message} (parameter={self.parameter}, value={self.value})"


class TaskNotSupported(PoolgraphError, ValueError):
    """The model cannot do the task that was asked of it."""


class Overloaded(PoolgraphError):
    """The queue is full or the deadline passed; try again later."""


class SessionError(PoolgraphError):
    """ONNX Runtime failed; the original error is the cause."""


class TruncationWarning(UserWarning):
    """Texts were longer than the model takes, and were cut.

    Args:
        message: How many of how many, and the limit.
        num_cut: How many.
    """

    def __init__(self, message: str, num_cut: int) -> None:
        super().__init__(message, num_cut)
        self.message = message
        self.num_cut = num_cut

    def __str__(self) -> str:
        return self.message
