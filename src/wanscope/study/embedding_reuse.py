"""How a run uses the workspace's catalog: stored embeddings are not encoded again, and finished takes are indexed.

Reuse must not change a single bit. A stored embedding is therefore used only if it was made by the same encoder
(weights, tokenizer, dtype) in the same environment (device, torch, transformers, and on a CPU the number of threads).

The catalog never stops a run: it is only an index of the takes. A problem with it is reported once, and the run
continues without it.

Shape suffixes: L real tokens, D text dimension.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wanscope import events
from wanscope.catalog.catalog import Catalog, New
from wanscope.edit.named_files import CatalogEmbedding, Find
from wanscope.errors import EmbeddingNotFound, WanscopeError
from wanscope.recipe import Recipe
from wanscope.wan.variants import VARIANTS
from wanscope.workspace import Workspace

if TYPE_CHECKING:
    from torch import Tensor

    from wanscope.wan.model import WanModel

WAIT_SECONDS = 30.0
CUSTOM = "custom"  # for models that are not a known variant: an export should not contain the name of a user's folder


class RunCatalog:
    """One run's access to the catalog."""

    def __init__(self, space: Workspace, on_event: events.Listener) -> None:
        self.catalog = Catalog(space, wait_seconds=WAIT_SECONDS)
        self.emit = on_event
        self.usable = True

    def recall(self, texts: Sequence[str], recipe: Recipe, model: WanModel | None, device: str) -> dict[str, Tensor]:
        """Return the stored embeddings of `texts` by text, each [L, D] in the encoder's dtype on the CPU."""
        if not self.catalog.exists:
            return {}
        encoder = encoder_of(recipe, model)
        found = self._attempt({}, lambda: self.catalog.stored(texts, encoder, environments(model, device)))
        return {text: embedding.tensor() for text, embedding in found.items()}

    def embedding(self, key: str) -> Tensor:
        """Return the stored embedding [L, D] that an edit names, and count the use.

        Raises EmbeddingNotFound or CatalogDamaged.
        """
        return self.catalog.get(key).tensor()

    def keep(self, encoded: Mapping[str, Tensor], recipe: Recipe, model: WanModel, seconds: float) -> None:
        """Store newly encoded embeddings, {text: [L, D]}. seconds: the time that encoding all of them took."""
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
        self._attempt([], lambda: self.catalog.put_many(new))

    def index(self, folders: Iterable[Path]) -> None:
        """Index finished takes, given their folders."""
        from wanscope.catalog import takes

        self._attempt(None, lambda: takes.add_takes(self.catalog.db, self.catalog.workspace, folders))

    def close(self) -> None:
        """Bring the index up to date with the folders: takes made elsewhere or deleted, and the studies' tables."""
        self._attempt(None, lambda: self.catalog.index())

    def _attempt(self, otherwise: Any, work: Callable[[], Any]) -> Any:
        if not self.usable:
            return otherwise
        try:
            return work()
        except WanscopeError as error:
            self.usable = False
            reason = f"{error.what}: {error.why}".rstrip(": ")
            self.emit(
                events.Note(
                    f"continuing without the catalog: {reason}. No data is lost; `wanscope index --rebuild` reads the "
                    "takes' folders again"
                )
            )
            return otherwise


def finder(space: Workspace) -> Find:
    """Return a function that looks up an embedding that an edit names in the workspace's catalog.

    It raises EmbeddingNotFound for a name that is not there, or is not the output of a text encoder.
    """
    catalog = Catalog(space, wait_seconds=WAIT_SECONDS)

    def find(name: str) -> CatalogEmbedding:
        if not catalog.exists:
            raise EmbeddingNotFound(f"there is no embedding {name!r}", "the workspace has no catalog yet")
        found = catalog.get(name, count=False)
        if found.row["space"] != "text":
            raise EmbeddingNotFound(
                f"{name!r} is in the space {found.row['space']!r}", "a donor is the output of a text encoder", ""
            )
        return CatalogEmbedding(found.key, found.tokens.content, (found.tokens.tokens, found.tokens.dim))

    return find


def encoder_of(recipe: Recipe, model: WanModel | None) -> str:
    """Return a hash that identifies the text encoder: its weights, tokenizer and dtype."""
    weights = recipe.model.weights
    dtype = "float32" if recipe.dtype == "fp32" else "bfloat16"
    if model is not None and model.text_encoder is not None:
        dtype = str(next(model.text_encoder.parameters()).dtype).removeprefix("torch.")
    tokenizer = weights.get("tokenizer") or (_tokenizer_hash(model) if model is not None else "")
    return encoder_hash(weights.get("text_encoder", ""), tokenizer, dtype)


def encoder_hash(weights: str, tokenizer: str, dtype: str) -> str:
    """Return the catalog's key of a text encoder."""
    facts = {"weights": weights, "tokenizer": tokenizer, "dtype": dtype}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def _tokenizer_hash(model: WanModel) -> str:
    """Return a hash of the tokenizer's vocabulary, for a model that was assembled in Python."""
    text = json.dumps([sorted(model.tokenizer.get_vocab().items()), model.text_length])
    return hashlib.sha256(text.encode()).hexdigest()


def environments(model: WanModel | None, device: str) -> list[str]:
    """Return the environments whose embeddings are bit-identical to this run's.

    They are two on a GPU, because an encoder that is too large for it runs on the CPU.
    """
    from wanscope.wan.load import pick_device

    chosen = str(model.device if model is not None else pick_device(device))
    return list(dict.fromkeys([environment(chosen, chosen), environment(chosen, "cpu")]))


def environment(device: str, encoder_device: str) -> str:
    """Return a description of everything in the environment that may change an embedding's last bits.

    The text is stored in the catalog and compared, so its wording must not change.
    """
    from importlib.metadata import version

    import torch

    where = encoder_device.partition(":")[0]
    name = torch.cuda.get_device_name(encoder_device) if where == "cuda" else f"{torch.get_num_threads()} threads"
    other = "" if where == device.partition(":")[0] else f" beside {device.partition(':')[0]}"
    return f"{where}{other}, {name}, torch {torch.__version__}, transformers {version('transformers')}"
