"""The model as a solver sees it: a function that returns the guided velocity for latents at a noise level.

Shape suffixes: B batch (branches), C latent channels, T latent frames, h and w latent height and width, L real text
tokens, N text tokens with padding, D text dim.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from wanscope.capture.moments import AroundCall, Moment
from wanscope.errors import RecipeError
from wanscope.sample.conditioning import Conditioning
from wanscope.sample.guidance import Guidance
from wanscope.sample.solvers import Solver, train_timesteps
from wanscope.spec.branch import Branch

if TYPE_CHECKING:
    from wanscope.wan.model import WanModel


class GuidedVelocity:
    """Calls the expert of the current timestep, once for each branch that guidance needs.

    The calls are those of WanPipeline: latents in the transformer's dtype, cond before uncond, each in its own
    `cache_context`. With `cfg_batched`, both branches are one batch, in the context "cond+uncond". The expert is chosen
    for each evaluation by its own timestep, so the two evaluations of one step may use different experts.
    `denoised` is the predicted clean latents [1, C, T, h, w], float32, of the step's first evaluation.
    Raises RecipeError if guidance needs a negative prompt that is not there, and for embeddings of a wrong shape.
    """

    def __init__(
        self,
        model: WanModel,
        conditioning: Conditioning,
        guidance: Guidance,
        solver: Solver,
        around_call: AroundCall | None = None,
    ) -> None:
        self._model, self._guidance, self._around_call = model, guidance, around_call
        self._dtype = model.transformer.dtype
        self._evaluations = solver.evaluations
        self._boundary = None
        if model.boundary_ratio is not None:
            self._boundary = model.boundary_ratio * train_timesteps(model.scheduler_config)
        self._text: dict[Branch, Tensor] = {"cond": self._padded(conditioning.cond)}
        if guidance.needs_uncond(len(model.experts())):
            if conditioning.uncond is None:
                raise RecipeError(
                    "guidance is on but there is no negative prompt",
                    "guidance compares the prompt with the negative prompt, which may be empty but must be encoded",
                    "Conditioning(cond, uncond)",
                )
            self._text["uncond"] = self._padded(conditioning.uncond)
        self.begin(0)

    def begin(self, step: int) -> None:
        """Start a step: the calls that follow are its evaluations."""
        self.step, self.evaluation = step, 0
        self.denoised: Tensor | None = None

    def __call__(self, x: Tensor, t: Tensor, sigma: float) -> Tensor:
        """Return the guided velocity at x [1, C, T, h, w], in its shape. t: the model's timestep, a 0-dim tensor."""
        expert = 0 if self._boundary is None or t >= self._boundary else 1
        scale = self._guidance.scale(self.step, expert)
        if scale is None:
            v = self._branches(("cond",), x, t, sigma, expert)
        else:
            if self._guidance.sampler.cfg_batched:
                cond, uncond = self._branches(("cond", "uncond"), x, t, sigma, expert).chunk(2)
            else:
                cond = self._branches(("cond",), x, t, sigma, expert)
                uncond = self._branches(("uncond",), x, t, sigma, expert)
            v = self._guidance.combine(cond, uncond, scale=scale, step=self.step, x=x, sigma=sigma)
        if self.evaluation == 0:
            self.denoised = x.float() - sigma * v.float()
        self.evaluation += 1
        return v

    def _branches(self, branches: tuple[Branch, ...], x: Tensor, t: Tensor, sigma: float, expert: int) -> Tensor:
        """Return the velocities [B, C, T, h, w] of the branches, from one call of the expert."""
        count = len(branches)
        transformer = self._model.experts()[expert]
        x_BCThw = x.to(self._dtype).expand(count, -1, -1, -1, -1)
        text_BND = torch.cat([self._text[b] for b in branches]) if count > 1 else self._text[branches[0]]
        moment = Moment(self.step, len(self._evaluations), self.evaluation, branches, expert, sigma)
        cache = transformer.cache_context(
            "+".join(branches),
            step_index=sum(self._evaluations[: self.step]) + self.evaluation,
            sigma=sigma,
            num_inference_steps=sum(self._evaluations),
        )
        with cache, self._around_call(moment) if self._around_call else nullcontext():
            return transformer(
                hidden_states=x_BCThw,
                timestep=self._timestep(t, x_BCThw),
                encoder_hidden_states=text_BND,
                attention_kwargs=None,
                return_dict=False,
            )[0]

    def _timestep(self, t: Tensor, x_BCThw: Tensor) -> Tensor:
        """Return the timestep of each sample, [B]; for Wan 2.2 5B, of each token, [B, tokens]."""
        batch, _, frames, height, width = x_BCThw.shape
        if not self._model.expand_timesteps:
            return t.expand(batch)
        _, patch_h, patch_w = self._model.variant.patch
        tokens = frames * -(-height // patch_h) * -(-width // patch_w)
        return (torch.ones(tokens, device=x_BCThw.device) * t).expand(batch, -1)

    def _padded(self, text: Tensor) -> Tensor:
        """Return tokens [L, D] padded with zeros to the text length, as in Wan: [1, N, D], the transformer's dtype."""
        from wanscope.wan.text import pad

        length, dim = self._model.text_length, self._model.variant.text_dim
        if text.ndim == 2 and len(text) <= length:
            text = pad(text, length)[None]
        if text.shape != (1, length, dim):
            raise RecipeError(
                f"the text embedding has shape {list(text.shape)}",
                f"this model takes [up to {length} tokens, {dim}], or [1, {length}, {dim}] with padding; "
                "shorten the prompt, or use the model that encoded it",
            )
        return text.to(self._model.device, self._dtype)
