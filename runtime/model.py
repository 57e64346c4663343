"""The fast surface: texts in, numpy arrays out."""

from __future__ import annotations

from poolgraph.runtime.sentence_names import SentenceNames
from poolgraph.runtime.task_entities import EntityTasks
from poolgraph.runtime.task_reward import RewardTasks
from poolgraph.runtime.task_score import ScoreTasks
from poolgraph.runtime.task_sparse import SparseTasks


class PoolingModel(SentenceNames, SparseTasks, ScoreTasks, RewardTasks, EntityTasks):
    """A compiled pooling model, ready to answer; safe to use from several threads.

    Build one with ``PoolingModel.load``. Each task is a method: results are in input order, and on the CPU a text's
    answer has the same bits alone and beside any other texts. On a GPU the kernels, and so the last bits, depend on the
    bucket that a text runs in.

    Attributes:
        path: The artifact's directory.
        manifest: Its manifest.
        variant: The variant that runs.
        provider: Full name of the execution provider that runs it.
        tokenizer: The artifact's tokenizer.
    """
