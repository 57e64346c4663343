"""Late interaction (ColBERT): what a checkpoint's own files say of markers, lengths, expansion, skip list and head.

The rules are those of sentence-transformers' MultiVectorEncoder, which reads four kinds of checkpoints: its own,
PyLate's (options in ``config_sentence_transformers.json``), Stanford's (``artifact.metadata``, the projection beside
the backbone), and dense ones that are turned into one.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Final, Literal

import msgspec

from poolgraph.errors import ExportError
from poolgraph.export.checkpoint import Checkpoint, WeightFolder
from poolgraph.export.classifier_heads import IDENTITY
from poolgraph.export.head import HeadStep, StoredTensor, describe_modules
from poolgraph.export.head_activations import OVER_AN_AXIS, build_activation
from poolgraph.export.late_interaction_files import (
    CLASSIC_QUERY_LENGTH,
    Expansion,
    Knobs,
    Mask,
    Metadata,
    Settings,
    first_set,
)
from poolgraph.export.late_interaction_plan import LateInteractionPlan
from poolgraph.export.sentence_transformers import (
    HeadModule,
    SentenceTransformer,
    parse_sentence_transformers,
)
from poolgraph.export.transformer_options import find_transformer_file, read_form
from poolgraph.runtime.similarity import LATE_INTERACTION_FUNCTIONS
from poolgraph.tasks import SIDES

Layout = Literal["native", "pylate", "converted", "stanford", "projection"]

COLBERT_ARCHITECTURES: Final = frozenset(
    {"HF_ColBERT", "ColBERTModernBertModel", "ColBERTJinaRobertaModel", "ColBERTLfm2Model"}
)
"""Names in ``architectures`` that stand for a backbone with a token projection."""

STANFORD: Final = "HF_ColBERT"

MODEL_TYPES: Final[Mapping[str | None, Layout]] = MappingProxyType(
    {"ColBERT": "pylate", "MultiVectorEncoder": "native"}
)
"""``model_type`` of ``config_sentence_transformers.json``."""

PROJECTIONS: Final = ("linear.weight", "colbert_linear.weight")
"""Names of a projection that lies beside the backbone's tensors, without a bias."""

TOKENS: Final = "token_embeddings"
SENTENCE: Final = "sentence_embedding"
MASK: Final = "MultiVectorMask"
NORMALIZE: Final = HeadStep(kind="Normalize")

SIMILARITIES: Final = tuple(LATE_INTERACTION_FUNCTIONS)

PUNCTUATION: Final = tuple(string.punctuation)


def parse_late_interaction(
    checkpoint: Checkpoint, *, architectures: Sequence[str] | None = None
) -> LateInteractionPlan | None:
    """Read a checkpoint as sentence-transformers' MultiVectorEncoder does.

    Args:
        checkpoint: The checkpoint.
        architectures: ``architectures`` of the configuration, where a caller overrides it.

    Returns:
        None for a checkpoint that is none of late interaction.

    Raises:
        ExportError: options that cannot be compiled, or contradict each other, or no projection.
    """
    settings = read_form(checkpoint, "config_sentence_transformers.json", Settings) or Settings()
    layout = _choose_layout(checkpoint, settings, architectures)
    if layout is None:
        return None
    plan = _READERS[layout](checkpoint, settings)
    _check_expansion(plan)
    return plan


def _choose_layout(checkpoint: Checkpoint, settings: Settings, architectures: Sequence[str] | None) -> Layout | None:
    if architectures is None:
        architectures = (checkpoint.read_json("config.json") or {}).get("architectures") or ()
    named = bool(COLBERT_ARCHITECTURES & set(architectures))
    if not (checkpoint.folder / "modules.json").is_file():
        stanford = STANFORD in architectures or (checkpoint.folder / "artifact.metadata").is_file()
        return ("stanford" if stanford else "projection") if named else None
    if settings.model_type in MODEL_TYPES:
        return MODEL_TYPES[settings.model_type]
    if settings.model_type is None and STANFORD in architectures:
        return "native"
    return "converted" if named or settings.is_pylate else None


def _read_native(checkpoint: Checkpoint, settings: Settings) -> LateInteractionPlan:
    """Modules as they are listed: what is not there is not done."""
    sentence, masks = _parse_files(checkpoint)
    plan = _plan_files(checkpoint, settings, sentence, _token_modules(sentence.head), normalize=False)
    if plan.expansion is not None and not masks:
        raise ExportError(
            "the checkpoint expands queries, but modules.json has no MultiVectorMask, which would score the added "
            "tokens; add the module or remove query_expansion"
        )
    return _apply_masks(plan, masks)


def _read_pylate(checkpoint: Checkpoint, settings: Settings) -> LateInteractionPlan:
    """PyLate lists backbone and projection alone; skip list and normalization go without saying."""
    sentence, masks = _parse_files(checkpoint)
    plan = _plan_files(checkpoint, settings, sentence, _token_modules(sentence.head), normalize=True)
    return _apply_masks(replace(plan, skip_words=settings.skip_words(PUNCTUATION)), masks)


def _read_converted(checkpoint: Checkpoint, settings: Settings) -> LateInteractionPlan:
    """A dense model's modules without its pooling: a Dense takes token embeddings instead of the pooled one."""
    sentence, masks = _parse_files(checkpoint)
    plan = _plan_files(checkpoint, settings, sentence, _token_modules(sentence.head, redirect=True), normalize=True)
    if not any(step.kind == "Dense" for step in plan.head):
        raise ExportError("modules.json has no Dense module to project tokens with; a new one would be untrained")
    words = settings.skip_words(PUNCTUATION if settings.markers else ())
    return _apply_masks(replace(plan, skip_words=words), masks)


def _read_stanford(checkpoint: Checkpoint, _settings: Settings) -> LateInteractionPlan:
    metadata = read_form(checkpoint, "artifact.metadata", Metadata) or Metadata()
    prompts = {
        "query": f"{metadata.query_token_id or '[unused0]'} ",
        "document": f"{metadata.doc_token_id or '[unused1]'} ",
    }
    return LateInteractionPlan(
        sentence_transformer=SentenceTransformer(prompts=prompts, similarity_fn_name=SIMILARITIES[0]),
        head=_root_projection(checkpoint),
        document_length=metadata.doc_maxlen,
        expansion=Expansion(
            strategy="fixed",
            length=metadata.query_maxlen or CLASSIC_QUERY_LENGTH,
            attend=bool(metadata.attend_to_mask_tokens),
        ),
        skip_words=PUNCTUATION if metadata.mask_punctuation else (),
        markers=tuple(prompts.values()),
    )


def _read_projection(checkpoint: Checkpoint, _settings: Settings) -> LateInteractionPlan:
    """A backbone with a projection and no word on queries and documents: both are encoded plainly, as vLLM does."""
    sentence = SentenceTransformer(prompts=dict.fromkeys(SIDES, ""), similarity_fn_name=SIMILARITIES[0])
    return LateInteractionPlan(sentence_transformer=sentence, head=_root_projection(checkpoint))


_READERS: Final[Mapping[Layout, Callable[[Checkpoint, Settings], LateInteractionPlan]]] = MappingProxyType(
    {
        "native": _read_native,
        "pylate": _read_pylate,
        "converted": _read_converted,
        "stanford": _read_stanford,
        "projection": _read_projection,
    }
)


def _parse_files(checkpoint: Checkpoint) -> tuple[SentenceTransformer, list[HeadModule]]:
    """Return the sentence-transformers files and, of their modules, the masks."""
    sentence = parse_sentence_transformers(checkpoint, multi_vector=True)
    assert sentence is not None
    return sentence, [module for module in sentence.head if module.kind == MASK]


def _plan_files(
    checkpoint: Checkpoint,
    settings: Settings,
    sentence: SentenceTransformer,
    modules: Sequence[HeadModule],
    *,
    normalize: bool,
) -> LateInteractionPlan:
    """Join the Transformer module's own options, which win, with those of the whole model."""
    file = find_transformer_file(checkpoint, sentence.transformer_path)
    own, shared = (read_form(checkpoint, file, Knobs) if file else None) or Knobs(), settings.transformer_knobs()
    markers = settings.markers
    prompts = {name: _compose(markers.get(name, ""), prompt) for name, prompt in sentence.prompts.items()}
    named = settings.similarity_fn_name
    similarity = named if named in SIMILARITIES else SIMILARITIES[0]
    head = describe_modules(modules, checkpoint.folder)
    if normalize and (not head or head[-1].kind != NORMALIZE.kind):
        head = (*head, NORMALIZE)
    return LateInteractionPlan(
        sentence_transformer=replace(
            sentence, head=(), pooling=(), include_prompt=True, prompts=prompts, similarity_fn_name=similarity
        ),
        head=head,
        query_length=first_set(own.query_length, shared.query_length),
        document_length=first_set(own.document_length, shared.document_length),
        expansion=first_set(own.query_expansion, shared.query_expansion),
        markers=tuple(markers.values()),
    )


def _compose(prefix: str, prompt: str) -> str:
    return prefix + prompt.removeprefix(prefix)


def _token_modules(modules: Sequence[HeadModule], *, redirect: bool = False) -> list[HeadModule]:
    """Return the modules that change token embeddings; ``redirect`` takes a Dense of pooled vectors as one of them.

    Raises:
        ExportError: a Dense that works on something else.
    """
    known = (None, TOKENS, SENTENCE) if redirect else (None, TOKENS)
    taken = []
    for module in modules:
        source, target = module.features
        if module.kind == MASK or (module.kind == NORMALIZE.kind and (source or SENTENCE) != TOKENS):
            continue
        if source not in known or target not in known:
            raise ExportError(
                f"module {module.kind} at {module.path!r} reads {source!r} and writes {target!r}; of a "
                f"late-interaction checkpoint, only {TOKENS!r} can be compiled"
            )
        _check_axis(module)
        taken.append(module)
    return taken


def _check_axis(module: HeadModule) -> None:
    name = module.config.get("activation_function")
    if module.kind == "Dense" and isinstance(build_activation(name), OVER_AN_AXIS):
        raise ExportError(
            f"module Dense at {module.path!r} has the activation {name}, whose axis no file names: of token embeddings "
            "torch takes that of the batch, so that an answer depends on other texts; it cannot be compiled"
        )


def _apply_masks(plan: LateInteractionPlan, masks: Sequence[HeadModule]) -> LateInteractionPlan:
    """Take over the skip list of a MultiVectorMask, where modules.json has one."""
    if not masks:
        return plan
    if len(masks) > 1:
        raise ExportError(f"modules.json has {len(masks)} MultiVectorMask modules; one can be compiled")
    mask = _read_mask(masks[0])
    tasks = mask.skiplist_tasks
    sides = (tasks,) if isinstance(tasks, str) else ("document",) if tasks is None else tuple(tasks)
    skip_in = tuple(side for side in SIDES if side in sides)
    return replace(plan, skip_words=tuple(mask.skiplist_words or ()), skip_in=skip_in)


def _read_mask(module: HeadModule) -> Mask:
    try:
        mask = msgspec.convert(dict(module.config), Mask)
    except msgspec.ValidationError as error:
        raise ExportError(
            f"the configuration of {MASK} at {module.path!r} is not what it should be: {error}"
        ) from error
    if mask.keep_only_token_ids:
        raise ExportError(
            f"{MASK} at {module.path!r} keeps only the tokens {mask.keep_only_token_ids}, which is for images; remove "
            "keep_only_token_ids to export the model for texts"
        )
    return mask


def _root_projection(checkpoint: Checkpoint) -> tuple[HeadStep, ...]:
    """Return the projection beside the backbone, or in ``1_Dense``, and the normalization.

    Raises:
        ExportError: there is neither.
    """
    weights = WeightFolder(checkpoint.folder)
    name = next((name for name in PROJECTIONS if name in weights.names), None)
    if name is not None:
        size, width = weights.shape(name)
        config = {"in_features": width, "out_features": size, "bias": False, "activation_function": IDENTITY}
        stored = StoredTensor(folder=checkpoint.folder, name=name)
        return (HeadStep(kind="Dense", config=config, tensors={"linear.weight": stored}), NORMALIZE)
    dense = checkpoint.read_json("1_Dense/config.json")
    if dense is None:
        raise ExportError(
            f"the checkpoint has no token projection: neither a tensor {' or '.join(PROJECTIONS)} nor a folder 1_Dense"
        )
    return (*describe_modules([HeadModule(kind="Dense", path="1_Dense", config=dense)], checkpoint.folder), NORMALIZE)


def _check_expansion(plan: LateInteractionPlan) -> None:
    expansion = plan.expansion
    if expansion is None:
        return
    if expansion.length < 1:
        raise ExportError(f"the checkpoint expands queries to {expansion.length} tokens; it must be at least 1")
    if plan.query_length is not None and plan.query_length < expansion.length:
        raise ExportError(
            f"the checkpoint cuts queries to {plan.query_length} tokens and expands them to {expansion.length}; "
            "query_length must not be the smaller one"
        )
