"""The tasks ``classify`` and ``token_classify`` of a loaded model."""

from __future__ import annotations

from collections.abc import Generator, Sequence

import numpy as np
from numpy.typing import NDArray

from poolgraph.config import PoolingParams
from poolgraph.errors import InputError
from poolgraph.runtime.executor import Progress
from poolgraph.runtime.finish import Finish, finish_rows, finish_tokens, plan_finish
from poolgraph.runtime.loaded import LoadedModel, progress_bar
from poolgraph.runtime.pair_tokenizer import encode_pairs
from poolgraph.runtime.pipeline import encode_windows
from poolgraph.runtime.texts import resolve_texts, resolve_truncation, warn_of_cuts
from poolgraph.runtime.tokenizer import EncodedText


class ClassifyTasks(LoadedModel):
    """Texts to the scores of labels, one row a text or one a token."""

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the columns of ``classify`` and ``token_classify``, empty where the checkpoint has none."""
        return self.manifest.labels

    def classify(
        self,
        texts: str | Sequence[str],
        text_pairs: str | Sequence[str] | None = None,
        *,
        use_activation: bool | None = None,
        truncate: bool = False,
        progress: bool = False,
    ) -> NDArray[np.float32]:
        """Score the labels of texts; ``model.labels[row.argmax()]`` names the likeliest.

        Args:
            texts: A text or several.
            text_pairs: The second text of each, for models of sentence pairs such as premise and hypothesis.
            use_activation: Apply the model's activation, as the softmax; None does as the model says.
            truncate: Cut longer texts to the model's limit, with one warning, instead of refusing them.
            progress: Show a progress bar.

        Returns:
            (num_texts, num_labels), one row a text, also for a lone one.

        Raises:
            TaskNotSupported: the model cannot classify.
            InputError: a text is not acceptable, or there are not as many second texts as first ones.
        """
        self.check_classify_options(use_activation=use_activation)
        resolved = resolve_texts(texts)
        seconds = None if text_pairs is None else resolve_texts(text_pairs)
        with progress_bar(len(resolved), shown=progress) as on_progress:
            answers, num_cut = self.classify_chunk(
                resolved,
                text_pairs=seconds,
                use_activation=use_activation,
                truncate=truncate,
                on_progress=on_progress,
            )
        warn_of_cuts(num_cut, len(resolved), self.manifest)
        return answers

    def classify_chunk(
        self,
        texts: Sequence[str],
        *,
        text_pairs: Sequence[str] | None = None,
        first_index: int = 0,
        use_activation: bool | None = None,
        truncate: bool = False,
        on_progress: Progress | None = None,
    ) -> tuple[NDArray[np.float32], int]:
        """Score the labels of a part of a longer list, without a warning.

        Args:
            texts: The part.
            text_pairs: The second text of each.
            first_index: Index in the whole list of its first text, for messages.
            use_activation: As for ``classify``.
            truncate: Cut longer texts.
            on_progress: Called with the number of texts that each finished batch adds.

        Returns:
            The rows (num_texts, num_labels), and how many texts were cut.
        """
        finish = self.check_classify_options(use_activation=use_activation)
        answers = np.empty((len(texts), self.manifest.pooler.embedding_size), dtype=np.float32)

        def take(first: int, window: Sequence[EncodedText], raw: NDArray[np.float32]) -> None:
            answers[first : first + len(window)] = finish_rows(raw, finish)

        windows = self._encode_first_and_second(texts, text_pairs, truncate=truncate, first_index=first_index)
        run = self._executor.run_sequence
        num_cut = self._run_windows(
            windows, run, take, num_items=len(texts), first_index=first_index, on_progress=on_progress
        )
        return answers, num_cut

    def _encode_first_and_second(
        self, texts: Sequence[str], text_pairs: Sequence[str] | None, *, truncate: bool, first_index: int
    ) -> Generator[tuple[int, Sequence[EncodedText]], None, None]:
        """Yield tokenized windows, of texts or of pairs."""
        if text_pairs is None:
            yield from self._encode_windows(texts, "", truncate=truncate, first_index=first_index)
            return
        if len(text_pairs) != len(texts):
            raise InputError(
                f"{len(texts)} texts have {len(text_pairs)} second texts; give one for each",
                parameter="text_pairs",
                value=len(text_pairs),
            )
        truncate_to = resolve_truncation(truncate)
        offset = first_index

        def encode(window: Sequence[tuple[str, str]], *, first_index: int) -> list[EncodedText]:
            return encode_pairs(self.tokenizer, window, truncate_to=truncate_to, first_index=offset + first_index)

        yield from encode_windows(list(zip(texts, text_pairs, strict=True)), encode, self.first_window)

    def check_classify_options(self, *, use_activation: bool | None = None) -> Finish:
        """Check options of ``classify`` that do not depend on the texts; return what is done to raw answers.

        Raises:
            TaskNotSupported: the model cannot classify.
            InputError: an option of a wrong type.
        """
        self.check_task("classify")
        return self._plan("classify", PoolingParams(use_activation=use_activation))

    def token_classify(
        self,
        texts: str | Sequence[str],
        *,
        use_activation: bool | None = None,
        truncate: bool = False,
        progress: bool = False,
    ) -> list[NDArray[np.float32]]:
        """Score the labels of every token of texts, or of their step tags where the model's pooler is STEP.

        The options and errors are those of ``classify``.

        Returns:
            One array (num_rows, num_labels) a text. Rows are all tokens, special ones included, or the step tags.
        """
        self.check_token_options(use_activation=use_activation)
        resolved = resolve_texts(texts)
        with progress_bar(len(resolved), shown=progress) as on_progress:
            answers, num_cut = self.token_classify_chunk(
                resolved, use_activation=use_activation, truncate=truncate, on_progress=on_progress
            )
        warn_of_cuts(num_cut, len(resolved), self.manifest)
        return answers

    def token_classify_chunk(
        self,
        texts: Sequence[str],
        *,
        first_index: int = 0,
        use_activation: bool | None = None,
        step_tag_id: int | None = None,
        returned_token_ids: Sequence[int] | None = None,
        truncate: bool = False,
        on_progress: Progress | None = None,
    ) -> tuple[list[NDArray[np.float32]], int]:
        """Score tokens of a part of a longer list, without a warning.

        Args:
            texts: The part.
            first_index: Index in the whole list of its first text, for messages.
            use_activation: As for ``token_classify``.
            step_tag_id: As for ``reward``.
            returned_token_ids: As for ``reward``.
            truncate: Cut longer texts.
            on_progress: Called with the number of texts that each finished batch adds.

        Returns:
            One array (num_rows, num_columns) a text, and how many texts were cut.
        """
        finish = self.check_token_options(
            use_activation=use_activation, step_tag_id=step_tag_id, returned_token_ids=returned_token_ids
        )
        answers: list[NDArray[np.float32]] = []

        def take(_first: int, window: Sequence[EncodedText], raw: Sequence[NDArray[np.float32]]) -> None:
            answers.extend(finish_tokens(rows, text, finish) for rows, text in zip(raw, window, strict=True))

        windows = self._encode_windows(texts, "", truncate=truncate, first_index=first_index)
        run = self._executor.run_token
        num_cut = self._run_windows(
            windows, run, take, num_items=len(texts), first_index=first_index, on_progress=on_progress
        )
        return answers, num_cut

    def check_token_options(
        self,
        *,
        use_activation: bool | None = None,
        step_tag_id: int | None = None,
        returned_token_ids: Sequence[int] | None = None,
    ) -> Finish:
        """Check options of token scores that do not depend on the texts; return what is done to raw answers.

        Raises:
            TaskNotSupported: the model does not score tokens.
            InputError: an option of a wrong type, or one that the model's pooler does not take.
        """
        self.check_task("token_classify")
        params = PoolingParams(
            use_activation=use_activation, step_tag_id=step_tag_id, returned_token_ids=returned_token_ids
        )
        return self._plan("token_classify", params)

    def _plan(self, task: str, params: PoolingParams) -> Finish:
        return plan_finish(params, task, manifest=self.manifest, model=self.manifest.source.model)
