"""The workspace's catalogue as a run uses it: embeddings that are there are not encoded again, takes are indexed.

Reuse must not change a bit. So a stored embedding stands for a prompt only if it was made by the same encoder (weights,
tokenizer, dtype) in the same environment (device, torch, transformers, on a CPU its threads).

The catalogue never stops a run: takes are the truth and it is their index. What is wrong with it is told once, and the
run goes on without it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wanscope import events
from wanscope.catalog.catalog import Catalog, New
from wanscope.edit.named_files import Find, CatalogEmbedding
from wanscope.errors import EmbeddingNotFound, WanscopeError
from wanscope.recipe import Recipe
from wanscope.wan.variants import VARIANTS
from wanscope.workspace import Workspace

if TYPE_CHECKING:
    from torch import Tensor

    from wanscope.wan.model import WanModel

WAIT_SECONDS = 30.0
CUSTOM = "custom"  # models that are no known variant: a folder's name would tell of a person in an export


class RunCatalog:
    """What one run reads from the catalogue and writes to it."""

    def __init__(self, space: Workspace, on_event: events.Listener) -> None:
        self.catalog = Catalog(space, wait_seconds=WAIT_SECONDS)
        self.emit = on_event
        self.usable = True

    def recall(self, texts: Sequence[str], recipe: Recipe, model: WanModel | None, device: str) -> dict[str, Tensor]:
        """The stored embeddings of `texts`, [L, D] in the encoder's dtype on the CPU, by text."""
        if not self.catalog.exists:
            return {}
        encoder = encoder_of(recipe, model)
        found = self._tried({}, lambda: self.catalog.stored(texts, encoder, environments(model, device)))
        return {text: embedding.tensor() for text, embedding in found.items()}

    def embedding(self, key: str) -> Tensor:
        """A stored embedding that an edit names, [L, D], counted as used. EmbeddingNotFound or CatalogDamaged."""
        return self.catalog.get(key).tensor()

    def keep(self, encoded: Mapping[str, Tensor], recipe: Recipe, model: WanModel, seconds: float) -> None:
        """Store what was encoded just now; `seconds` for all of it."""
        if not encoded:
            return
        about = {
            "model": next((n for n in (recipe.model.name, recipe.model.variant) if n in VARIANTS), CUSTOM),
            "encoder": encoder_of(recipe, model),
            "environment": environment(str(model.device), str(next(model.encoder().parameters()).device)),
            "source": "generate",
            "seconds": seconds / len(encoded),
        }
        new = [New(value, prompt=text, **about) for text, value in encoded.items()]
        self._tried([], lambda: self.catalog.put_many(new))

    def index(self, folders: Iterable[Path]) -> None:
        """Index takes that are finished."""
        from wanscope.catalog import takes

        self._tried(None, lambda: takes.add_takes(self.catalog.db, self.catalog.workspace, folders))

    def close(self) -> None:
        """Bring the index to what the folders are: takes made elsewhere or deleted, the studies' tables."""
        self._tried(None, lambda: self.catalog.index())

    def _tried(self, otherwise: Any, work: Callable[[], Any]) -> Any:
        if not self.usable:
            return otherwise
        try:
            return work()
        except WanscopeError as error:
            self.usable = False
            said = f"{error.what}: {error.why}".rstrip(": ")
            self.emit(
                events.Note(
                    f"going on without the catalogue: {said}. Nothing is lost; `wanscope index --rebuild` reads the "
                    "takes' folders again"
                )
            )
            return otherwise


def finder(space: Workspace) -> Find:
    """How edits find the embeddings of a workspace's catalogue that they name."""
    catalog = Catalog(space, wait_seconds=WAIT_SECONDS)

    def find(name: str) -> CatalogEmbedding:
        if not catalog.exists:
            raise EmbeddingNotFound(f"there is no embedding {name!r}", "the workspace has no catalogue yet")
        found = catalog.get(name, count=False)
        if found.row["space"] != "text":
            raise EmbeddingNotFound(
                f"{name!r} is of the space {found.row['space']!r}", "a donor is what a text encoder gives", ""
            )
        return CatalogEmbedding(found.key, found.tokens.content, (found.tokens.tokens, found.tokens.dim))

    return find


def encoder_of(recipe: Recipe, model: WanModel | None) -> str:
    """Which text encoder, as a hash: its weights, its tokenizer, its dtype."""
    weights = recipe.model.weights
    dtype = "float32" if recipe.dtype == "fp32" else "bfloat16"
    if model is not None and model.text_encoder is not None:
        dtype = str(next(model.text_encoder.parameters()).dtype).removeprefix("torch.")
    tokenizer = weights.get("tokenizer") or (_tokenizer_hash(model) if model is not None else "")
    return encoder_hash(weights.get("text_encoder", ""), tokenizer, dtype)


def encoder_hash(weights: str, tokenizer: str, dtype: str) -> str:
    """What stands for an encoder in the catalogue."""
    facts = {"weights": weights, "tokenizer": tokenizer, "dtype": dtype}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def _tokenizer_hash(model: WanModel) -> str:
    """Of a model that was put together in Python: what its tokenizer knows."""
    text = json.dumps([sorted(model.tokenizer.get_vocab().items()), model.text_length])
    return hashlib.sha256(text.encode()).hexdigest()


def environments(model: WanModel | None, device: str) -> list[str]:
    """Those whose embeddings are this run's to the bit. An encoder that is too large for the GPU runs on the CPU."""
    from wanscope.wan.load import pick_device

    chosen = str(model.device if model is not None else pick_device(device))
    return list(dict.fromkeys([environment(chosen, chosen), environment(chosen, "cpu")]))


def environment(device: str, encoder_device: str) -> str:
    """Where an embedding was made: what may change its last bit."""
    from importlib.metadata import version

    import torch

    where = encoder_device.partition(":")[0]
    name = torch.cuda.get_device_name(encoder_device) if where == "cuda" else f"{torch.get_num_threads()} threads"
    beside = "" if where == device.partition(":")[0] else f" beside {device.partition(':')[0]}"
    return f"{where}{beside}, {name}, torch {torch.__version__}, transformers {version('transformers')}"
