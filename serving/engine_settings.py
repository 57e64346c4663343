"""How the engine works: its bounds, its patience, its memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from poolgraph.errors import InputError
from poolgraph.runtime.long_texts import LONG_TEXT_KINDS, LongTextKind

_AT_LEAST: Final = {
    "max_queue_tokens": 1,
    "max_wait_ms": 0.0,
    "num_tokenizer_threads": 1,
    "inline_chars": 0,
    "restart_delay": 0.0,
    "max_restart_delay": 0.0,
    "max_answer_bytes": 1,
    "stuck_seconds": 0.0,
    "cache_bytes": 0,
    "cache_disk_bytes": 0,
    "warm_up_seconds": 0.0,
    "ready_timeout": 0.0,
}
_AT_LEAST_OR_NONE: Final = {"max_batch_tokens": 1, "chunk_overlap": 0}


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """Settings of every model's engine in a process.

    Attributes:
        max_queue_tokens: Tokens that may wait for a model. A request is taken in while there are fewer, whatever its
            size, so that one larger than the queue is not refused for ever.
        max_wait_ms: Milliseconds that a text waits for others to share its batch while the engine is at work.
        max_batch_tokens: Token budget of a batch; None takes the variant's stored or default one.
        num_tokenizer_threads: Threads that tokenize long requests.
        inline_chars: Characters up to which a request is tokenized in the event loop itself: a thread costs more.
        restart_delay: Seconds until a model thread that died is started again; doubled each time it dies again.
        max_restart_delay: Largest such delay.
        stuck_seconds: Seconds after which a batch that has not ended means that its thread hangs, and the engine is not
            alive.
        max_answer_bytes: Memory that the raw answers of one request may take where there is a row a token.
        long_text: What is done with texts longer than the model's limit: ``error``, ``truncate`` or ``chunk``.
        chunk_overlap: Tokens that neighbouring chunks share; None takes 32, of models of short limits fewer.
        cache_bytes: Memory for raw answers, of all models together; 0 for no cache.
        cache_path: File of the second level of the cache, None for none.
        cache_disk_bytes: Size up to which that file keeps answers.
        warm_up_seconds: Bound on running texts of several shapes before the first request.
        ready_timeout: Seconds that a readiness check waits for its probe.

    Raises:
        InputError: a number that is too small, or an unknown ``long_text``.
    """

    max_queue_tokens: int = 1 << 18
    max_wait_ms: float = 0.0
    max_batch_tokens: int | None = None
    num_tokenizer_threads: int = 2
    inline_chars: int = 4096
    restart_delay: float = 0.5
    max_restart_delay: float = 30.0
    stuck_seconds: float = 600.0
    max_answer_bytes: int = 1 << 29
    long_text: LongTextKind = "error"
    chunk_overlap: int | None = None
    cache_bytes: int = 0
    cache_path: Path | None = None
    cache_disk_bytes: int = 1 << 30
    warm_up_seconds: float = 1.0
    ready_timeout: float = 10.0

    def __post_init__(self) -> None:
        for name, least in _AT_LEAST.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not value >= least:
                raise InputError(f"{name} must be at least {least}, got {value!r}", parameter=name, value=value)
        for name, least in _AT_LEAST_OR_NONE.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"{name} must be at least {least} or None, got {value}", parameter=name, value=value)
        if self.cache_path is not None and not self.cache_bytes:
            raise InputError(
                "a cache on disk needs one in memory in front of it; set cache_bytes too", parameter="cache_path"
            )
        if self.long_text not in LONG_TEXT_KINDS:
            raise InputError(
                f"long_text must be one of {list(LONG_TEXT_KINDS)}, got {self.long_text!r}",
                parameter="long_text",
                value=self.long_text,
            )
