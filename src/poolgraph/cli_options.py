"""The arguments of the commands over files: inputs, options that change the answers, loading."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from poolgraph.cli_command import Argument, parse_count, parse_integers
from poolgraph.tasks import SIDES

ENCODE_TASKS: Final = ("embed", "classify", "token_embed", "token_classify", "reward")
STRATEGIES: Final = ("none", "simple", "first", "average", "max")

FORMATS: Final = ("txt", "jsonl", "csv", "parquet")

MODEL: Final = Argument("model", metavar="MODEL", help="an artifact, a checkpoint folder or a hub id")
FORMAT: Final = Argument("--format", choices=FORMATS, help="read INPUT so, whatever its suffix")
LOADING: Final = (
    Argument("--provider", help="cpu, cuda or tensorrt (default: cuda where it loads, else cpu)"),
    Argument("--precision", metavar="P", help="fp32, ... (default: the artifact's first that runs here)"),
    Argument("--threads", metavar="N", type=int, help="threads of one run (default: chosen for this machine)"),
    Argument("--variant", metavar="NAME", help="one of the artifact's variants, as poolgraph inspect lists them"),
    Argument(
        "--fallback",
        action="store_const",
        const=True,
        help="take another provider, with a warning, where the one asked for does not load",
    ),
    Argument(
        "--allow-unverified",
        action="store_const",
        const=True,
        help="run a variant that verification never passed, as one for a GPU that the export had none for",
    ),
)
"""How a model is loaded."""

OPTIONS: Final[Mapping[str, Argument]] = {
    "prompt_name": Argument(
        "--prompt-name", metavar="NAME", help="put the artifact's prompt of this name before each text or pair"
    ),
    "prompt": Argument("--prompt", metavar="TEXT", help="put this before each text or pair"),
    "dimensions": Argument(
        "--dimensions", metavar="N", type=int, help="shorten the embeddings, for models trained for that"
    ),
    "max_active_dims": Argument(
        "--max-active-dims", metavar="N", type=parse_count, help="with --sparse, keep the N largest weights"
    ),
    "side": Argument(
        "--side",
        choices=SIDES,
        help="what the texts are, for models that encode each differently (ColBERT with encode, inference-free SPLADE)",
    ),
    "normalize": Argument(
        "--no-normalize", dest="normalize", action="store_const", const=False, help="leave out the normalization"
    ),
    "use_activation": Argument(
        "--no-activation",
        dest="use_activation",
        action="store_const",
        const=False,
        help="leave out the activation of scores and the normalization of embeddings",
    ),
    "instruction": Argument(
        "--instruction", metavar="TEXT", help="what is asked of the model, for score templates that have a place for it"
    ),
    "template": Argument(
        "--score-template",
        dest="template",
        metavar="NAME|FILE",
        help="the prompt of the pair: a template of poolgraph's or a file (default: the artifact's)",
    ),
    "max_tokens_per_query": Argument(
        "--max-tokens-per-query", metavar="N", type=int, help="cut each query to so many tokens"
    ),
    "max_tokens_per_doc": Argument(
        "--max-tokens-per-doc", metavar="N", type=int, help="cut each document to so many tokens"
    ),
    "top_n": Argument("--top-n", metavar="N", type=parse_count, help="keep the N best documents"),
    "omit_texts": Argument("--no-text", dest="omit_texts", action="store_true", help="answer with indices alone"),
    "plain": Argument(
        "--plain",
        action="store_true",
        help="score late-interaction models as vLLM does: every token as it is, with no marker, expansion or skip list",
    ),
    "step_tag_id": Argument(
        "--step-tag-id", metavar="ID", type=int, help="reward the tokens with this id (process reward models)"
    ),
    "returned_token_ids": Argument(
        "--returned-token-ids",
        metavar="ID[,ID]",
        type=parse_integers,
        help="columns of the answer (process reward models)",
    ),
    "truncate": Argument(
        "--truncate", action="store_true", help="cut texts that are too long instead of refusing them"
    ),
    "aggregation_strategy": Argument(
        "--entities",
        dest="aggregation_strategy",
        metavar="STRATEGY",
        nargs="?",
        const="simple",
        choices=STRATEGIES,
        help=f"answer with labelled spans of the texts: {', '.join(STRATEGIES)} (default: simple)",
    ),
    "stride": Argument(
        "--stride",
        metavar="N",
        type=parse_count,
        help="with --entities, read long texts in windows that share N tokens",
    ),
}
"""The options that change the answers, by the keyword of the model's method."""

PROMPT: Final = ("prompt_name", "prompt", "dimensions")
SCORING: Final = (
    "prompt_name",
    "prompt",
    "instruction",
    "template",
    "use_activation",
    "max_tokens_per_query",
    "max_tokens_per_doc",
    "plain",
    "truncate",
)
STEPS: Final = ("step_tag_id", "returned_token_ids")


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """A kind of input.

    Attributes:
        item: What one of its items is called.
        items: What several are called.
        help: What INPUT may be.
        fields: Per option that names a field: the field's name unless told, and whether it holds a list of texts.
        arguments: Further arguments that say how it is read.
    """

    item: str
    items: str
    help: str
    fields: Mapping[str, tuple[str, bool]]
    arguments: tuple[Argument, ...] = ()

    def all_arguments(self) -> tuple[Argument, ...]:
        """Return the arguments that say where the input is and how it is read."""
        fields = (
            Argument(option, metavar="NAME", help=f'the field with the {default} in INPUT (default: "{default}")')
            for option, (default, _) in self.fields.items()
        )
        return (Argument("input", metavar="INPUT", help=self.help), *self.arguments, *fields, FORMAT)


TEXTS: Final = Input(
    item="text",
    items="texts",
    help="a .txt (a text a line), .jsonl, .csv or .parquet file, or - for standard input",
    fields={"--field": ("text", False)},
)
PAIRS: Final = Input(
    item="pair",
    items="pairs",
    help="a .jsonl, .csv or .parquet file with a query and a document a row, or - for standard input",
    fields={"--query-field": ("query", False), "--document-field": ("document", False)},
)
RANKINGS: Final = Input(
    item="query",
    items="queries",
    help="a .jsonl or .parquet file with a query and a list of documents a row, or - for standard input; "
    "with --query, the documents: a .txt (a document a line), .jsonl, .csv or .parquet file, or -",
    fields={"--query-field": ("query", False), "--document-field": ("documents", True)},
    arguments=(Argument("--query", metavar="TEXT", help="rank the documents of INPUT for this query"),),
)
