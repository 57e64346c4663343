"""sentence-transformers' own CrossEncoder files: limits and prompts, and which rows of a language-model head score."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from poolgraph.errors import ExportError
from poolgraph.export.checkpoint import Checkpoint
from poolgraph.export.message_template import MessageForm, parse_message_form
from poolgraph.export.sentence_transformers import SentenceTransformer
from poolgraph.export.transformer_options import find_transformer_file, read_pair_transformer

TASKS = ("sequence-classification", "text-generation")
"""What the Transformer module of a CrossEncoder runs."""


class _Module(msgspec.Struct, frozen=True):
    type: str
    path: str


class _Task(msgspec.Struct, frozen=True):
    transformer_task: str = "sequence-classification"


class _Prompts(msgspec.Struct, frozen=True):
    prompts: dict[str, str | None] | None = None
    default_prompt_name: str | None = None


class _LogitScore(msgspec.Struct, frozen=True):
    true_token_id: int
    false_token_id: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CrossEncoder:
    """What the files of a CrossEncoder say.

    Attributes:
        sentence_transformer: Limits and prompts; no pooling and no head.
        token_ids: Rows of the language-model head: (false, true), or (true,) alone; empty for a classifier.
        message: How pairs become messages of the tokenizer's chat template; None where they do not.
    """

    sentence_transformer: SentenceTransformer
    token_ids: tuple[int, ...] = ()
    message: MessageForm | None = None

    @property
    def renders(self) -> bool:
        """Whether pairs go through the tokenizer's chat template."""
        return self.message is not None


def parse_cross_encoder(checkpoint: Checkpoint) -> CrossEncoder | None:
    """Read the files that sentence-transformers 5.4 and later write for a CrossEncoder; None for another checkpoint.

    Raises:
        ExportError: a module that is not compiled, or a file that is not what it should be.
    """
    settings = checkpoint.read_json("config_sentence_transformers.json")
    if not isinstance(settings, dict) or settings.get("model_type") != "CrossEncoder":
        return None
    modules = _convert(checkpoint.read_json("modules.json"), list[_Module], "modules.json")
    kinds = [module.type.rpartition(".")[2] for module in modules]
    if kinds not in (["Transformer"], ["Transformer", "LogitScore"]) or modules[0].path:
        raise ExportError(
            f"modules.json of this CrossEncoder has the modules {kinds}; those that are compiled are a Transformer in "
            "the checkpoint's own folder, alone or with a LogitScore after it"
        )
    file = find_transformer_file(checkpoint, "")
    task = _convert(checkpoint.read_json(file) or {} if file else {}, _Task, str(file)).transformer_task
    if task not in TASKS:
        raise ExportError(f"{file} has transformer_task {task!r}; compiled are {list(TASKS)}")
    transformer = read_pair_transformer(checkpoint)
    prompts, default = _read_prompts(settings)
    return CrossEncoder(
        sentence_transformer=SentenceTransformer(
            max_seq_length=transformer.limit,
            do_lower_case=bool(transformer.do_lower_case),
            prompts=prompts,
            default_prompt_name=default,
            config_options=transformer.config_options,
            tokenizer_options=transformer.tokenizer_options,
        ),
        token_ids=_read_logit_score(checkpoint, modules[1].path) if len(modules) > 1 else (),
        message=parse_message_form(transformer, str(file)),
    )


def _read_prompts(settings: dict[str, Any]) -> tuple[dict[str, str], str | None]:
    """Return the prompts by name, and the name of the one that is applied when none is asked for."""
    found = _convert(settings, _Prompts, "config_sentence_transformers.json")
    prompts = {name: text or "" for name, text in (found.prompts or {}).items()}
    if found.default_prompt_name is not None and found.default_prompt_name not in prompts:
        raise ExportError(
            f"config_sentence_transformers.json names the default prompt {found.default_prompt_name!r}, but has only "
            f"the prompts {sorted(prompts)}"
        )
    return prompts, found.default_prompt_name


def _read_logit_score(checkpoint: Checkpoint, path: str) -> tuple[int, ...]:
    name = f"{path}/config.json"
    score = _convert(checkpoint.read_json(name), _LogitScore, name)
    return tuple(index for index in (score.false_token_id, score.true_token_id) if index is not None)


def _convert(content: Any, form: Any, name: str) -> Any:
    try:
        return msgspec.convert(content, form)
    except msgspec.ValidationError as error:
        raise ExportError(f"{name} is not what sentence-transformers writes: {error}") from error
