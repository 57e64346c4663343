"""Conversations to the texts that models embed, by the server's chat template or that of the model's tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Protocol

from jinja2 import Template

from poolgraph.errors import InputError, TaskNotSupported
from poolgraph.runtime.requests import RequestRunner
from poolgraph.runtime.score_inputs import read_special_tokens, read_tokenizer_config
from poolgraph.runtime.score_request import choose_scoring
from poolgraph.runtime.score_template import TEMPLATES
from poolgraph.runtime.template_sandbox import compile_template, render_template
from poolgraph.serving.schema_common import ChatMessage

_FILE: Final = "chat_template.jinja"
_RESERVED: Final = ("chat_template", "tools", "tokenize", "messages", "add_generation_prompt")


class ConversationFields(Protocol):
    """The fields of a request that say how a conversation becomes text."""

    add_generation_prompt: bool
    continue_final_message: bool
    chat_template: str | None
    chat_template_kwargs: dict[str, Any] | None


@lru_cache(maxsize=64)
def read_chat_template(directory: Path) -> str | None:
    """Return the chat template of an artifact's tokenizer, None where it has none.

    Raises:
        ArtifactError: ``tokenizer_config.json`` is there and is no JSON object.
    """
    file = directory / _FILE
    if file.is_file():
        return file.read_text(encoding="utf-8")
    value = read_tokenizer_config(directory).get("chat_template")
    if isinstance(value, list):
        # Several templates by name, as older checkpoints have them.
        rows = [row for row in value if isinstance(row, dict) and row.get("name") == "default"]
        value = rows[-1].get("template") if rows else None
    return value if isinstance(value, str) else None


def find_server_template(runner: RequestRunner) -> str | None:
    """Return the chat template that a model was loaded with, None where that is a score template, or there is none.

    Raises:
        InputError: the template is a file that cannot be read, or it does not compile.
    """
    template = runner.chat_template
    if template is None or template in TEMPLATES or _reads_pairs(runner):
        return None
    source = _read_source(template)
    _compile(source)
    return source


def _reads_pairs(runner: RequestRunner) -> bool:
    """Whether the template that a model was loaded with is what it puts a query and a document into."""
    try:
        scoring = choose_scoring(runner.manifest, runner.default_task, template=runner.chat_template)
    except TaskNotSupported:
        return False
    return scoring.kind == "cross_encoder"


@lru_cache(maxsize=64)
def _read_source(template: str) -> str:
    if "{{" in template or "{%" in template:
        return template
    try:
        return Path(template).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise InputError(
            f"the chat template {template} cannot be read: {reason}; give a file, or the template itself",
            parameter="chat_template",
            value=template,
        ) from error


def render_conversation(
    messages: Sequence[ChatMessage], fields: ConversationFields, runner: RequestRunner, *, trusted: bool
) -> str:
    """Put a conversation into the chat template: the request's, else the server's, else the tokenizer's.

    Args:
        messages: The conversation.
        fields: The request's.
        runner: The model.
        trusted: Whether a request may bring its own template.

    Raises:
        InputError: no template, content that is not text, or options that are not acceptable.
        ArtifactError: ``tokenizer_config.json`` is there and is no JSON object.
    """
    source = _choose_source(fields, runner, trusted=trusted)
    if fields.continue_final_message and fields.add_generation_prompt:
        raise InputError(
            "Cannot set both `continue_final_message` and `add_generation_prompt` to True.",
            parameter="continue_final_message",
            value=True,
        )
    architecture = runner.manifest.architecture
    plain = [{"role": message.role, "content": _join(message, architecture)} for message in messages]
    variables = {
        **read_special_tokens(runner.model.path),
        **_check_variables(fields.chat_template_kwargs),
        "messages": plain,
        "add_generation_prompt": fields.add_generation_prompt,
    }
    text = _render(source, variables)
    return _reopen(text, plain[-1]["content"]) if fields.continue_final_message else text


def _choose_source(fields: ConversationFields, runner: RequestRunner, *, trusted: bool) -> str:
    if fields.chat_template is not None:
        if not trusted:
            raise InputError(
                "Chat template is passed with request, but --trust-request-chat-template is not set. "
                "Refused chat template with untrusted source.",
                parameter="chat_template",
            )
        return fields.chat_template
    source = find_server_template(runner)
    if source is None:
        source = read_chat_template(runner.model.path)
    if source is None:
        raise InputError(
            "this model's tokenizer has no chat template, so it takes no messages; send the text as `input`",
            parameter="messages",
        )
    return source


def _check_variables(variables: Mapping[str, Any] | None) -> Mapping[str, Any]:
    reserved = [name for name in _RESERVED if name in (variables or {})]
    if reserved:
        raise InputError(
            f"chat_template_kwargs cannot set {', '.join(reserved)}", parameter="chat_template_kwargs", value=reserved
        )
    return variables or {}


def _join(message: ChatMessage, architecture: str) -> str:
    if message.content is None or isinstance(message.content, str):
        return message.content or ""
    return join_parts(message.content, architecture)


def join_parts(parts: Sequence[Any], architecture: str) -> str:
    """Return the text of a message's parts, joined by newlines.

    Raises:
        InputError: a part that is not text.
    """
    for part in parts:
        if part.type != "text" or part.text is None:
            raise InputError(
                f"MultiModalParam is not supported for {architecture}; content parts must be "
                f'{{"type": "text", "text": str}}, not of type {part.type!r}',
                parameter="content",
            )
    return "\n".join(part.text for part in parts)


def _render(source: str, variables: Mapping[str, Any]) -> str:
    template = _compile(source)
    try:
        return render_template(template, variables)
    except Exception as error:
        raise InputError(f"the chat template failed: {error}", parameter="messages") from error


@lru_cache(maxsize=32)
def _compile(source: str) -> Template:
    try:
        return compile_template(source)
    except Exception as error:
        raise InputError(f"the chat template does not compile: {error}", parameter="chat_template") from error


def _reopen(text: str, last: str) -> str:
    """Cut what the template puts behind the last message."""
    at = text.rfind(last.strip())
    return text if at < 0 else text[: at + len(last.strip())]
