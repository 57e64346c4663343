"""Reward scoring: order the answers to a question by a reward model, as in best-of-n sampling.

    python examples/reward_scoring.py Skywork/Skywork-Reward-V2-Qwen3-0.6B

A process-reward model gives one row a step instead; the weakest step then counts.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np

from poolgraph import PoolingModel

QUESTION = "What is 12 times 12?"
ANSWERS = ("12 times 12 is 144.", "It is 124.", "Nobody knows.")


def grade(model: PoolingModel, texts: Sequence[str]) -> list[float]:
    """Return one number a text: the reward of the whole text, or of its weakest row."""
    rewards = model.reward(list(texts))
    if isinstance(rewards, np.ndarray):
        return [float(np.min(reward)) for reward in rewards]
    return [float(rows[:, -1].min()) if len(rows) else float("nan") for rows in rewards]


def main(argv: Sequence[str] | None = None) -> None:
    """Print the answers, the best first."""
    arguments = sys.argv[1:] if argv is None else argv
    if len(arguments) != 1:
        raise SystemExit(__doc__)
    (model_name,) = arguments
    with PoolingModel.load(model_name) as model:
        grades = grade(model, [f"{QUESTION}\n{answer}" for answer in ANSWERS])
    for position in np.argsort(-np.array(grades), kind="stable"):
        print(f"{grades[position]:8.3f}  {ANSWERS[position]}")


if __name__ == "__main__":
    main()
