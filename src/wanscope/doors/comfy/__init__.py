"""ComfyUI's door: the nodes, under the ids that workflows use.

The older ids keep their names and inputs (docs/comfyui.md says what each does now); the nodes for ComfyUI's own Wan
models begin with `Wanscope`. `NODE_CLASS_MAPPINGS` leaves out ids that another pack has registered already.
"""

from __future__ import annotations

import sys
from types import ModuleType

from wanscope.doors.comfy import (
    blocks_nodes,
    direction_nodes,
    embeds_nodes,
    native_nodes,
    node_log,
    prompt_nodes,
    report_nodes,
    wrapper_nodes,
    wrapper_sources,
)
from wanscope.doors.comfy.base import Node

OLDER: dict[str, type[Node]] = {
    f"WanVideo{name}": getattr(module, name)
    for module, names in (
        (blocks_nodes, ("BlockActivationBuilder", "BlockStrengthBuilder", "StrengthVisualizer")),
        (
            embeds_nodes,
            (
                "EmbeddingAnalyzer",
                "VectorDifference",
                "VectorArithmetic",
                "VectorInterpolation",
                "EmbeddingDatabase",
                "EmbeddingAmplifier",
                "SequentialMixer",
                "NoiseController",
            ),
        ),
        (
            wrapper_nodes,
            (
                "ActivationEditor",
                "AdvancedActivationEditor",
                "BlockActivationViewer",
                "InjectionTester",
                "ProjectionBooster",
            ),
        ),
        (
            wrapper_sources,
            (
                "LatentEncoder",
                "LatentInjector",
                "DirectInjector",
                "GuidanceController",
            ),
        ),
    )
    for name in names
}
NEWER: dict[str, type[Node]] = {
    "WanVideoApplyGuidance": wrapper_sources.ApplyGuidance,
    **{
        f"Wanscope{name}": getattr(module, name)
        for module, names in (
            (blocks_nodes, ("BlockStrengths",)),
            (
                native_nodes,
                (
                    "InjectPrompt",
                    "SkipBlocks",
                    "PromptSchedule",
                    "BendAttention",
                    "PromptDifference",
                ),
            ),
            (direction_nodes, ("LearnDirection", "SaveDirection", "LoadDirection", "SteerModel")),
            (report_nodes, ("CheckEdits", "EditReport", "CompareVideos")),
            (
                prompt_nodes,
                (
                    "EmbeddingExpression",
                    "InterpolatePrompts",
                    "AmplifyPrompt",
                    "SaveEmbedding",
                    "LoadEmbedding",
                    "WordsOfPrompt",
                    "WatchAttention",
                    "AttentionOverlay",
                ),
            ),
        )
        for name in names
    },
}
NODES = {**OLDER, **NEWER}

# What older workflows call inputs of these ids, and what they are called here.
ALIASES: dict[str, dict[str, str]] = {
    name: {
        "activation_pattern": "block_activations",
        "text_embeds_injection": "injection_embeds",
        "embeddings_injection": "injection_embeds",
    }
    for name in OLDER
    if "block_activations" in {**NODES[name].REQUIRED, **NODES[name].OPTIONAL}
    or "injection_embeds" in {**NODES[name].REQUIRED, **NODES[name].OPTIONAL}
}
ALIASES |= {
    "WanVideoVectorDifference": {"embeddings_a": "text_embeds_a", "embeddings_b": "text_embeds_b"},
    "WanVideoVectorArithmetic": {
        "embeddings_1": "base_embeds",
        "embeddings_2": "operand_1",
        "embeddings_3": "operand_2",
    },
    "WanVideoVectorInterpolation": {"embeddings_a": "start_embeds", "embeddings_b": "end_embeds"},
    "WanVideoSequentialMixer": {f"embeddings_{i}": f"embedding_{i}" for i in (1, 2, 3)},
}
WAN_ACTIVATION = "WAN_ACTIVATION"  # what older workflows call the type of a pattern; it is a STRING here


def with_aliases(prompt: dict) -> dict:
    """An API prompt with the older names of inputs replaced; what is given is not changed, nor other packs' nodes."""
    out, aliases = {}, our_aliases()
    for node, data in prompt.items():
        names = aliases.get(data.get("class_type", "")) if isinstance(data, dict) else None
        if names:
            inputs = {}
            for key, value in data.get("inputs", {}).items():
                target = names.get(key, key)
                if target == key or target not in data["inputs"]:
                    inputs[target] = value
            data = {**data, "inputs": inputs}
        out[node] = data
    return out


def owners() -> dict[str, str]:
    """Which module holds each of our ids in the running ComfyUI, for those that are not ours."""
    registered = getattr(sys.modules.get("nodes"), "NODE_CLASS_MAPPINGS", {})
    return {
        name: getattr(registered[name], "RELATIVE_PYTHON_MODULE", registered[name].__module__)
        for name in NODES
        if name in registered and registered[name] is not NODES[name]
    }


def our_aliases() -> dict[str, dict[str, str]]:
    """`ALIASES` of the ids that are ours in the running ComfyUI: another pack's nodes keep their inputs' names."""
    taken = owners()
    return {name: names for name, names in ALIASES.items() if name not in taken}


def say_owners(what: str) -> None:
    """Logs which ids another pack holds, if any. what: how that came to be."""
    taken = owners()
    if taken:
        packs, ids = ", ".join(sorted(set(taken.values()))), ", ".join(sorted(taken))
        fix = "Remove that pack to use wanscope's"
        node_log.log.warning("wanscope: %d node ids belong to %s, which %s. %s: %s", len(taken), packs, what, fix, ids)


def register(nodes: dict[str, type[Node]] = NODES) -> dict[str, type[Node]]:
    """The ids to register: ours, without those that another pack owns, which is said in the log."""
    taken = owners()
    say_owners("was loaded first; they stay there")
    return {name: node for name, node in nodes.items() if name not in taken}


def attach_to_server(module: ModuleType | None = None) -> None:
    """Old input names in prompts, and the facts the page asks for, where ComfyUI's server is running."""
    server = node_log.server()
    if server is None or getattr(server, "wanscope_attached", False):
        return
    server.wanscope_attached = True  # type: ignore[attr-defined]
    from aiohttp import web  # type: ignore[import-not-found]

    told: list[int] = [len(owners())]

    def renamed(data: dict) -> dict:
        if len(owners()) > told[0]:  # ComfyUI lets a pack that is loaded later take ids without a word
            told[0] = len(owners())
            say_owners("was loaded later and took them")
        return {**data, "prompt": with_aliases(data["prompt"])} if isinstance(data.get("prompt"), dict) else data

    async def facts(request: object) -> object:
        return web.json_response({"ids": sorted(NODES), "aliases": our_aliases(), "owners": owners()})

    server.add_on_prompt_handler(renamed)  # type: ignore[attr-defined]
    server.routes.get("/wanscope/facts")(facts)  # type: ignore[attr-defined]


NODE_CLASS_MAPPINGS = register()
NODE_DISPLAY_NAME_MAPPINGS = {name: node.TITLE for name, node in NODE_CLASS_MAPPINGS.items()}
attach_to_server()
