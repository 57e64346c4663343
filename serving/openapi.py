"""The OpenAPI document, made of the routes and of the structures that requests are decoded to."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, get_args

import msgspec

from poolgraph import __version__
from poolgraph.serving.endpoint import Endpoint
from poolgraph.serving.schema_common import ErrorBody

_PHRASES: Final[Mapping[int, str]] = {
    400: "The request is not acceptable",
    404: "No such model",
    413: "More or longer texts than the server takes in one request",
    415: "The body is not JSON",
    429: "The queue is full; Retry-After says when to try again",
    500: "The model could not answer",
    501: "The model does not do this task",
    503: "The server is not able to answer now",
    504: "The answer took too long",
}
_REF: Final = "#/components/schemas/{name}"
_NO_WORD: Final = re.compile(r"\W+")
_VARIABLE: Final = re.compile(r"{(\w+)}")
_ATTRIBUTE: Final = re.compile(r"^(\w+): (.*)$")


def build_document(endpoints: Sequence[Endpoint]) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document of routes.

    msgspec describes the very structures that it decodes, so the document cannot differ from what is accepted.
    """
    types = [kind for one in endpoints for kind in (one.body_type, one.answer_type) if kind is not None]
    schemas, components = msgspec.json.schema_components([*types, ErrorBody], ref_template=_REF)
    found = iter(schemas)
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in endpoints:
        body = None if endpoint.body_type is None else next(found)
        answer = None if endpoint.answer_type is None else next(found)
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = _describe(endpoint, body, answer)
    for kind in _find_structs(types):
        _describe_fields(components.get(kind.__name__), kind)
    _simplify([paths, components])
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "poolgraph",
            "version": __version__,
            "description": "Embeddings, scores and classes from compiled pooling models.",
        },
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def _describe(endpoint: Endpoint, body: Any, answer: Any) -> dict[str, Any]:
    content = {} if answer is None else {"application/json": {"schema": answer}}
    content |= {kind: {"schema": _describe_body(kind)} for kind in endpoint.content_types}
    responses = {"200": {"description": "The answer", **({"content": content} if content else {})}}
    responses |= {str(status): _describe_error(status) for status in endpoint.statuses}
    described: dict[str, Any] = {
        "operationId": endpoint.method.lower() + _NO_WORD.sub("_", endpoint.path).rstrip("_"),
        "summary": endpoint.summary,
        "description": inspect.getdoc(endpoint.function) or "",
        "tags": [endpoint.tag],
        "responses": responses,
    }
    if names := _VARIABLE.findall(endpoint.path):
        schema = {"type": "string"}
        described["parameters"] = [{"name": name, "in": "path", "required": True, "schema": schema} for name in names]
    if body is not None:
        described["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
    return described


def _describe_body(content_type: str) -> dict[str, Any]:
    return {"type": "string"} if content_type.startswith("text/") else {"type": "string", "format": "binary"}


def _describe_error(status: int) -> dict[str, Any]:
    schema = {"$ref": _REF.format(name=ErrorBody.__name__)}
    return {"description": _PHRASES[status], "content": {"application/json": {"schema": schema}}}


def _simplify(node: Any) -> None:
    """Put what msgspec says, in a document's parts, into words that generators of clients understand.

    An array has ``items``, or ``prefixItems`` and ``maxItems``; spellings of a value that differ in case are told once.
    """
    for part in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        _simplify(part)
    if not isinstance(node, dict):
        return
    if node.get("items") is False:
        del node["items"]
    if node.get("type") == "array" and "prefixItems" not in node:
        node.setdefault("items", {})
    if isinstance(values := node.get("enum"), list):
        node["enum"] = list({str(value).lower(): value for value in reversed(values)}.values())[::-1]


def _find_structs(types: Sequence[Any]) -> list[type[msgspec.Struct]]:
    """Return the structures among types and in their fields."""
    found: dict[type[msgspec.Struct], None] = {}
    waiting = list(types)
    while waiting:
        kind = waiting.pop()
        waiting += get_args(kind)
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and kind not in found:
            found[kind] = None
            waiting += [field.type for field in msgspec.structs.fields(kind)]
    return list(found)


def _describe_fields(schema: dict[str, Any] | None, kind: type[msgspec.Struct]) -> None:
    """Move what a structure's docstring says of its fields, and of those it inherits, to the fields."""
    if schema is None:
        return
    schema["description"] = _summarize(kind)
    for name, text in read_attributes(kind).items():
        if name in schema.get("properties", {}):
            schema["properties"][name].setdefault("description", text)


def _summarize(kind: type) -> str:
    return (inspect.getdoc(kind) or "").split("\n\nAttributes:")[0].replace("\n", " ")


def read_attributes(kind: type) -> dict[str, str]:
    """Return what the docstrings of a class and of its bases say under ``Attributes:``, by name."""
    texts: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        own = base.__dict__.get("__doc__") or ""
        name = None
        for line in inspect.cleandoc(own.partition("Attributes:\n")[2]).splitlines():
            if found := _ATTRIBUTE.match(line.strip()) if not line.startswith("  ") else None:
                name, texts[found[1]] = found[1], found[2]
            elif name is not None:
                texts[name] += f" {line.strip()}"
    return texts
