"""The second step of preparation: every setting that a study leaves open is decided from what is known of its model.

For a model that is not the name of a variant (a folder, a file, a hub id), its configs are read. Recipes leave nothing
open and are passed on unchanged.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from wanscope.edit.named_files import CatalogEmbedding, Find
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

# Finds a model's parts; None where they would have to be downloaded and downloading is not wanted.
FindModel = Callable[[ModelKey], "Source | None"]


@dataclass(frozen=True)
class Expanded:
    """A request with every setting decided except the identity of the weights.

    expansion, start: of a study, else None. source: the study's model, where its configs had to be read.
    """

    request: Request
    expansion: Expansion | None = None
    start: Start | None = None
    source: Source | None = None


def expand_request(request: Request, space: Workspace, find_model: FindModel, model: WanModel | None) -> Expanded:
    """Decide what a study leaves open, and find what a partial denoising starts from.

    model: a loaded model that the caller passed in. Raises RecipeError, TemplateError, ModelError or TakeNotFound for
    what cannot be made.
    """
    study = request.study
    if study is None:
        return Expanded(request)
    stored, source = embedding_finder(space), None
    if model is not None:
        expansion = _expanded_on(model, study, stored)
    elif study.model.strip().lower() in VARIANTS:
        expansion = expand(study, find=stored)
    else:
        source = find_model(ModelKey(study.model, study.dtype, study.components))
        if source is None:
            raise ModelError(
                f"a dry run of {study.model} needs its configs",
                "they are not on this machine, and a dry run downloads nothing. Run the same command without --dry-run",
            )
        from wanscope.wan.load import SHORT, pick_dtype

        expansion = expand(study, source.variant, SHORT[pick_dtype("auto", source)], stored)
    start = None
    if expansion.init is not None:
        start = find_start(expansion.init, expansion.video, expansion.latent_shape, space)
        expansion = replace(expansion, init=start.spec)
    return Expanded(request, expansion, start, source)


def _expanded_on(model: WanModel, study: Study, find: Find) -> Expansion:
    """Expand the study on a model that is already loaded, with the LoRAs that it has.

    Raises RecipeError where the study asks for a dtype other than the model's.
    """
    dtype = DTYPE_NAMES[str(model.dtype).removeprefix("torch.")]
    if study.dtype not in ("auto", dtype):
        raise RecipeError(
            f"the study asks for {study.dtype} and the model that was passed in is {dtype}",
            "the weights of a loaded model are never cast",
            f"load(..., dtype={study.dtype!r})",
        )
    if "model" not in study.model_fields_set:
        study = study.model_copy(update={"model": model.spec or model.variant.name})
    expansion = expand(study, model.variant, dtype, find)
    if "loras" not in study.model_fields_set:
        mine = (LoraSpec.model_validate({k: getattr(x, k) for k in LoraSpec.model_fields}) for x in model.loras)
        expansion = replace(expansion, loras=tuple(mine))
    return expansion


def embedding_finder(space: Workspace) -> Find:
    """Return a function that looks up an embedding that an edit names in the workspace's catalog."""

    def find(name: str) -> CatalogEmbedding:
        from wanscope.study.embedding_reuse import finder  # imported here: most requests need no database

        return finder(space)(name)

    return find
