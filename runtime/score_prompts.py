"""A query and a document put into a score template: the prompt's tokens, cut so that they fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from tokenizers import Encoding

from poolgraph.errors import InputError
from poolgraph.runtime.score_options import ScoreOptions
from poolgraph.runtime.score_template import ScoreTemplate, check_template_kwargs
from poolgraph.runtime.text_cuts import check_max_tokens, cut_text, cut_texts
from poolgraph.runtime.tokenizer import EncodedText, TextTokenizer, name_inputs

_FILLERS: Final = ("0", "1 2 3 4")
"""Texts without a token in common at their ends: what prompts of them share there is the template's."""

_MARK: Final = "\ue000"
"""Stands for the document: a character that Unicode leaves to private use."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptForm:
    """How a query and a document become one text.

    Attributes:
        template: What they are put into.
        variables: Variables of the template that the caller's go before, such as ``bos_token``.
        add_special_tokens: Whether the tokenizer adds its special tokens around the text.
    """

    template: ScoreTemplate
    variables: Mapping[str, Any] = field(default_factory=dict)
    add_special_tokens: bool = True


def encode_prompts(
    tokenizer: TextTokenizer,
    form: PromptForm,
    pairs: Sequence[tuple[str, str]],
    options: ScoreOptions,
    *,
    prompt: str = "",
    first_index: int = 0,
) -> list[EncodedText]:
    """Tokenize queries with their documents in a template.

    Args:
        tokenizer: The model's tokenizer.
        form: What they are put into.
        pairs: Queries with their documents.
        options: The caller's.
        prompt: The caller's prompt or the model's.
        first_index: Index of the first pair in the caller's own list, for messages.

    Raises:
        InputError: a pair that is too long, or an option that is not acceptable.
    """
    writer = _plan_writer(tokenizer, form, options, prompt)
    queries = _cut_distinct(tokenizer, [query for query, _ in pairs], "query", options.max_tokens_per_query)
    documents = _cut_distinct(tokenizer, [document for _, document in pairs], "doc", options.max_tokens_per_doc)
    kept = [(queries[query], documents[document]) for query, document in pairs]
    rendered = [writer.render(query, document) for (query, _), (document, _) in kept]
    encodings = writer.encode(rendered, first_index=first_index)
    encoded: list[EncodedText] = []
    for encoding, sides, suffix in zip(encodings, kept, name_inputs("pair", len(pairs), first_index), strict=True):
        (query, query_cut), (document, document_cut) = sides
        fitting = writer.fit(query, document, encoding)
        tokenizer.check_length(len(fitting), suffix)
        num_cut = query_cut + document_cut + len(encoding) - len(fitting)
        encoded.append(_to_text(tokenizer, fitting, num_cut))
    return encoded


@dataclass(frozen=True, slots=True, kw_only=True)
class _Writer:
    """Texts to prompts and prompts to tokens, all else decided.

    Attributes:
        tokenizer: The model's tokenizer.
        form: What texts are put into.
        prompt: The system message; none when empty.
        variables: All variables of the template.
        limit: Tokens that a prompt may have; None for any number.
        side: Where texts are cut.
    """

    tokenizer: TextTokenizer
    form: PromptForm
    prompt: str
    variables: Mapping[str, Any]
    limit: int | None
    side: str

    def render(self, query: str, document: str) -> str:
        return self.form.template.fill(query, document, prompt=self.prompt, variables=self.variables)

    def encode(self, texts: Sequence[str], *, first_index: int = 0) -> list[Encoding]:
        special = self.form.add_special_tokens
        return self.tokenizer.encode_batch(texts, add_special_tokens=special, first_index=first_index)

    def fit(self, query: str, document: str, whole: Encoding) -> Encoding:
        """Cut a prompt that is too long: its document, or more where the query alone is too long.

        A document that is the last of the texts is cut with the prompt, as sentence-transformers does it.
        """
        if self.limit is None or len(whole) <= self.limit:
            return whole
        (bare,) = self.encode([self.render(query, "")])
        if len(bare) > self.limit or (self.side == "right" and self._ends_with_document(query, document)):
            return self._cut_prompt(query, document, self.limit)
        return self._cut_document(query, document, whole, bare, self.limit)

    def _ends_with_document(self, query: str, document: str) -> bool:
        """Whether the document is printed once, as it is, and nothing after it but what ends every prompt."""
        head, mark, tail = self.render(query, _MARK).partition(_MARK)
        if not mark or _MARK in tail or self.render(query, document) != head + document + tail:
            return False
        ending = self._find_ending(self.tokenizer.max_model_len)
        return ending.ids == self._encode_bare(tail).ids

    def _cut_document(self, query: str, document: str, whole: Encoding, bare: Encoding, limit: int) -> Encoding:
        """Cut the document so that the whole prompt fits.

        Tokens may merge where the document ends, and a template may print it more than once; hence by trial, from the
        length that a straight line through the empty and the whole document gives.
        """
        (places,) = self.tokenizer.encode_batch([document], add_special_tokens=False, first_index=0, offsets=True)
        slope = max(1.0, (len(whole) - len(bare)) / max(1, len(places)))
        kept = min(len(places) - 1, int((limit - len(bare)) / slope))
        while kept > 0:
            part = cut_text(document, places, kept, side=self.side).text
            (fitting,) = self.encode([self.render(query, part)])
            if len(fitting) <= limit:
                return fitting
            kept -= max(1, int((len(fitting) - limit) / slope))
        return bare

    def _cut_prompt(self, query: str, document: str, limit: int) -> Encoding:
        """Cut the prompt as sentence-transformers does: its last tokens but those that end every prompt."""
        special, backend = self.form.add_special_tokens, self.tokenizer.backend
        room = limit - (backend.num_special_tokens_to_add(is_pair=False) if special else 0)
        cut = self._encode_bare(self.render(query, document))
        if self.side == "left":
            cut.truncate(room, direction="left")
        else:
            ending = self._find_ending(room)
            cut.truncate(room - len(ending))
            cut = Encoding.merge([cut, ending], growing_offsets=True)
        return backend.post_process(cut, add_special_tokens=special)

    def _find_ending(self, most: int) -> Encoding:
        """Return the tokens that end every prompt, whatever its texts; at most so many of them, the last."""
        first, second = (self._encode_bare(self.render(filler, filler)) for filler in _FILLERS)
        shorter = min(len(first), len(second))
        pairs = zip(reversed(first.ids), reversed(second.ids), strict=False)
        num_equal = next((index for index, (left, right) in enumerate(pairs) if left != right), shorter)
        first.truncate(min(num_equal if num_equal < shorter else 0, most), direction="left")
        return first

    def _encode_bare(self, text: str) -> Encoding:
        (encoding,) = self.tokenizer.encode_batch([text], add_special_tokens=False, first_index=0)
        return encoding


def _plan_writer(tokenizer: TextTokenizer, form: PromptForm, options: ScoreOptions, prompt: str) -> _Writer:
    check_template_kwargs(options.template_kwargs)
    text, variables = _place_instruction(form, options, prompt)
    special = form.add_special_tokens
    least = tokenizer.backend.num_special_tokens_to_add(is_pair=False) if special else 0
    return _Writer(
        tokenizer=tokenizer,
        form=form,
        prompt=text,
        variables=variables,
        limit=tokenizer.resolve_limit(options.truncate_to, least=least),
        side=tokenizer.resolve_truncation_side(options.truncation_side),
    )


def _place_instruction(form: PromptForm, options: ScoreOptions, prompt: str) -> tuple[str, dict[str, Any]]:
    """Return the prompt and all variables; an instruction that the template does not read is its system message.

    An instruction goes before the model's own prompt.
    """
    template, own = form.template, {**form.variables, **options.template_kwargs}
    asked, named = _choose_instruction(options), prompt if options.names_prompt else ""
    if named and not template.has_prompt(own):
        raise _refuse("prompt", named)
    if asked is None:
        return prompt, own
    if template.reads("instruction"):
        return named, {**own, "instruction": asked}
    if template.has_prompt(own):
        _check_one(asked, named)
        return str(asked), own
    if options.instruction is not None:
        raise _refuse("instruction", asked)
    return prompt, own


def _choose_instruction(options: ScoreOptions) -> Any:
    """Return the instruction of the call, by whichever name it was given."""
    instruction, variable = options.instruction, options.template_kwargs.get("instruction")
    if instruction is not None and variable is not None and variable != instruction:
        raise InputError(
            "instruction and chat_template_kwargs contradict each other; give the instruction once",
            parameter="instruction",
            value=instruction,
        )
    return variable if instruction is None else instruction


def _refuse(name: str, value: Any) -> InputError:
    return InputError(
        f"the score template has no place for {'an' if name == 'instruction' else 'a'} {name}; leave it out, or pass a "
        "template that reads `instruction` or prints the message whose role is system",
        parameter=name,
        value=value,
    )


def _check_one(asked: Any, named: str) -> None:
    if named and asked != named:
        raise InputError(
            "the score template has one place for an instruction and a prompt, its system message; give one of them",
            parameter="instruction",
            value=asked,
        )


def _cut_distinct(
    tokenizer: TextTokenizer, texts: Sequence[str], name: str, max_tokens: int | None
) -> dict[str, tuple[str, int]]:
    """Return what ``max_tokens_per_...`` leaves of each distinct text, and how many tokens it took."""
    most = check_max_tokens(f"max_tokens_per_{name}", max_tokens, tokenizer.max_model_len)
    distinct = list(dict.fromkeys(texts))
    cuts = cut_texts(tokenizer, distinct, most)
    return {text: (cut.text, cut.num_truncated_tokens) for text, cut in zip(distinct, cuts, strict=True)}


def _to_text(tokenizer: TextTokenizer, encoding: Encoding, num_cut: int) -> EncodedText:
    return EncodedText(
        input_ids=np.array(encoding.ids, dtype=np.int64),
        token_type_ids=np.array(encoding.type_ids, dtype=np.int64) if tokenizer.has_token_types else None,
        num_truncated_tokens=num_cut,
    )
