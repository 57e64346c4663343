"""What a caller may change about a compiled model, and what is refused because it is compiled in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from poolgraph.config import PoolerConfig
from poolgraph.errors import InputError
from poolgraph.graphs.manifest import Limits, Manifest, Pooler

_POOLING_MODES: Final[Mapping[str, str]] = {"CLS": "cls", "LAST": "lasttoken", "MEAN": "mean"}


def override_manifest(
    manifest: Manifest, hf_overrides: Mapping[str, Any] | None, max_model_len: int | None
) -> Manifest:
    """Return the manifest with what a caller may change about a compiled model.

    Raises:
        InputError: an override that would need another export, or a limit above the artifact's.
    """
    pooler = _override_pooler(manifest, hf_overrides)
    limits = _override_limits(manifest, max_model_len)
    return msgspec.structs.replace(manifest, pooler=pooler, limits=limits)


def check_pooler_config(config: PoolerConfig, manifest: Manifest) -> None:
    """Check that a pooler config asks for nothing else than what is compiled into the artifact's graphs.

    Raises:
        InputError: another pooling than the graph's, or an option of another kind of model.
    """
    compiled = manifest.pooler.pooling
    wanted = config.seq_pooling_type
    if wanted is not None and (_POOLING_MODES[wanted],) != compiled:
        raise InputError(
            f"pooling {wanted} was asked for, but {list(compiled)} is compiled into the artifact; "
            "change the checkpoint's pooling config and export it again",
            parameter="seq_pooling_type",
            value=wanted,
        )
    if config.tok_pooling_type == "STEP":
        raise InputError(
            "STEP pooling needs a process reward model; this artifact returns all tokens",
            parameter="tok_pooling_type",
            value="STEP",
        )
    for name in ("logit_mean", "logit_sigma", "step_tag_id", "returned_token_ids"):
        value = getattr(config, name)
        if value is not None:
            raise InputError(f"{name} has no meaning for tasks {list(manifest.tasks)}", parameter=name, value=value)


def _override_pooler(manifest: Manifest, hf_overrides: Mapping[str, Any] | None) -> Pooler:
    allowed = ("is_matryoshka", "matryoshka_dimensions")
    if hf_overrides is not None and not isinstance(hf_overrides, Mapping):
        raise InputError(f"hf_overrides must be a mapping, not {type(hf_overrides).__name__}", parameter="hf_overrides")
    overrides = dict(hf_overrides or {})
    if unknown := [key for key in overrides if key not in allowed]:
        raise InputError(
            f"hf_overrides {unknown} would need another export; a compiled model takes {list(allowed)}. "
            "Change the checkpoint's config.json and export it again",
            parameter="hf_overrides",
            value=overrides,
        )
    widths = _check_widths(overrides.get("matryoshka_dimensions"), manifest.pooler.embedding_size)
    is_matryoshka = bool(widths or overrides.get("is_matryoshka", manifest.pooler.is_matryoshka))
    return msgspec.structs.replace(
        manifest.pooler,
        is_matryoshka=is_matryoshka,
        matryoshka_dimensions=widths or manifest.pooler.matryoshka_dimensions,
    )


def _check_widths(widths: object, embedding_size: int) -> tuple[int, ...]:
    if widths is None:
        return ()
    if isinstance(widths, list | tuple) and all(type(w) is int and 1 <= w <= embedding_size for w in widths):
        return tuple(widths)
    raise InputError(
        f"matryoshka_dimensions must be a list of ints from 1 to {embedding_size}",
        parameter="hf_overrides",
        value=widths,
    )


def _override_limits(manifest: Manifest, max_model_len: int | None) -> Limits:
    limit = manifest.limits.max_model_len
    if max_model_len is None:
        return manifest.limits
    if isinstance(max_model_len, bool) or not isinstance(max_model_len, int) or max_model_len < 1:
        raise InputError(
            f"max_model_len must be a number of tokens from 1 to {limit}",
            parameter="max_model_len",
            value=max_model_len,
        )
    if max_model_len > limit:
        raise InputError(
            f"User-specified max_model_len ({max_model_len}) is greater than the derived max_model_len "
            f"(max_model_len={limit} in the artifact's manifest). Ask for at most {limit}",
            parameter="max_model_len",
            value=max_model_len,
        )
    return msgspec.structs.replace(manifest.limits, max_model_len=max_model_len)
