"""The methods of ``LLM`` about pairs of texts: ``score`` and ``rerank``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from poolgraph.config import PoolingParams
from poolgraph.errors import InputError
from poolgraph.runtime.llm_base import LoadedLLM
from poolgraph.runtime.outputs import ScoringRequestOutput
from poolgraph.runtime.prompts import Prompt, ScoreData, parse_score_data
from poolgraph.runtime.requests import RequestOptions, UseTqdm, check_no_adapter
from poolgraph.runtime.score_pairs import plan_pairs
from poolgraph.runtime.score_request import ScoreRequest, choose_scoring, parse_extra_kwargs
from poolgraph.runtime.score_requests import SCORERS
from poolgraph.runtime.task_score import RankedDocument


class ScoreMethods(LoadedLLM):
    """Scores of pairs, whatever the kind of model."""

    def score(
        self,
        data_1: ScoreData,
        data_2: ScoreData,
        /,
        *,
        use_tqdm: UseTqdm = True,
        pooling_params: PoolingParams | None = None,
        lora_request: object = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
        truncate_prompt_tokens: int | None = None,
        chat_template: str | Path | None = None,
    ) -> list[ScoringRequestOutput]:
        """Score pairs of texts, 1:1, 1:N or N:N.

        A classifier with one label reads both texts in one run. A model used for ``embed`` gives the cosine of its
        embeddings. A model used for ``token_embed`` gives MaxSim, of queries and documents as its checkpoint defines
        them, or with ``PoolingParams(extra_kwargs={"plain_late_interaction": True})`` of plain token vectors, as vLLM
        does.

        Args:
            data_1: The query, or one query for each document: texts, or ``{"content": [{"type": "text", ...}]}``.
                Models that embed take token ids too.
            data_2: The documents.
            use_tqdm: As in ``embed``.
            pooling_params: For all texts. ``extra_kwargs`` take ``max_tokens_per_query``, ``max_tokens_per_doc``,
                ``chat_template_kwargs`` (variables of the score template, ``instruction`` among them) and
                ``plain_late_interaction``.
            lora_request: Not supported; None.
            tokenization_kwargs: As in ``embed``; the tokens of a pair are counted together.
            truncate_prompt_tokens: As in ``embed``.
            chat_template: Score template of this call: a shipped name, a file, or the template itself.

        Returns:
            One answer a pair, in the documents' order.

        Raises:
            InputError: lengths that do not pair, or a text or parameter that is not acceptable.
            TaskNotSupported: the model gives no scores.
        """
        options = RequestOptions(
            pooling_params=pooling_params,
            use_tqdm=use_tqdm,
            lora_request=lora_request,
            tokenization_kwargs=tokenization_kwargs,
            truncate_prompt_tokens=truncate_prompt_tokens,
        )
        template = self._chat_template if chat_template is None else str(chat_template)
        kind = choose_scoring(self._runner.manifest, self._default_task, has_template=template is not None)
        request = self._parse_request(data_1, data_2, options, template)
        return SCORERS[kind](self._runner, request, self._request_ids)

    def rerank(
        self,
        query: Prompt | Mapping[str, Any],
        documents: ScoreData,
        top_n: int | None = None,
        *,
        use_tqdm: UseTqdm = True,
        pooling_params: PoolingParams | None = None,
        lora_request: object = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
        truncate_prompt_tokens: int | None = None,
        chat_template: str | Path | None = None,
    ) -> list[RankedDocument]:
        """Put documents into the order of their scores against one query, the best first.

        Args:
            query: The query.
            documents: The documents.
            top_n: How many are returned at most; None for all.
            use_tqdm: As in ``score``, like the arguments that follow.
            pooling_params: For all texts.
            lora_request: Not supported; None.
            tokenization_kwargs: How texts become tokens.
            truncate_prompt_tokens: Tokens kept of a longer prompt.
            chat_template: Score template of this call.

        Returns:
            ``RankedDocument(index, score, text)``; documents of equal score stay in their order.

        Raises:
            InputError: more than one query, no document, or a text or parameter that is not acceptable.
            TaskNotSupported: the model gives no scores.
        """
