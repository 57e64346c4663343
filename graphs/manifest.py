"""The manifest ``poolgraph.json``: all that the runtime needs to know about an artifact, read and written strictly."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec

from poolgraph.errors import ManifestError

FORMAT_VERSION: Final = 5
"""Version written. 1 (2026-11): embeddings. 2 (2026-11): every pooling task: activation, steps, scoring.
3 (2026-11): int8: quantization, fidelity. 4 (2026-11): fp16: float_range.
5 (2026-12): sparse embeddings, static_query; pairs as messages of a chat template."""

OLDEST_READABLE: Final = 1

MANIFEST_FILE: Final = "poolgraph.json"

NATIVE_OPERATORS: Final = "poolgraph.cpu/6"
"""This package's own operators for the CPU and the version of their meaning, which ``runtime/kernels.cpp`` computes."""

CUDA_OPERATORS: Final = "poolgraph.cuda/1"
"""The same for CUDA: ``runtime/kernels_cuda.cpp``."""

UNREADABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What decoding raises for bytes that are no JSON, or JSON of another shape."""


Positive = Annotated[int, msgspec.Meta(gt=0)]


class _Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A frozen part of the manifest; unknown keys are refused."""


class Tensor(_Record, frozen=True, kw_only=True):
    """An input or output of a graph; ``shape`` mixes integers and symbolic axis names."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


class Graph(_Record, frozen=True, kw_only=True):
    """One ONNX file: ``raw_output`` is the value before normalization or activation, ``output`` the finished one."""

    file: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    raw_output: str
    output: str | None = None


class Rewrites(_Record, frozen=True, kw_only=True):
    """How many rewrites one lowering pass made in one graph."""

    name: str
    rewrites: int


class Quantization(_Record, frozen=True, kw_only=True):
    """How a variant is quantized: the numbers of its products (merged ones count once) by scheme, and its tables.

    ``static`` activations have one scale from calibration, ``token`` ones a scale a token, on native operators with a
    zero point of its own, those of ``weights`` are float32. ``float32`` names the products that are not quantized,
    ``routers`` those that choose experts, which never are: the one part of a record of bf16.
    ``tables`` names the tables of embeddings in 8 bits, ``float32_tables`` those that would have cost too much
    fidelity. Cosines are those of held-out calibration texts.
    """

    static: int = 0
    token: int = 0
    weights: int = 0
    smoothed: int = 0
    float32: tuple[str, ...] = ()
    routers: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()
    float32_tables: tuple[str, ...] = ()
    calibration: str = ""
    mean_cosine: float | None = None
    min_cosine: float | None = None


class FloatRange(_Record, frozen=True, kw_only=True):
    """The range of a backbone's activations in fp16.

    Attributes:
        largest: Largest absolute number seen on the calibration texts, in float32.
        float32: Values that are computed in float32 because they would leave the range.
        calibration: The texts.
    """

    largest: float
    float32: tuple[str, ...] = ()
    calibration: str = ""


class Variant(_Record, frozen=True, kw_only=True):
    """The model lowered for one target in one precision.

    ``layout`` says what a batch looks like: ``padded`` (batch_size, sequence_length) with an attention mask,
    ``uniform`` the same without any padding or mask, ``packed`` (num_tokens,) with cumulative lengths. ``operators``
    names the library of operators that its graphs need beside ONNX Runtime's own, with its version.
    """

    name: str
    target: str
    precision: str
    layout: str
    providers: tuple[str, ...]
    graphs: dict[str, Graph]
    cpu_features: tuple[str, ...] = ()
    operators: str | None = None
    session_options: dict[str, str] = {}
    passes: tuple[Rewrites, ...] = ()
    quantization: Quantization | None = None
    float_range: FloatRange | None = None
    verified: bool = False


class Source(_Record, frozen=True, kw_only=True):
    """Where the artifact comes from; ``content_hash`` covers the checkpoint's files and names no folder."""

    model: str
    revision: str | None
    content_hash: str


class TokenWeights(_Record, frozen=True, kw_only=True):
    """The special tokens of a model that weighs words (BGE-M3).

    Attributes:
        first_token_id: At the start of a text, without an embedding and a weight in the answers.
        last_token_id: At the end of a text, without a weight in the answers.
        skip_token_ids: Tokens that are no words.
    """

    first_token_id: int
    last_token_id: int
    skip_token_ids: tuple[int, ...]


class Pooler(_Record, frozen=True, kw_only=True):
    """What the graph's head computes and what the runtime may do with its raw value.

    Attributes:
        pooling: Sentence-transformers' pooling modes, concatenated in this order; empty without a sequence graph.
        include_prompt: False when the prompt's tokens are left out of the pooling.
        normalize: True when the finished value is the raw one divided by its L2 norm.
        normalize_kept: Of sparse embeddings, whether that norm is of the weights that are kept: behind a sparse
            auto-encoder, and for callers who ask for it; a SPLADE's own is of all.
        embedding_size: Width of the sequence family's answer, a classifier's number of labels; without a sequence
            graph the token family's.
        token_embedding_size: Width of the token family's answer, None without a token graph.
        is_matryoshka: Whether embeddings may be shortened at all.
        matryoshka_dimensions: Allowed widths of a shortened embedding; empty when every width is.
        sparse: Whether embeddings are weights, most of them 0, of the vocabulary's words or of learned features.
        token_weights: Where a token's raw row ends, behind its embedding, with the weight of its word: which tokens
            take part. The task token_classify answers the weights. None for other models.
        max_active_dims: Of sparse embeddings, the most weights that are kept unless a request says otherwise; None for
            all.
        activation: A key of ``runtime.activations.ACTIVATIONS`` that turns logits into the finished value; None for
            embeddings.
        use_activation: Whether a request that does not say gets the activation (classifiers).
        logit_mean: Subtracted from the logits, inside the graph.
        logit_sigma: The logits are divided by it, inside the graph.
        tok_pooling_type: ``ALL`` rows, or with ``STEP`` only those of ``step_tag_id``.
        step_tag_id: Token whose rows a STEP pooler returns, unless a request names another.
        returned_token_ids: Columns that a STEP pooler returns, unless a request names others; empty for all.
        column_token_ids: Vocabulary ids of the columns of a head cut out of a language-model head, in their order;
            ``returned_token_ids`` are then looked up here. Empty when columns are counted from 0.
    """

    pooling: tuple[str, ...]
    include_prompt: bool = True
    normalize: bool = False
    normalize_kept: bool = False
    embedding_size: Positive
    token_embedding_size: Positive | None = None
    is_matryoshka: bool = False
    matryoshka_dimensions: tuple[int, ...] = ()
    sparse: bool = False
    token_weights: TokenWeights | None = None
    max_active_dims: Positive | None = None
    activation: str | None = None
    use_activation: bool = True
    logit_mean: float | None = None
    logit_sigma: float | None = None
    tok_pooling_type: Literal["ALL", "STEP"] = "ALL"
    step_tag_id: int | None = None
    returned_token_ids: tuple[int, ...] = ()
    column_token_ids: tuple[int, ...] = ()


class Scoring(_Record, frozen=True, kw_only=True):
    """How the artifact scores a query against a document.

    Attributes:
        kind: ``cross_encoder`` (both texts in one run), ``bi_encoder`` (cosine of embeddings) or ``late_interaction``
            (MaxSim of token embeddings).
        template: File of the score template that a cross-encoder's texts are put into; None encodes them as a pair of
            sequences.
        template_kwargs: Variables of that template, which a request's own go before.
        content_parts: Whether the template gets a message's content as a list of parts; None where that is found out by
            trying both.
        add_special_tokens: Whether the tokenizer adds its special tokens around the text that the template makes.
    """

    kind: Literal["cross_encoder", "bi_encoder", "late_interaction"]
    template: str | None = None
    template_kwargs: dict[str, Any] = {}
    content_parts: bool | None = None
    add_special_tokens: bool = True


class QueryExpansion(_Record, frozen=True, kw_only=True):
    """How queries of a ColBERT model are filled up, as sentence-transformers' QueryExpansionConfig defines it.

    Attributes:
        strategy: ``fixed`` (every query has exactly ``length`` tokens) or another of sentence-transformers' names.
        token_id: The token that is put at the end, usually [MASK].
        length: Tokens of an expanded query, in all.
        attend: Whether other tokens attend to the added ones.
    """

    strategy: str
    token_id: int
    length: Positive
    attend: bool = False


class LateInteraction(_Record, frozen=True, kw_only=True):
    """How queries and documents of a late-interaction model are encoded; their markers are prompts.

    Attributes:
        query_length: Longest query in tokens, markers included; None for the model's limit.
        document_length: Longest document in tokens, markers included; None for the model's limit.
        query_expansion: How queries are filled up; None leaves them as they are.
        skip_token_ids: Tokens whose vectors take no part in the score, such as punctuation.
        skip_in: Sides that the skip list holds for.
    """

    query_length: Positive | None = None
    document_length: Positive | None = None
    query_expansion: QueryExpansion | None = None
    skip_token_ids: tuple[int, ...] = ()
    skip_in: tuple[Literal["query", "document"], ...] = ("document",)


class StaticQuery(_Record, frozen=True, kw_only=True):
    """How queries of an inference-free SPLADE are weighed: by a table, tokenized without special tokens.

    Attributes:
        file: A .npy file of float32, a weight a token id.
        max_tokens: Longest query in tokens; None where it may have any length.
        default_route: What texts are of which a request does not say it; None refuses them.
    """

    file: str
    max_tokens: Positive | None = None
    default_route: Literal["query", "document"] | None = None


class Limits(_Record, frozen=True, kw_only=True):
    """``max_model_len`` in tokens, special tokens included; token ids run below ``vocab_size``."""

    max_model_len: Positive
    vocab_size: Positive


class Tokenization(_Record, frozen=True, kw_only=True):
    """What the tokenizer files do not say in one place."""

    pad_token_id: int
    padding_side: str = "right"
    truncation_side: str = "right"
    do_lower_case: bool = False
    needs_token_type_ids: bool = False


class CheckRow(_Record, frozen=True, kw_only=True):
    """One line of the verification report: a graph compared with the reference over ``num_texts`` texts."""

    variant: str
    family: str
    check: str
    num_texts: int
    min_cosine: float
    max_difference: float
    required_cosine: float
    allowed_difference: float
    passed: bool


class FidelityRow(_Record, frozen=True, kw_only=True):
    """One measure of one variant against the reference.

    ``reference_value`` is the reference's own, of measures that each side has; else ``value`` says how far they agree.
    None is a value that is not defined, such as a rank correlation where all values are equal.
    """

    variant: str
    measure: str
    value: float | None
    reference_value: float | None = None


class Fidelity(_Record, frozen=True, kw_only=True):
    """Variants of lower precision against ``reference``, a float32 variant or the original model, over a corpus."""

    reference: str
    corpus: str
    num_queries: int
    num_documents: int
    num_truncated: int = 0
    rows: tuple[FidelityRow, ...] = ()


class Report(_Record, frozen=True, kw_only=True):
    """The outcome of verification; ``reference`` names the implementation compared with."""

    reference: str
    rows: tuple[CheckRow, ...] = ()
    versions: dict[str, str] = {}
    cpu: str = ""
    fidelity: Fidelity | None = None


class FileRecord(_Record, frozen=True, kw_only=True):
    """Size in bytes and SHA-256 (hexadecimal) of one file of the artifact."""

    size: int
    sha256: str


class Manifest(_Record, frozen=True, kw_only=True):
    """Everything about an artifact; see docs/artifact_format.md."""

    format_version: int = FORMAT_VERSION
    poolgraph_version: str
    created: str
    source: Source
    architecture: str
    tasks: tuple[str, ...]
    default_task: str | None
    pooler: Pooler
    limits: Limits
    tokenization: Tokenization
    prompts: dict[str, str] = {}
    default_prompt_name: str | None = None
    similarity_fn_name: str = "cosine"
    labels: tuple[str, ...] = ()
    scoring: Scoring | None = None
    late_interaction: LateInteraction | None = None
    static_query: StaticQuery | None = None
    options: dict[str, str] = {}
    variants: tuple[Variant, ...]
    report: Report
    files: dict[str, FileRecord]

    def variant(self, name: str) -> Variant:
        """Return the variant called ``name``; raise ManifestError naming those there are."""
        for variant in self.variants:
            if variant.name == name:
                return variant
        raise ManifestError(f"no variant {name!r}; this artifact has {[v.name for v in self.variants]}")


def parse_manifest(data: bytes) -> Manifest:
    """Decode the bytes of ``poolgraph.json``.

    Raises:
        ManifestError: not JSON, a format version outside the readable window, unknown or missing keys, wrong types.
    """
    try:
        version = msgspec.json.decode(data, type=dict[str, msgspec.Raw]).get("format_version")
        number = msgspec.json.decode(version, type=int) if version is not None else None
    except UNREADABLE as error:
        raise ManifestError(f"{MANIFEST_FILE} is not a manifest: {error}") from error
    if number is None or not OLDEST_READABLE <= number <= FORMAT_VERSION:
        raise ManifestError(
            f"manifest format_version is {number}; this poolgraph reads {OLDEST_READABLE}..{FORMAT_VERSION}. "
            "Export the checkpoint again, or install the poolgraph that wrote it."
        )
    try:
        return msgspec.json.decode(data, type=Manifest)
    except UNREADABLE as error:
        raise ManifestError(f"{MANIFEST_FILE} is not valid: {error}") from error


def encode_manifest(manifest: Manifest) -> bytes:
    """Encode a manifest as indented JSON with a final newline.

    Raises:
        ManifestError: what was encoded could not be read again, as a number that JSON has no form for.
    """
    data = msgspec.json.format(msgspec.json.encode(manifest, order="sorted"), indent=2) + b"\n"
    parse_manifest(data)
    return data
