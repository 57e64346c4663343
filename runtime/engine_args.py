"""The constructor arguments that ``LLM`` shares with vLLM: which have an effect, which have none, which are refused."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Final

from poolgraph.config import PoolerConfig
from poolgraph.errors import InputError, TaskNotSupported
from poolgraph.graphs.manifest import Manifest

WITHOUT_EFFECT: Final = frozenset(
    {
        "allowed_local_media_path",
        "allowed_media_domains",
        "async_scheduling",
        "attention_backend",
        "attention_config",
        "block_size",
        "chat_template",
        "code_revision",
        "collect_detailed_traces",
        "compilation_config",
        "config_format",
        "cpu_offload_gb",
        "cudagraph_metrics",
        "data_parallel_size",
        "device",
        "disable_cascade_attention",
        "disable_custom_all_reduce",
        "disable_log_stats",
        "distributed_executor_backend",
        "download_dir",
        "enable_chunked_prefill",
        "enable_prefix_caching",
        "enforce_eager",
        "generation_config",
        "gpu_memory_utilization",
        "hf_config_path",
        "hf_token",
        "kernel_config",
        "kv_cache_dtype",
        "kv_cache_memory_bytes",
        "limit_mm_per_prompt",
        "load_format",
        "long_prefill_token_threshold",
        "max_cpu_loras",
        "max_logprobs",
        "max_num_batched_tokens",
        "max_num_partial_prefills",
        "max_num_seqs",
        "max_parallel_loading_workers",
        "max_seq_len_to_capture",
        "mm_processor_kwargs",
        "model_impl",
        "model_loader_extra_config",
        "num_gpu_blocks_override",
        "num_lookahead_slots",
        "optimization_level",
        "performance_mode",
        "pipeline_parallel_size",
        "prefix_caching_hash_algo",
        "profiler_config",
        "renderer_num_workers",
        "scheduler_cls",
        "scheduling_policy",
        "seed",
        "served_model_name",
        "show_hidden_metrics_for_version",
        "skip_tokenizer_init",
        "structured_outputs_config",
        "swap_space",
        "tensor_parallel_size",
        "tokenizer_mode",
        "tokenizer_revision",
        "use_tqdm_on_load",
        "worker_cls",
        "worker_extension_cls",
    }
)
"""Arguments of vLLM's engine that steer what poolgraph has no use for: accepted, and nothing changes."""

_REFUSED: Final[Mapping[str, str]] = {
    "enable_lora": "merge the adapter into the checkpoint before exporting it",
    "io_processor_plugin": "plugins are not supported",
    "logits_processors": "they belong to text generation",
    "quantization": "choose a precision when exporting: poolgraph export MODEL --precision int8",
    "speculative_config": "it belongs to text generation",
}
"""Arguments that would change the answers, with what to do instead."""

_NAMED: Final = (
    "model",
    "task",
    "runner",
    "convert",
    "tokenizer",
    "revision",
    "dtype",
    "trust_remote_code",
    "hf_overrides",
    "pooler_config",
    "override_pooler_config",
    "max_model_len",
)

_RUNNERS: Final = ("auto", "pooling")

_CONVERT_TASKS: Final[Mapping[str, str | None]] = {
    "auto": None,
    "none": None,
    "embed": "embed",
    "classify": "classify",
}

_TASKS: Final[Mapping[str, tuple[str, ...]]] = {
    "embed": ("embed",),
    "embedding": ("embed",),
    "classify": ("classify",),
    "score": ("classify", "embed"),
    "reward": ("token_classify", "classify"),
    "token_embed": ("token_embed",),
    "token_classify": ("token_classify",),
}
"""What each spelling of a task may mean; the first that the artifact supports holds."""

_EXPORT_TASKS: Final[Mapping[str, str]] = {"embedding": "embed"}

_PRECISIONS: Final[Mapping[str, str | None]] = {
    "auto": None,
    "float": "fp32",
    "float32": "fp32",
    "half": "fp16",
    "float16": "fp16",
    "bfloat16": "bf16",
}


def check_engine_args(engine_args: Mapping[str, object]) -> None:
    """Refuse arguments that vLLM does not know, or that would change answers in a way poolgraph does not offer.

    Raises:
        InputError: naming close matches, or what to do instead.
    """
    for name, value in engine_args.items():
        if name in WITHOUT_EFFECT:
            continue
        if name not in _REFUSED:
            near = get_close_matches(name, [*_NAMED, *WITHOUT_EFFECT, *_REFUSED], n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else f"those with an effect are {list(_NAMED)}"
            raise InputError(f"LLM has no argument {name!r}; {hint}", parameter=name, value=value)
        if value:
            raise InputError(f"{name} is not supported; {_REFUSED[name]}", parameter=name, value=value)


def resolve_precision(dtype: object) -> str | None:
    """Turn vLLM's ``dtype`` (a name, or a torch dtype) into a precision, None for the artifact's own choice.

    Raises:
        InputError: an unknown dtype.
    """
    name = str(dtype).removeprefix("torch.")
    return _PRECISIONS[_check_choice("dtype", name, _PRECISIONS)]


def resolve_requested_task(runner: str, convert: str, task: str | None, config: PoolerConfig) -> str | None:
    """Return the task that the constructor's arguments ask for, in the caller's spelling; None when they leave it open.

    Raises:
        InputError: a runner that generates text, or an unknown convert type or task.
    """
    if runner not in _RUNNERS:
        raise InputError(
            f"runner {runner!r} is not supported: poolgraph runs pooling models; allowed are {list(_RUNNERS)}",
            parameter="runner",
            value=runner,
        )
    converted = _CONVERT_TASKS[_check_choice("convert", convert, _CONVERT_TASKS)]
    if task is not None and task != "auto":
        _check_choice("task", task, _TASKS)
        return config.task or task
    return config.task or converted


def plan_export_options(task: str | None, *, trust_remote_code: bool) -> dict[str, str]:
    """Return the options that a checkpoint is exported with when there is no artifact yet."""
    options = {} if task is None else {"task": _EXPORT_TASKS.get(task, task)}
    return {**options, "trust-remote-code": "true"} if trust_remote_code else options


def resolve_default_task(manifest: Manifest, task: str | None) -> str | None:
    """Return the task that ``encode`` does when none is named.

    Raises:
        TaskNotSupported: a task was asked for that the artifact does not support.
    """
    if task is None:
        return manifest.default_task
    for meaning in _TASKS[task]:
        if meaning in manifest.tasks:
            return meaning
    raise TaskNotSupported(
        f"the artifact does not support task {task!r}; it supports {list(manifest.tasks)}. "
        f"Export the checkpoint with --task {_EXPORT_TASKS.get(task, task)}"
    )


def _check_choice(name: str, value: str, allowed: Mapping[str, object]) -> str:
    if value not in allowed:
        raise InputError(f"unknown {name} {value!r}; allowed are {list(allowed)}", parameter=name, value=value)
    return value
