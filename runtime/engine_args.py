"""The constructor arguments that ``LLM`` shares with vLLM: which have an effect, which have none, which are refused."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Final

from poolgraph.errors import InputError

WITHOUT_EFFECT: Final = frozenset(
    {
        "allowed_local_media_path",
        "allowed_media_domains",
        "async_scheduling",
        "attention_backend",
        "attention_config",
        "block_size",
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
    "chat_template",
    "pooler_config",
    "override_pooler_config",
    "max_model_len",
    "enforce_eager",
    "buckets",
)

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
    return _PRECISIONS[check_choice("dtype", name, _PRECISIONS)]


def check_choice(name: str, value: str, allowed: Mapping[str, object]) -> str:
    """Return ``value``, one of the keys of ``allowed``; InputError otherwise."""
    if value not in tuple(allowed):
        raise InputError(f"unknown {name} {value!r}; allowed are {list(allowed)}", parameter=name, value=value)
    return value
