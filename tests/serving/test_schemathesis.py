"""Requests that schemathesis makes of the OpenAPI document: no 5xx beside the documented ones, answers as described."""

from __future__ import annotations

import re

import pytest
import schemathesis
from good_bodies import GOOD
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS = (
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
)
EXPECTED = frozenset({501, 503, 504})
"""The server errors that a request can meet by its own doing: a task of another model, a time that is too short."""


@pytest.mark.slow
@pytest.mark.parametrize(("kinds", "num_examples"), [("embedder", 15), ("reranker", 6), ("embedder and reranker", 4)])
def test_no_request_breaks_it(make_site, kinds, num_examples):
    """Routes that an earlier site has too get fewer examples: what another model, or a choice of two, changes."""
    site = make_site(*kinds.split(" and "), max_texts=50, max_text_chars=400)
    schema = schemathesis.openapi.from_asgi("/openapi.json", site.app)
    operations = [result.ok() for result in schema.get_all_operations()]
    assert len(operations) > 15
    statuses = set()
    for operation in operations:
        is_own = kinds == "reranker" and re.search("classify|predict|score|rerank", operation.path)
        number = 15 if is_own else num_examples
        statuses |= ask_all(operation, GenerationMode.POSITIVE, number)
        if operation.method == "post" and operation.path != "/ping":
            good = operation.Case(
                body=GOOD[re.sub("/v[12](/score|/rerank)", r"\1", operation.path)], media_type="application/json"
            )
            good.call_and_validate(checks=list(CHECKS))
            statuses |= ask_all(operation, GenerationMode.NEGATIVE, number)
    assert statuses >= {200, 400}
    assert not {status for status in statuses if status >= 500} - EXPECTED


def ask_all(operation, mode: GenerationMode, num_examples: int) -> set[int]:
    """Ask an operation for what fits its schema, or does not, check every answer, return the statuses."""
    statuses = set()

    @settings(
        max_examples=num_examples,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case):
        response = case.call()
        statuses.add(response.status_code)
        expected = response.status_code in EXPECTED
        case.validate_response(response, checks=[check for check in CHECKS if not (expected and check is CHECKS[0])])

    ask()
    return statuses
