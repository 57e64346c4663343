"""The page ``/docs``: the OpenAPI document as one page of HTML, with no script and nothing loaded from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from jinja2 import Environment

_PAGE: Final = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ info.title }} {{ info.version }}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
code, pre { font: 14px/1.45 ui-monospace, monospace; background: #f4f4f4 }
pre { padding: .7rem; overflow-x: auto } table { border-collapse: collapse; width: 100%; margin: .5rem 0 }
th, td { text-align: left; vertical-align: top; border-top: 1px solid #ddd; padding: .25rem .6rem .25rem 0 }
summary { cursor: pointer; padding: .4rem 0 } .method { display: inline-block; width: 3.5rem; font-weight: 600 }
h2 { margin-top: 2rem; border-bottom: 2px solid #222 } .muted { color: #666 }
</style></head><body>
<h1>{{ info.title }} <span class="muted">{{ info.version }}</span></h1>
<p>{{ info.description }} The same as a document: <a href="openapi.json">openapi.json</a>.</p>
{% macro fields(name) %}{% set schema = schemas[name] %}
<p id="{{ name }}">{{ schema.description }}</p>
<table><tr><th>Field</th><th>Type</th><th>Default</th><th></th></tr>
{% for field, value in schema.properties.items() %}<tr><td><code>{{ field }}</code></td>
<td>{{ value | kind }}</td><td>{{ value | default_of(field in schema.get("required", [])) }}</td>
<td>{{ value.description or "" }}</td></tr>
{% endfor %}</table>{% endmacro %}
{% for tag, routes in tags.items() %}<h2>{{ tag }}</h2>
{% for route in routes %}<details><summary><span class="method">{{ route.method }}</span>
<code>{{ route.path }}</code> {{ route.summary }}</summary>
<p>{{ route.description }}</p>
{% if route.body %}<h4>Request</h4>{{ fields(route.body) }}{% endif %}
{% if route.answer in schemas %}<h4>Answer</h4>{{ fields(route.answer) }}{% endif %}
{% if route.errors %}<h4>Errors</h4><table>{% for status, text in route.errors.items() %}
<tr><td><code>{{ status }}</code></td><td>{{ text }}</td></tr>{% endfor %}</table>{% endif %}
</details>
{% endfor %}{% endfor %}
<h2>Structures</h2>
{% for name in schemas if name not in shown %}<h4>{{ name }}</h4>{{ fields(name) }}{% endfor %}
</body></html>
"""


def build_page(document: Mapping[str, Any]) -> str:
    """Return an OpenAPI document as a page of HTML."""
    environment = Environment(autoescape=True, trim_blocks=True)
    environment.filters["kind"] = _name_kind
    environment.filters["default_of"] = _name_default
    routes = [
        _plan_route(method.upper(), path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    tags: dict[str, list[dict[str, Any]]] = {}
    for route in routes:
        tags.setdefault(route["tag"], []).append(route)
    schemas = {name: schema for name, schema in document["components"]["schemas"].items() if "properties" in schema}
    shown = {route[key] for route in routes for key in ("body", "answer")}
    return environment.from_string(_PAGE).render(info=document["info"], tags=tags, schemas=schemas, shown=shown)


def _plan_route(method: str, path: str, operation: Mapping[str, Any]) -> dict[str, Any]:
    responses = operation["responses"]
    return {
        "method": method,
        "path": path,
        "tag": operation["tags"][0],
        "summary": operation["summary"],
        "description": operation["description"],
        "body": _find_name(operation.get("requestBody", {})),
        "answer": _find_name(responses["200"]),
        "errors": {status: one["description"] for status, one in responses.items() if status != "200"},
    }


def _find_name(described: Mapping[str, Any]) -> str | None:
    schema = described.get("content", {}).get("application/json", {}).get("schema", {})
    return schema["$ref"].rsplit("/", 1)[-1] if "$ref" in schema else None


def _name_kind(schema: Mapping[str, Any]) -> str:
    """Return a schema in words."""
    if "$ref" in schema:
        return str(schema["$ref"].rsplit("/", 1)[-1])
    if "anyOf" in schema:
        return " or ".join(_name_kind(one) for one in schema["anyOf"])
    if "enum" in schema:
        return ", ".join(json.dumps(value) for value in schema["enum"])
    if schema.get("type") == "array":
        items = schema.get("items")
        return f"list of ({_name_kind(items)})" if isinstance(items, dict) and items else "list"
    return str(schema.get("type", "anything"))


def _name_default(schema: Mapping[str, Any], required: bool) -> str:
    if required:
        return "required"
    return json.dumps(schema["default"]) if "default" in schema else ""
