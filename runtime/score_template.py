"""Score templates: a query and a document put into the one text that a reranker was trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Self

from jinja2 import Template, meta

from poolgraph.errors import InputError
from poolgraph.runtime.template_sandbox import MAX_SOURCE, compile_template, render_template
from poolgraph.tasks import SIDES

TEMPLATES: Final[Mapping[str, str]] = MappingProxyType(
    {
        name: f"score_template_{name}.jinja"
        for name in ("bge_reranker_v2_gemma", "mxbai_rerank_v2", "nemotron_rerank", "plain", "qwen3_reranker")
    }
)
"""Names of the templates that ship with the package, and their files beside this one."""

RESERVED: Final = ("chat_template", "tools", "tokenize", "messages", "query", "document")
"""What ``chat_template_kwargs`` cannot set: vLLM's three, and what every template is given."""

_PROBES: Final = ("poolgraph asks", "poolgraph answers")

_OF_EVERY_CALL: Final[Mapping[str, Any]] = MappingProxyType(
    {"tools": None, "documents": None, "add_generation_prompt": False}
)
"""What transformers gives a chat template that is rendered with nothing but messages."""


@dataclass(frozen=True, slots=True)
class ScoreTemplate:
    """A compiled score template; build one with ``parse`` or ``resolve_template``. Safe to use from several threads.

    Templates written for vLLM work unchanged: they find the texts in ``messages``, by the roles ``query`` and
    ``document``, and what is asked of the model in ``instruction``. Here the texts are also called ``query`` and
    ``document``. Templates that expect a message's content as a list of parts, as sentence-transformers writes them,
    get it so. A prompt is the message of the role ``system`` before them, as sentence-transformers has it.

    A template cannot read files, and its steps, its time and the text it makes are bounded. The texts themselves are
    trusted as in vLLM: a document that holds the text of a control token, such as ``<|im_end|>``, is tokenized to that
    token, so it can forge a turn. Remove such texts from documents that you do not trust.

    Attributes:
        source: The template's text.
        content_parts: Whether a message's content is a list of parts.
    """

    source: str
    content_parts: bool
    _template: Template

    @classmethod
    def parse(cls, source: str, *, content_parts: bool | None = None) -> Self:
        """Compile a template and see that it prints both texts.

        Args:
            source: Its text.
            content_parts: Whether a message's content is a list of parts, of a template that was tried before; None
                tries both.

        Raises:
            InputError: a mistake in it, something that a template must not do, or a text that it never prints.
        """
        template = _compile(source)
        if content_parts is not None:
            return cls(source, content_parts, template)
        plain, in_parts = cls(source, False, template), cls(source, True, template)
        missing = plain._find_missing()
        if missing == []:
            return plain
        if in_parts._find_missing() == []:
            return in_parts
        if missing is None:
            return plain
        raise InputError(
            f"the score template never prints the {' and the '.join(missing)}; write {{{{ query }}}} and "
            "{{ document }}, or read the messages whose roles these are",
            parameter="template",
        )

    def render(self, query: str, document: str, instruction: str | None = None, **variables: Any) -> str:
        """Put a query and a document into the template.

        Args:
            query: The query.
            document: The document.
            instruction: What is asked of the model; None leaves it to the template's own default.
            variables: Further variables of the template.

        Raises:
            InputError: the template raised, or did something that it must not.
        """
        check_template_kwargs(variables)
        if instruction is not None:
            variables = {**variables, "instruction": instruction}
        return self.fill(query, document, variables=variables)

    def fill(self, query: str, document: str, *, prompt: str = "", variables: Mapping[str, Any]) -> str:
        """Put a query, a document and a prompt into the template.

        Args:
            query: The query.
            document: The document.
            prompt: The system message; none when empty.
            variables: Further variables, which are not checked.

        Raises:
            InputError: the template raised, or did something that it must not.
        """
        system = (("system", prompt),) if prompt else ()
        messages = [
            {"role": role, "content": [{"type": "text", "text": text}] if self.content_parts else text}
            for role, text in (*system, ("query", query), ("document", document))
        ]
        given = {**_OF_EVERY_CALL, **variables, "messages": messages, "query": query, "document": document}
        try:
            return render_template(self._template, given)
        except Exception as error:
            raise InputError(f"the score template failed: {error}", parameter="template") from error

    def has_prompt(self, variables: Mapping[str, Any]) -> bool:
        """Whether a prompt changes what the template prints, with these variables."""
        try:
            prompted = self.fill(*_PROBES, prompt="poolgraph prompts", variables=variables)
        except InputError:
            return False
        try:
            return prompted != self.fill(*_PROBES, variables=variables)
        except InputError:
            # A template that must have a system message has a place for it.
            return True

    def reads(self, name: str) -> bool:
        """Whether the template looks at a variable."""
        return name in meta.find_undeclared_variables(self._template.environment.parse(self.source))

    def _find_missing(self) -> list[str] | None:
        """Return which texts are not printed; None when it cannot be told, as when a variable of a call is missing."""
        try:
            printed = self.render(*_PROBES, instruction="poolgraph instructs")
        except InputError:
            return None
        return [role for role, probe in zip(SIDES, _PROBES, strict=True) if probe not in printed]


def check_template_kwargs(variables: Mapping[str, Any]) -> None:
    """Refuse what is no mapping of names, and variables that a score template is given anyway.

    Raises:
        InputError: naming them.
    """
    if not isinstance(variables, Mapping) or not all(isinstance(name, str) for name in variables):
        raise InputError(
            "chat_template_kwargs must be a mapping of variable names to values",
            parameter="chat_template_kwargs",
            value=variables,
        )
    if reserved := [name for name in RESERVED if name in variables]:
        raise InputError(
            f"chat_template_kwargs cannot set {', '.join(reserved)}: reserved are {', '.join(RESERVED)}",
            parameter="chat_template_kwargs",
            value=reserved,
        )


def resolve_template(template: str) -> ScoreTemplate:
    """Return the template that a caller means.

    Args:
        template: The name of a shipped template, the path of a file, or a template's own text.

    Raises:
        InputError: none of these, or a template that does not compile.
    """
    if not isinstance(template, str):
        raise InputError(f"template must be a str, got {type(template).__name__}", parameter="template")
    if template in TEMPLATES:
        return _shipped(template)
    if "{{" in template or "{%" in template:
        return _parse_cached(template)
    if _is_file(template):
        return read_template(Path(template))
    raise InputError(
        f"score template {template!r} is no file and no template's text; names are {', '.join(sorted(TEMPLATES))}",
        parameter="template",
        value=template,
    )


def read_template(path: Path, *, content_parts: bool | None = None) -> ScoreTemplate:
    """Read a template from a file.

    Args:
        path: The file.
        content_parts: As for ``ScoreTemplate.parse``.

    Raises:
        InputError: the file cannot be read as text, or the template does not compile.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            source = file.read(MAX_SOURCE + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the score template {path} cannot be read: {error}", parameter="template") from error
    return _parse_cached(source, content_parts)


@lru_cache(maxsize=32)
def _parse_cached(source: str, content_parts: bool | None = None) -> ScoreTemplate:
    return ScoreTemplate.parse(source, content_parts=content_parts)


@lru_cache(maxsize=len(TEMPLATES))
def _shipped(name: str) -> ScoreTemplate:
    file = resources.files("poolgraph.runtime") / TEMPLATES[name]
    return ScoreTemplate.parse(file.read_text(encoding="utf-8"))


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):
        # A name that no file can have: too long, or with a null byte.
        return False


def _compile(source: str) -> Template:
    try:
        return compile_template(source)
    except Exception as error:
        raise InputError(f"the score template does not compile: {error}", parameter="template") from error
