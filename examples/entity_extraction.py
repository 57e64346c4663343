"""Named entities of texts, as spans with character offsets.

python examples/entity_extraction.py boltuix/NeuroBERT-NER "Ada Lovelace was born in London."
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from poolgraph import PoolingModel


def main(argv: Sequence[str] | None = None) -> None:
    """Print the entities of each text, the words of a span in brackets behind its label."""
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments:
        raise SystemExit(__doc__)
    model_name, *texts = arguments
    texts = texts or ["Ada Lovelace wrote to Charles Babbage from London."]
    with PoolingModel.load(model_name) as model:
        for text, entities in zip(texts, model.extract_entities(texts, aggregation_strategy="simple"), strict=True):
            print(text)
            for entity in entities:
                print(f"  {entity.label} [{text[entity.start : entity.end]}] {entity.score:.3f}")


if __name__ == "__main__":
    main()
