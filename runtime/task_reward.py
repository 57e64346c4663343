"""The task ``reward`` of a loaded model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from poolgraph.config import PoolingParams
from poolgraph.errors import TaskNotSupported
from poolgraph.runtime.executor import Progress
from poolgraph.runtime.loaded import progress_bar
from poolgraph.runtime.task_classify import ClassifyTasks
from poolgraph.runtime.texts import resolve_texts, warn_of_cuts

Rewards: TypeAlias = NDArray[np.float32] | list[NDArray[np.float32]]
"""One array for whole texts, or one a text for tokens and steps."""


class RewardTasks(ClassifyTasks):
    """Texts to rewards."""

    def reward(
        self,
        texts: str | Sequence[str],
        *,
        use_activation: bool | None = None,
        step_tag_id: int | None = None,
        returned_token_ids: Sequence[int] | None = None,
        truncate: bool = False,
        progress: bool = False,
    ) -> Rewards:
        """Score texts with a reward model: whole texts, all their tokens, or their steps.

        Args:
            texts: A text or several.
            use_activation: As for ``classify``.
            step_tag_id: Token whose rows are returned, of STEP poolers; None does as the model says.
            returned_token_ids: Columns that are returned, of STEP poolers; None does as the model says.
            truncate: Cut longer texts to the model's limit, with one warning, instead of refusing them.
            progress: Show a progress bar.

        Returns:
            A model that scores whole texts: (num_texts,), or (num_texts, num_labels) where it has several labels. One
            that scores tokens or steps: an array (num_rows, num_columns) a text.

        Raises:
            TaskNotSupported: the model gives no rewards.
            InputError: a text is not acceptable, or an option that the model's pooler does not take.
        """
        self.check_reward_options(
            use_activation=use_activation, step_tag_id=step_tag_id, returned_token_ids=returned_token_ids
        )
        resolved = resolve_texts(texts)
        with progress_bar(len(resolved), shown=progress) as on_progress:
            answers, num_cut = self.reward_chunk(
                resolved,
                use_activation=use_activation,
                step_tag_id=step_tag_id,
                returned_token_ids=returned_token_ids,
                truncate=truncate,
                on_progress=on_progress,
            )
        warn_of_cuts(num_cut, len(resolved), self.manifest)
        return answers

    def reward_chunk(
        self,
        texts: Sequence[str],
        *,
        first_index: int = 0,
        use_activation: bool | None = None,
        step_tag_id: int | None = None,
        returned_token_ids: Sequence[int] | None = None,
        truncate: bool = False,
        on_progress: Progress | None = None,
    ) -> tuple[Rewards, int]:
        """Score a part of a longer list, without a warning; the options are those of ``reward``.

        Args:
            texts: The part.
            first_index: Index in the whole list of its first text, for messages.
            use_activation: As for ``reward``, like the next three.
            step_tag_id: Token whose rows are returned.
            returned_token_ids: Columns that are returned.
            truncate: Cut longer texts.
            on_progress: Called with the number of texts that each finished batch adds.

        Returns:
            What ``reward`` returns, and how many texts were cut.
        """
        self.check_reward_options(
            use_activation=use_activation, step_tag_id=step_tag_id, returned_token_ids=returned_token_ids
        )
        if not self.rewards_whole_texts:
            return self.token_classify_chunk(
                texts,
                first_index=first_index,
                use_activation=use_activation,
                step_tag_id=step_tag_id,
                returned_token_ids=returned_token_ids,
                truncate=truncate,
                on_progress=on_progress,
            )
        rows, num_cut = self.classify_chunk(
            texts, first_index=first_index, use_activation=use_activation, truncate=truncate, on_progress=on_progress
        )
        return (rows[:, 0] if rows.shape[1] == 1 else rows), num_cut

    @property
    def rewards_whole_texts(self) -> bool:
        """Whether ``reward`` scores whole texts; else it scores tokens or steps."""
        return "classify" in self.manifest.tasks

    def check_reward_options(
        self,
        *,
        use_activation: bool | None = None,
        step_tag_id: int | None = None,
        returned_token_ids: Sequence[int] | None = None,
    ) -> None:
        """Check options of ``reward`` that do not depend on the texts.

        Raises:
            TaskNotSupported: the model gives no rewards.
            InputError: an option of a wrong type, or one that the model's pooler does not take.
        """
        tasks = self.manifest.tasks
        task = "classify" if self.rewards_whole_texts else "token_classify"
        if task not in tasks:
            raise TaskNotSupported(
                f"{self.manifest.source.model!r} gives no rewards: that takes the task classify or token_classify, and "
                f"the artifact's tasks are {list(tasks)}"
            )
        self.check_task(task)
        params = PoolingParams(
            use_activation=use_activation, step_tag_id=step_tag_id, returned_token_ids=returned_token_ids
        )
        self._plan(task, params)
