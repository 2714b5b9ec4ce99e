"""Fakes with the interfaces of ComfyUI and WanVideoWrapper, for tests without either.

    NativeWan      ComfyUI's Wan transformer: `forward` through DIFFUSION_MODEL wrappers, blocks called with x and
                   keywords or through a `double_block` patch, attention through `optimized_attention_override`
    WrapperWan     WanVideoWrapper's: called by keywords with a list of contexts, blocks return 4-tuples
    Patcher        holds the options of both: `clone` copies them deeply
    sample         a sampler like ComfyUI's: OUTER_SAMPLE wrappers, cond and uncond in one batch in either order
    wrapper_sample a sampler like the wrapper's: it deep-copies the options and makes one call per branch

Both transformers load a diffusers Wan transformer's weights, so that all runtimes can be compared.

Shape suffixes: B batch rows, C channels, T, h, w latent frames, height, width, Q video tokens, N text rows, D width.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers.layouts import original_name


class Norm(nn.Module):
    """RMS norm across all heads."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], self.weight, 1e-6)


def rotated(x_BQHK: Tensor, angles_QK: Tensor) -> Tensor:
    pairs = torch.view_as_complex(x_BQHK.double().unflatten(-1, (-1, 2)))
    turned = pairs * torch.polar(torch.ones_like(angles_QK), angles_QK)[None, :, None]
    return torch.view_as_real(turned).flatten(-2).to(x_BQHK.dtype)


def optimized_attention(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Any = None, **kwargs: Any) -> Tensor:
    """ComfyUI's attention with its override: called with q, k, v [B, Q, heads x head dim]."""
    override = (kwargs.get("transformer_options") or {}).get("optimized_attention_override")
    if override is not None and "_inside" not in kwargs:
        return override(optimized_attention, q, k, v, heads=heads, mask=mask, **kwargs, _inside=True)
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = heads, dim // heads
        self.q, self.k, self.v, self.o = (nn.Linear(dim, dim) for _ in range(4))
        self.norm_q, self.norm_k = Norm(dim), Norm(dim)


class SelfAttention(Attention):
    def forward(self, x: Tensor, freqs: Tensor, transformer_options: Any = None) -> Tensor:
        q, k = (
            rotated(norm(layer(x)).unflatten(-1, (self.num_heads, -1)), freqs).flatten(2)
            for layer, norm in ((self.q, self.norm_q), (self.k, self.norm_k))
        )
        options = transformer_options or {}
        return self.o(optimized_attention(q, k, self.v(x), heads=self.num_heads, transformer_options=options))


class CrossAttention(Attention):
    def forward(self, x: Tensor, context: Tensor, transformer_options: Any = None, **kwargs: Any) -> Tensor:
        q, k = self.norm_q(self.q(x)), self.norm_k(self.k(context))
        options = transformer_options or {}
        return self.o(optimized_attention(q, k, self.v(context), heads=self.num_heads, transformer_options=options))


class Block(nn.Module):
    def __init__(self, dim: int, ffn: int, heads: int) -> None:
        super().__init__()
        self.self_attn, self.cross_attn = SelfAttention(dim, heads), CrossAttention(dim, heads)
        self.norm1, self.norm2 = (nn.LayerNorm(dim, 1e-6, elementwise_affine=False) for _ in range(2))
        self.norm3 = nn.LayerNorm(dim, 1e-6)
        self.ffn = nn.Sequential(nn.Linear(dim, ffn), nn.GELU(approximate="tanh"), nn.Linear(ffn, dim))
        self.modulation = nn.Parameter(torch.randn(1, 6, dim))

    def run(self, x: Tensor, e: Tensor, freqs: Tensor, context: Tensor, options: dict[str, Any]) -> Tensor:
        e0, e1, e2, e3, e4, e5 = (self.modulation + e).chunk(6, dim=1)
        x = x + e2 * self.self_attn(self.norm1(x) * (1 + e1) + e0, freqs, transformer_options=options)
        x = x + self.cross_attn(self.norm3(x), context, transformer_options=options)
        return x + e5 * self.ffn(self.norm2(x) * (1 + e4) + e3)


class NativeBlock(Block):
    def forward(
        self,
        x: Tensor,
        e: Tensor,
        freqs: Tensor,
        context: Tensor,
        context_img_len: int | None = 257,
        transformer_options: Any = None,
    ) -> Tensor:
        return self.run(x, e, freqs, context, transformer_options or {})


class WrapperBlock(Block):
    def forward(
        self, x: Tensor, e: Tensor, seq_lens: Any, grid_sizes: Tensor, freqs: Tensor, context: Tensor,
        current_step: Any, last_step: Any = None, clip_embed: Any = None, x_ip: Any = None,
        lynx_ref_feature: Any = None, x_ovi: Any = None, transformer_options: Any = None,
    ) -> tuple[Tensor, Any, Any, Any]:  # fmt: skip
        out = self.run(x.clone(), e, freqs, context, {})
        x.add_(1e3)  # the wrapper's block modifies its input in place
        return out, x_ip, lynx_ref_feature, x_ovi


class Head(nn.Module):
    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, 1e-6, elementwise_affine=False)
        self.head = nn.Linear(dim, out)
        self.modulation = nn.Parameter(torch.randn(1, 2, dim))

    def forward(self, x: Tensor, e_BD: Tensor) -> Tensor:
        e0, e1 = (self.modulation + e_BD[:, None]).chunk(2, dim=1)
        return self.head(self.norm(x) * (1 + e1) + e0)


class Wan(nn.Module):
    """Base class of both transformers. The weights come from a diffusers WanTransformer3DModel."""

    block: type[Block] = Block

    def __init__(self, source: Any) -> None:
        super().__init__()
        c = source.config
        dim = c.num_attention_heads * c.attention_head_dim
        self.dim, self.num_heads, self.patch_size, self.text_len = dim, c.num_attention_heads, (1, 2, 2), 16
        self.freq_dim, self.out_dim, self.img_emb = c.freq_dim, c.out_channels, None
        self.patch_embedding = nn.Conv3d(c.in_channels, dim, self.patch_size, self.patch_size)
        gelu = nn.GELU(approximate="tanh")
        self.text_embedding = nn.Sequential(nn.Linear(c.text_dim, dim), gelu, nn.Linear(dim, dim))
        self.time_embedding = nn.Sequential(nn.Linear(c.freq_dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        self.blocks = nn.ModuleList(self.block(dim, c.ffn_dim, self.num_heads) for _ in range(c.num_layers))
        self.head = Head(dim, c.out_channels * 4)
        self.load_state_dict({original_name(k): v.clone() for k, v in source.state_dict().items()})
        self.eval().requires_grad_(False)

    def embedded(self, x_BCThw: Tensor, t_B: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, tuple[int, ...]]:
        """Return video tokens, time embeddings of the head and the blocks, rotations and grid."""
        x = self.patch_embedding(x_BCThw)
        grid = tuple(x.shape[2:])
        half = self.freq_dim // 2
        angles = t_B.float()[:, None] * torch.exp(-math.log(10000) * torch.arange(half) / half)
        e_BD = self.time_embedding(torch.cat([angles.cos(), angles.sin()], 1))
        head_dim = self.dim // self.num_heads
        sizes = (head_dim - 4 * (head_dim // 6), 2 * (head_dim // 6), 2 * (head_dim // 6))
        places = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in grid), indexing="ij")
        rates = [1 / 10000 ** (torch.arange(0, size, 2, dtype=torch.float64) / size) for size in sizes]
        freqs = torch.cat([p.flatten()[:, None] * r for p, r in zip(places, rates, strict=True)], 1)
        return x.flatten(2).transpose(1, 2), e_BD, self.time_projection(e_BD).unflatten(1, (6, self.dim)), freqs, grid

    def unpatched(self, x: Tensor, grid: tuple[int, ...]) -> Tensor:
        T, Y, X = grid
        return x.view(len(x), T, Y, X, 1, 2, 2, self.out_dim).permute(0, 7, 1, 4, 2, 5, 3, 6).flatten(6).flatten(4, 5).flatten(2, 3)  # fmt: skip  # noqa: E501


class Executor:
    """ComfyUI's WrapperExecutor: nests the calls of the wrappers, then calls the function."""

    def __init__(self, function: Callable[..., Any], owner: Any, wrappers: list[Callable[..., Any]]) -> None:
        self.function, self.class_obj, self.wrappers = function, owner, wrappers

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self.wrappers:
            return self.function(*args, **kwargs)
        return self.wrappers[0](Executor(self.function, self.class_obj, self.wrappers[1:]), *args, **kwargs)


def wrappers_of(point: str, options: dict[str, Any]) -> list[Callable[..., Any]]:
    return [w for group in options.get("wrappers", {}).get(point, {}).values() for w in group]


class NativeWan(Wan):
    block = NativeBlock

    def forward(self, x, timestep, context, clip_fea=None, time_dim_concat=None, transformer_options=None, **kwargs):
        options = transformer_options or {}
        run = Executor(self._forward, self, wrappers_of("diffusion_model", options))
        return run(x, timestep, context, clip_fea, time_dim_concat, options, **kwargs)

    def _forward(self, x, timestep, context, clip_fea=None, time_dim_concat=None, transformer_options=None, **kwargs):
        options = transformer_options or {}
        x, e, e0, freqs, grid = self.embedded(x, timestep)
        context = self.text_embedding(context)
        replaced = options.get("patches_replace", {}).get("dit", {})
        for i, block in enumerate(self.blocks):
            if ("double_block", i) in replaced:

                def block_wrap(args, block=block):
                    return {
                        "img": block(
                            args["img"], context=args["txt"], e=args["vec"], freqs=args["pe"], context_img_len=None,
                            transformer_options=args["transformer_options"],
                        )
                    }  # fmt: skip

                args = {"img": x, "txt": context, "vec": e0, "pe": freqs, "transformer_options": options}
                x = replaced[("double_block", i)](args, {"original_block": block_wrap})["img"]
            else:
                x = block(x, e=e0, freqs=freqs, context=context, context_img_len=None, transformer_options=options)
        return self.unpatched(self.head(x, e), grid)


class WrapperWan(Wan):
    block = WrapperBlock
    slg_blocks: Any = None
    answer_from_cache = False
    main_device = torch.device("cpu")

    def forward(
        self, x, t, context, seq_len, is_uncond=False, current_step=0, last_step=False, pred_id=None, vace_data=None,
        clip_fea=None, transformer_options=None,
    ):  # fmt: skip
        tokens, e, e0, freqs, grid = self.embedded(x[0][None], torch.as_tensor(t).flatten())
        padded = [torch.cat([u, u.new_zeros(self.text_len - u.size(0), u.size(1))]) for u in context]
        text = self.text_embedding(torch.stack(padded))
        if self.answer_from_cache:
            return [x[0] * 0], None, None
        more = {"e": e0, "seq_lens": None, "grid_sizes": torch.tensor([grid]), "freqs": freqs, "context": text}
        more |= {"current_step": torch.tensor(current_step), "transformer_options": transformer_options}
        x_ip = lynx = ovi = None
        for i, block in enumerate(self.blocks):
            if self.slg_blocks is not None and i in self.slg_blocks and is_uncond:
                continue
            tokens, x_ip, lynx, ovi = block(tokens, x_ip=x_ip, lynx_ref_feature=lynx, x_ovi=ovi, **more)
        return [self.unpatched(self.head(tokens, e), grid)[0]], None, None


class Patcher:
    """A model with its options. `clone` shares the model and copies the options deeply, as ComfyUI's does."""

    def __init__(self, model: Any, options: dict[str, Any] | None = None) -> None:
        self.model = SimpleNamespace(diffusion_model=model)
        self.model_options = options or {"transformer_options": {}}
        self.wrappers: dict[str, dict[str, list[Any]]] = {}

    def clone(self) -> Patcher:
        out = Patcher(self.model.diffusion_model, copy.deepcopy(self.model_options))
        out.wrappers = {point: {k: list(v) for k, v in groups.items()} for point, groups in self.wrappers.items()}
        return out

    def add_wrapper_with_key(self, point: str, key: str, wrapper: Any) -> None:
        self.wrappers.setdefault(point, {}).setdefault(key, []).append(wrapper)

    def remove_wrappers_with_key(self, point: str, key: str) -> None:
        self.wrappers.get(point, {}).pop(key, None)

    def set_model_patch_replace(self, patch: Any, name: str, block_name: str, number: int) -> None:
        replaced = self.model_options["transformer_options"].setdefault("patches_replace", {})
        replaced.setdefault(name, {})[(block_name, number)] = patch

    def get_model_object(self, name: str) -> Any:
        assert name == "model_sampling"
        return SimpleNamespace(percent_to_sigma=lambda share: 1e9 if share <= 0 else 0.0 if share >= 1 else 1 - share)


SIGMAS = (1.0, 0.75, 0.4)


def sample(
    patcher: Patcher,
    positives: list[Tensor],
    negatives: list[Tensor],
    noise_1CThw: Tensor,
    *,
    cfg: float = 3.0,
    sigmas: tuple[float, ...] = SIGMAS,
    order: str = "uncond first",
    split: bool = False,
) -> Tensor:
    """Sample with Euler from noise. positives, negatives: raw texts [N, D]. order, split: the layout of the batch."""
    options = copy.deepcopy(patcher.model_options["transformer_options"])
    options = {**options, "wrappers": patcher.wrappers, "sample_sigmas": torch.tensor([*sigmas, 0.0])}
    model = patcher.model.diffusion_model

    def inner(noise: Tensor, latent: Tensor, sampler: Any, levels: Tensor, *rest: Any, **kwargs: Any) -> Tensor:
        x = noise.clone()
        for sigma, after in zip(levels[:-1].tolist(), levels[1:].tolist(), strict=True):
            chunks = [(0, p) for p in positives] + ([(1, n) for n in negatives] if cfg != 1 else [])
            if order == "uncond first":
                chunks.reverse()
            calls = [[chunk] for chunk in chunks] if split else [chunks]
            found: dict[int, list[Tensor]] = {0: [], 1: []}
            for call in calls:
                more = {**options, "cond_or_uncond": [c for c, _ in call], "sigmas": torch.tensor([sigma])}
                text = torch.stack([raw for _, raw in call])
                t = torch.full((len(call),), 1000 * sigma)
                out = model(x.expand(len(call), -1, -1, -1, -1), t, text, None, None, more)
                for (which, _), one in zip(call, out.split(1), strict=True):
                    found[which].append(one)
            cond = torch.stack(found[0]).mean(0)
            velocity = cond
            if cfg != 1:
                uncond = torch.stack(found[1]).mean(0)
                velocity = uncond + cfg * (cond - uncond)
            x = x + (after - sigma) * velocity
        return x

    guider = SimpleNamespace(model_patcher=patcher)
    run = Executor(inner, guider, wrappers_of("outer_sample", {"wrappers": patcher.wrappers}))
    return run(noise_1CThw, torch.zeros_like(noise_1CThw), None, torch.tensor([*sigmas, 0.0]), None, None, True, 0)


def wrapper_sample(
    patcher: Patcher,
    embeds: dict[str, Any],
    noise_1CThw: Tensor,
    *,
    cfg: float = 3.0,
    sigmas: tuple[float, ...] = SIGMAS,
) -> Tensor:
    """Sample with Euler and calls like WanVideoWrapper's: real tokens only, one call per branch."""
    options = copy.deepcopy(patcher.model_options["transformer_options"])
    transformer = patcher.model.diffusion_model
    x = noise_1CThw[0]
    for step, sigma in enumerate(sigmas):
        after = sigmas[step + 1] if step + 1 < len(sigmas) else 0.0
        base = {
            "x": [x], "t": torch.tensor([1000 * sigma]), "seq_len": 0, "is_uncond": False, "current_step": step,
            "last_step": step == len(sigmas) - 1, "transformer_options": options,
        }  # fmt: skip
        velocity = transformer(context=embeds["prompt_embeds"], pred_id=None, **base)[0][0]
        if cfg != 1:
            base["is_uncond"] = True
            uncond = transformer(context=embeds["negative_prompt_embeds"], pred_id=None, **base)[0][0]
            velocity = uncond + cfg * (velocity - uncond)
        x = x + (after - sigma) * velocity
    return x[None]
