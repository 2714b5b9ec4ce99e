"""The second step of preparation: every setting that a study leaves open is decided, from its model's facts.

A model that is no variant's name (a folder, a file, a hub id) is looked at to know what it is. Recipes leave nothing
open and pass as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from wanscope.edit.named_files import Find, CatalogEmbedding
from wanscope.errors import ModelError, RecipeError
from wanscope.recipe import LoraSpec, Study
from wanscope.study.expand import DTYPE_NAMES, Expansion, expand
from wanscope.study.partial_start import Start, find_start
from wanscope.study.read_request import Request
from wanscope.study.recipe_model import ModelKey
from wanscope.wan.variants import VARIANTS
from wanscope.workspace import Workspace

if TYPE_CHECKING:
    from wanscope.wan.locate import Source
    from wanscope.wan.model import WanModel

# Where a model's parts are; None where they would have to be downloaded and are not to be.
FindModel = Callable[[ModelKey], "Source | None"]


@dataclass(frozen=True)
class Expanded:
    """A request with nothing left open but what the weights are. expansion, start: of a study, else None.

    source: the study's model, where it had to be looked at.
    """

    request: Request
    expansion: Expansion | None = None
    start: Start | None = None
    source: Source | None = None


def expand_request(request: Request, space: Workspace, find_model: FindModel, model: WanModel | None) -> Expanded:
    """Decide what a study leaves open, and find what it starts from. model: one that was handed in, loaded.

    Raises RecipeError, TemplateError, ModelError or TakeNotFound for what cannot be made.
    """
    study = request.study
    if study is None:
        return Expanded(request)
    stored, source = stored_in(space), None
    if model is not None:
        expansion = _expanded_on(model, study, stored)
    elif study.model.strip().lower() in VARIANTS:
        expansion = expand(study, find=stored)
    else:
        source = find_model(ModelKey(study.model, study.dtype, study.components))
        if source is None:
            raise ModelError(
                f"what {study.model} is cannot be said without downloading it",
                "its configs are not on this machine",
                "the same without --dry-run",
            )
        from wanscope.wan.load import SHORT, pick_dtype

        expansion = expand(study, source.variant, SHORT[pick_dtype("auto", source)], stored)
    start = None
    if expansion.init is not None:
        start = find_start(expansion.init, expansion.video, expansion.latent_shape, space)
        expansion = replace(expansion, init=start.spec)
    return Expanded(request, expansion, start, source)


def _expanded_on(model: WanModel, study: Study, find: Find) -> Expansion:
    """The study's expansion on a model that is loaded already, with the LoRAs it has. RecipeError where its dtype is
    another."""
    dtype = DTYPE_NAMES[str(model.dtype).removeprefix("torch.")]
    if study.dtype not in ("auto", dtype):
        raise RecipeError(
            f"the study asks for {study.dtype} and the model that was handed in is {dtype}",
            "weights are not cast behind your back",
            f"load(..., dtype={study.dtype!r})",
        )
    if "model" not in study.model_fields_set:
        study = study.model_copy(update={"model": model.spec or model.variant.name})
    expansion = expand(study, model.variant, dtype, find)
    if "loras" not in study.model_fields_set:
        mine = (LoraSpec.model_validate({k: getattr(x, k) for k in LoraSpec.model_fields}) for x in model.loras)
        expansion = replace(expansion, loras=tuple(mine))
    return expansion


def stored_in(space: Workspace) -> Find:
    """How edits find the embeddings of the workspace's catalog that they name."""

    def find(name: str) -> CatalogEmbedding:
        from wanscope.study.embedding_reuse import finder  # most requests name none, and need no database

        return finder(space)(name)

    return find
