"""A served model over the tiny artifact, in the test's own event loop."""

import random
import threading
from itertools import count

import numpy as np
from fake_batches import Recorder

from poolgraph.runtime.model_arguments import ModelArguments
from poolgraph.runtime.prompts import parse_prompts
from poolgraph.runtime.requests import read_options
from poolgraph.serving.engine_settings import EngineSettings
from poolgraph.serving.registry import open_registry
from poolgraph.serving.urgency import Urgency

IDS = count()


class Server:
    """One served model, closed with the test."""

    def __init__(self, artifact, *, grace=5.0, arguments=(), **settings):
        self.observer, self.grace, self.batches = Recorder(), grace, []
        settings = EngineSettings(**{"warm_up_seconds": 0.2} | settings)
        self.registry = open_registry([ModelArguments(model=artifact, **dict(arguments))], settings, self.observer)
        self.model = self.registry.find(None)

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        await self.registry.close(self.grace)

    @property
    def num_ran(self):
        """Texts that ran; told after their answers were handed over."""
        return sum(event[0] for event in self.observer.of("ran"))

    def work(self, prompts, task="embed", params=None, **kwargs):
        options = read_options(
            pooling_params=params,
            use_tqdm=False,
            lora_request=None,
            tokenization_kwargs=kwargs or None,
            truncate_prompt_tokens=None,
        )
        return lambda: self.model.runner.answer_prompts(parse_prompts(prompts), task, options, IDS)

    async def ask(self, prompts, *args, urgency=Urgency(), num_chars=10, **kwargs):  # noqa: B008 - frozen
        return await self.model.answer(self.work(prompts, *args, **kwargs), urgency, num_chars=num_chars)

    def hold(self, monkeypatch):
        """Keep batches from ending until the event that is returned is set, and list them in ``batches``."""
        gate, real = threading.Event(), self.model.runner.model.run_batch

        def run_batch(texts, *args, **kwargs):
            self.batches.append([text.input_ids.tolist() for text in texts])
            assert gate.wait(10)
            return real(texts, *args, **kwargs)

        monkeypatch.setattr(self.model.runner.model, "run_batch", run_batch)
        return gate


def vectors(outputs):
    return np.stack([output.outputs.data for output in outputs])


def make_texts(number, seed=0, longest=14):
    rng = random.Random(seed)
    return [" ".join(f"w{rng.randrange(60)}" for _ in range(rng.randint(1, longest))) for _ in range(number)]
