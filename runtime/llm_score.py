"""The methods of ``LLM`` about pairs of texts: ``score`` and ``rerank``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from poolgraph.config import PoolingParams
from poolgraph.errors import InputError
from poolgraph.runtime.llm_base import LoadedLLM
from poolgraph.runtime.outputs import ScoringRequestOutput
from poolgraph.runtime.prompts import ParsedPrompt, Prompt, ScoreData, parse_score_data
from poolgraph.runtime.requests import RequestOptions, read_options
from poolgraph.runtime.score_options import check_top_n
from poolgraph.runtime.score_request import plan_score_request
from poolgraph.runtime.score_requests import answer_scores
from poolgraph.runtime.task_score import RankedDocument
from poolgraph.runtime.work import UseTqdm, drive


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
        does. A model with a route for each side gives its own similarity of queries and documents, their prompts put
        before them.

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
        options = read_options(
            pooling_params=pooling_params,
            use_tqdm=use_tqdm,
            lora_request=lora_request,
            tokenization_kwargs=tokenization_kwargs,
            truncate_prompt_tokens=truncate_prompt_tokens,
        )
        return self._score(self._parse_side(data_1), self._parse_side(data_2), options, chat_template)

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
            top_n: How many of the best are returned; None and 0 for all.
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
        check_top_n(top_n)
        options = read_options(
            pooling_params=pooling_params,
            use_tqdm=use_tqdm,
            lora_request=lora_request,
            tokenization_kwargs=tokenization_kwargs,
            truncate_prompt_tokens=truncate_prompt_tokens,
        )
        queries, texts = self._parse_side(query), self._parse_side(documents)
        if len(queries) > 1:
            raise InputError(f"rerank takes one query, got {len(queries)}; score takes several", parameter="query")
        scores = [output.outputs.score for output in self._score(queries, texts, options, chat_template)]
        order = sorted(range(len(scores)), key=lambda index: -scores[index])[: top_n or None]
        return [RankedDocument(index, scores[index], self._show(texts[index])) for index in order]

    def _parse_side(self, data: ScoreData) -> list[ParsedPrompt]:
        return parse_score_data(data, architecture=self._runner.manifest.architecture)

    def _show(self, prompt: ParsedPrompt) -> str:
        return prompt if isinstance(prompt, str) else self._runner.tokenizer.decode(prompt)

    def _score(
        self,
        queries: list[ParsedPrompt],
        documents: list[ParsedPrompt],
        options: RequestOptions,
        chat_template: str | Path | None,
    ) -> list[ScoringRequestOutput]:
        template = None if chat_template is None else str(chat_template)
        request = plan_score_request(self._runner, queries, documents, options, template)
        work = answer_scores(self._runner, request, self._request_ids)
        return drive(self._runner.model, work, use_tqdm=options.use_tqdm)
