"""What a caller may change about a compiled model, and what is refused because it is compiled in."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from poolgraph.config import PoolerConfig
from poolgraph.errors import InputError
from poolgraph.graphs.manifest import Limits, Manifest, Pooler, StaticQuery
from poolgraph.runtime.steps import resolve_columns, resolve_step_tag
from poolgraph.tasks import POOLING_MODES

RUNTIME_OVERRIDES: Final = ("is_matryoshka", "matryoshka_dimensions")
"""Keys of ``hf_overrides`` that take effect without another export."""

_NEUTRAL: Final[Mapping[str, float]] = {"logit_mean": 0.0, "logit_sigma": 1.0}
_ABSENT: Final = object()


def override_manifest(
    manifest: Manifest,
    hf_overrides: Mapping[str, Any] | None = None,
    max_model_len: int | None = None,
    config: PoolerConfig | None = None,
) -> Manifest:
    """Return the manifest with what a caller may change about a compiled model.

    Args:
        manifest: The artifact's; never changed.
        hf_overrides: Only ``RUNTIME_OVERRIDES`` change anything.
        max_model_len: A lower limit.
        config: Its activation, token pooling and steps win over the artifact's.

    Raises:
        InputError: an override that would need another export, or a limit above the artifact's.
    """
    changed = msgspec.structs.replace(
        manifest,
        pooler=_override_widths(manifest.pooler, hf_overrides),
        limits=_override_limits(manifest, max_model_len),
        static_query=_override_queries(manifest.static_query, max_model_len),
    )
    return changed if config is None else _override_pooler(changed, config)


def check_hf_overrides(hf_overrides: Mapping[str, Any] | None, manifest: Manifest) -> None:
    """Check that overrides ask for nothing else than what an artifact was exported with.

    Raises:
        InputError: no mapping, or values that need another export.
    """
    if hf_overrides is not None and not isinstance(hf_overrides, Mapping):
        raise InputError(f"hf_overrides must be a mapping, not {type(hf_overrides).__name__}", parameter="hf_overrides")
    compiled = {
        "architectures": [manifest.architecture],
        **json.loads(manifest.options.get("hf_overrides", "{}")),
    }
    wanted = {key: value for key, value in (hf_overrides or {}).items() if key not in RUNTIME_OVERRIDES}
    other = {key: value for key, value in wanted.items() if compiled.get(key, _ABSENT) != value}
    if other:
        raise InputError(
            f"hf_overrides {list(other)} would need another export; a compiled model takes {list(RUNTIME_OVERRIDES)}. "
            f"Export the checkpoint with --hf-overrides '{_to_json(wanted)}', or give LLM the checkpoint",
            parameter="hf_overrides",
            value=dict(hf_overrides or {}),
        )


def check_pooler_config(config: PoolerConfig, manifest: Manifest) -> None:
    """Check that a pooler config asks for nothing else than what is compiled into the artifact's graphs.

    Raises:
        InputError: another pooling or scaling than the graph's, naming the option of the export that gives it; or an
            option of another kind of model.
    """
    _check_pooling(config, manifest)
    for name, neutral in _NEUTRAL.items():
        value, compiled = getattr(config, name), getattr(manifest.pooler, name)
        if value is not None and value != (neutral if compiled is None else compiled):
            raise _needs_export(name, value, f"{compiled} is compiled into the artifact")
    _check_steps(config, manifest)


def _check_pooling(config: PoolerConfig, manifest: Manifest) -> None:
    wanted, compiled = config.seq_pooling_type, manifest.pooler.pooling
    if wanted is not None and (POOLING_MODES[wanted],) != compiled:
        problem = f"{list(compiled)} is compiled into the artifact" if compiled else "it has no sequence graph"
        raise _needs_export("seq_pooling_type", wanted, problem)


def _check_steps(config: PoolerConfig, manifest: Manifest) -> None:
    if config.tok_pooling_type is not None and not any(task.startswith("token_") for task in manifest.tasks):
        raise InputError(
            f"tok_pooling_type has no meaning for tasks {list(manifest.tasks)}",
            parameter="tok_pooling_type",
            value=config.tok_pooling_type,
        )
    for name in ("step_tag_id", "returned_token_ids"):
        value = getattr(config, name)
        if value is not None and (config.tok_pooling_type or manifest.pooler.tok_pooling_type) != "STEP":
            raise InputError(
                f"{name} has no meaning for tasks {list(manifest.tasks)} without STEP pooling; "
                "add pooling_type='STEP' to the pooler config",
                parameter=name,
                value=value,
            )


def _needs_export(name: str, value: object, problem: str) -> InputError:
    option = _to_json({name: value})
    return InputError(
        f"{name} {value} was asked for, but {problem}; "
        f"export the checkpoint with --pooler-config '{option}', or give LLM the checkpoint",
        parameter=name,
        value=value,
    )


def _override_pooler(manifest: Manifest, config: PoolerConfig) -> Manifest:
    pooler = manifest.pooler
    active = config.use_activation
    changed = msgspec.structs.replace(
        pooler,
        normalize=pooler.normalize if active is None else active,
        normalize_kept=pooler.normalize_kept if active is None else active and pooler.sparse,
        use_activation=pooler.use_activation if active is None else active,
        tok_pooling_type=config.tok_pooling_type or pooler.tok_pooling_type,
        step_tag_id=pooler.step_tag_id if config.step_tag_id is None else config.step_tag_id,
        returned_token_ids=_choose_ids(config.returned_token_ids, pooler.returned_token_ids),
    )
    overridden = msgspec.structs.replace(manifest, pooler=changed)
    if changed.tok_pooling_type == "STEP":
        resolve_step_tag(overridden, config.step_tag_id)
        resolve_columns(changed, config.returned_token_ids)
    return overridden


def _choose_ids(wanted: Sequence[int] | None, compiled: tuple[int, ...]) -> tuple[int, ...]:
    return compiled if wanted is None else tuple(wanted)


def _override_widths(pooler: Pooler, hf_overrides: Mapping[str, Any] | None) -> Pooler:
    overrides = hf_overrides or {}
    widths = _check_widths(overrides.get("matryoshka_dimensions"), pooler.embedding_size)
    is_matryoshka = bool(widths or overrides.get("is_matryoshka", pooler.is_matryoshka))
    return msgspec.structs.replace(
        pooler, is_matryoshka=is_matryoshka, matryoshka_dimensions=widths or pooler.matryoshka_dimensions
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


def _override_queries(static: StaticQuery | None, max_model_len: int | None) -> StaticQuery | None:
    """Return the record of queries with the lower limit, which holds for them as well."""
    if static is None or max_model_len is None:
        return static
    return msgspec.structs.replace(static, max_tokens=min(max_model_len, static.max_tokens or max_model_len))


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


def _to_json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, sort_keys=True, default=str)
