"""The chat template of a CrossEncoder whose pairs are messages, as a score template that makes the same text."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from transformers import PreTrainedTokenizerBase

from poolgraph.errors import ExportError, InputError, TaskNotSupported
from poolgraph.export.transformer_options import TransformerOptions
from poolgraph.runtime.score_template import RESERVED, TEMPLATES, ScoreTemplate
from poolgraph.tasks import SIDES

PROBES = (("what swims", "an otter"), ("who sleeps here", "an otter"), ("what swims", "the brown bear"))
"""A pair, then pairs of another query and of another document."""

SIZE_ARGUMENTS = frozenset({"padding", "truncation", "max_length", "return_tensors", "restore_suffix"})
"""Arguments about the tokens of a finished text: the limit is read, how longer texts are cut is the runtime's part."""

TYPES: Mapping[str, type] = {"max_length": int, "chat_template": str}
"""Arguments that are read here."""

REFUSED_ARGUMENTS = (
    frozenset(inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters) | frozenset(RESERVED)
) - {"add_generation_prompt", "chat_template", *SIZE_ARGUMENTS}
"""Arguments that are no variables of a template, or that every score template is given."""

OTHER_TEMPLATE = f"give --score-template with a file or one of {', '.join(sorted(TEMPLATES))}"


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageForm:
    """What the files say of pairs that are messages.

    Attributes:
        content_parts: Whether a message's content is a list of parts; None where the files leave it to the template.
        variables: Variables of the template.
        chat_template: Text or name of another template than the tokenizer's default one.
    """

    content_parts: bool | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)
    chat_template: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplatePlan:
    """A score template, and how it is used.

    Attributes:
        source: Its text.
        variables: Variables that are not a request's.
        content_parts: Whether a message's content is a list of parts; None tries both.
        add_special_tokens: Whether the tokenizer adds its special tokens around the text.
    """

    source: str
    variables: Mapping[str, Any] = field(default_factory=dict)
    content_parts: bool | None = None
    add_special_tokens: bool = True


def parse_message_form(transformer: TransformerOptions, file: str) -> MessageForm | None:
    """Read how pairs become messages; None where they do not.

    Args:
        transformer: The options of the Transformer module.
        file: Their file, for messages.

    Raises:
        ExportError: an argument that cannot be compiled.
    """
    message = (transformer.modality_config or {}).get("message")
    if message is None:
        return None
    form = message.get("format", "auto") if isinstance(message, dict) else "auto"
    arguments = dict(transformer.template_arguments)
    wrong = {name for name, kind in TYPES.items() if name in arguments and type(arguments[name]) is not kind}
    if refused := sorted(set(arguments) & REFUSED_ARGUMENTS | wrong):
        raise ExportError(
            f"{file} gives the chat template the arguments {refused}, which cannot be compiled; variables of the "
            "template can, add_generation_prompt among them"
        )
    template = arguments.pop("chat_template", None)
    return MessageForm(
        content_parts=None if form == "auto" else form != "flat",
        variables={name: value for name, value in arguments.items() if name not in SIZE_ARGUMENTS},
        chat_template=template,
    )


def plan_message_template(
    form: MessageForm, tokenizer: PreTrainedTokenizerBase, prompts: Iterable[str], default_prompt: str
) -> TemplatePlan:
    """Make the chat template a score template, and see that it makes transformers' own texts.

    Args:
        form: What the files say.
        tokenizer: The reference's tokenizer, which has the template.
        prompts: The prompts of the files.
        default_prompt: The one that is the system message of every pair; none when empty.

    Raises:
        TaskNotSupported: a template that does not print both texts.
        ExportError: one that the runtime renders otherwise, or not at all.
    """
    source = _find_source(form, tokenizer)
    content_parts = _choose_content(form, tokenizer, default_prompt)
    try:
        template = ScoreTemplate.parse(source, content_parts=content_parts)
    except InputError as error:
        raise _refuse(error.message) from error
    special = {name: text for name, text in tokenizer.special_tokens_map.items() if template.reads(name)}
    plan = TemplatePlan(
        source=source, variables={**special, **form.variables}, content_parts=content_parts, add_special_tokens=False
    )
    render = partial(_render, form, tokenizer, content_parts)
    for prompt in dict.fromkeys(("", default_prompt, *prompts)):
        _check_texts(template, plan, render, prompt)
    return plan


def _find_source(form: MessageForm, tokenizer: PreTrainedTokenizerBase) -> str:
    try:
        return str(tokenizer.get_chat_template(form.chat_template))
    except ValueError as error:
        raise TaskNotSupported(
            f"this CrossEncoder renders pairs through a chat template, and there is none: {error}; {OTHER_TEMPLATE}"
        ) from error


def _choose_content(form: MessageForm, tokenizer: PreTrainedTokenizerBase, prompt: str) -> bool:
    """Return the form of a message's content in which the template prints both texts: the files', or the first."""
    forms = (False, True) if form.content_parts is None else (form.content_parts,)
    faults = {parts: _find_fault(partial(_render, form, tokenizer, parts), prompt) for parts in forms}
    for parts, fault in faults.items():
        if fault is None:
            return parts
    raise TaskNotSupported(
        f"this CrossEncoder renders pairs through its chat template, which {faults[forms[0]]}: {OTHER_TEMPLATE}"
    )


def _render(
    form: MessageForm, tokenizer: PreTrainedTokenizerBase, content_parts: bool, pair: tuple[str, str], prompt: str
) -> str:
    """Render a pair with transformers."""
    system = (("system", prompt),) if prompt else ()
    messages = [
        {"role": role, "content": [{"type": "text", "text": text}] if content_parts else text}
        for role, text in (*system, *zip(SIDES, pair, strict=True))
    ]
    return str(
        tokenizer.apply_chat_template(messages, chat_template=form.chat_template, tokenize=False, **form.variables)
    )


def _find_fault(render: Callable[[tuple[str, str], str], str], prompt: str) -> str | None:
    try:
        first, *others = [render(pair, prompt) for pair in PROBES]
    except Exception as error:
        return f"fails for a query and a document ({error})"
    lost = [role for role, other in zip(SIDES, others, strict=True) if other == first]
    return f"never prints the {' and the '.join(lost)}" if lost else None


def _check_texts(
    template: ScoreTemplate, plan: TemplatePlan, render: Callable[[tuple[str, str], str], str], prompt: str
) -> None:
    """Compare the texts of the probes; what transformers cannot render either is no difference."""
    for pair in PROBES:
        try:
            expected = render(pair, prompt)
        except Exception:
            return
        try:
            found = template.fill(*pair, prompt=prompt, variables=plan.variables)
        except InputError as error:
            raise _refuse(error.message) from error
        if found != expected:
            raise _refuse(f"poolgraph renders {found!r}, and transformers {expected!r}")


def _refuse(why: str) -> ExportError:
    return ExportError(f"the chat template of this CrossEncoder cannot be compiled: {why}; {OTHER_TEMPLATE}")
