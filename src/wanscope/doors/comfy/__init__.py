"""The ComfyUI node pack: the nodes, registered under the ids that saved workflows use.

The ids of the earlier activation editor keep their names and inputs (docs/comfyui.md lists what each does now); the ids
of the nodes for ComfyUI's own Wan models begin with `Wanscope`. `NODE_CLASS_MAPPINGS` leaves out ids that another pack
has already registered.
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
    noise_nodes,
    prompt_nodes,
    report_nodes,
    wrapper_nodes,
    wrapper_sources,
)
from wanscope.doors.comfy.base import Node

LEGACY_NODES: dict[str, type[Node]] = {
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
            ),
        ),
        (noise_nodes, ("NoiseController",)),
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
NEW_NODES: dict[str, type[Node]] = {
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
NODES = {**LEGACY_NODES, **NEW_NODES}

# By id: the input names of older workflows, and the current name of each.
ALIASES: dict[str, dict[str, str]] = {
    name: {
        "activation_pattern": "block_activations",
        "text_embeds_injection": "injection_embeds",
        "embeddings_injection": "injection_embeds",
    }
    for name in LEGACY_NODES
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
WAN_ACTIVATION = "WAN_ACTIVATION"  # the type of a block pattern in older workflows; here it is a STRING


def with_aliases(prompt: dict) -> dict:
    """Return an API prompt with older input names replaced by the current ones.

    The prompt passed in is not modified, and the nodes of other packs keep their input names.
    """
    out, aliases = {}, active_aliases()
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
    """Return those of our ids that another pack holds in the running ComfyUI, with the name of its module."""
    registered = getattr(sys.modules.get("nodes"), "NODE_CLASS_MAPPINGS", {})
    return {
        name: getattr(registered[name], "RELATIVE_PYTHON_MODULE", registered[name].__module__)
        for name in NODES
        if name in registered and registered[name] is not NODES[name]
    }


def active_aliases() -> dict[str, dict[str, str]]:
    """Return `ALIASES` without the ids that another pack holds: its nodes keep their input names."""
    taken = owners()
    return {name: names for name, names in ALIASES.items() if name not in taken}


def warn_of_taken_ids(reason: str) -> None:
    """Log which ids another pack holds, if any. reason: why it holds them, as in "which was loaded first"."""
    taken = owners()
    if taken:
        packs, ids = ", ".join(sorted(set(taken.values()))), ", ".join(sorted(taken))
        message = "wanscope: %d node ids belong to %s, which %s. Remove that pack to use wanscope's: %s"
        node_log.log.warning(message, len(taken), packs, reason, ids)


def register(nodes: dict[str, type[Node]] = NODES) -> dict[str, type[Node]]:
    """Return the nodes to register: ours, without the ids that another pack holds. Those are logged."""
    taken = owners()
    warn_of_taken_ids("was loaded first and keeps them")
    return {name: node for name, node in nodes.items() if name not in taken}


def attach_to_server(module: ModuleType | None = None) -> None:
    """Connect to ComfyUI's server, if one is running.

    Older input names are replaced in queued prompts, and the route `/wanscope/facts` gives the page the ids, aliases
    and owners.
    """
    server = node_log.server()
    if server is None or getattr(server, "wanscope_attached", False):
        return
    server.wanscope_attached = True  # type: ignore[attr-defined]
    from aiohttp import web  # type: ignore[import-not-found]

    reported = len(owners())

    def replace_names(data: dict) -> dict:
        nonlocal reported
        if len(owners()) > reported:  # ComfyUI does not report it when a pack that is loaded later overwrites ids
            reported = len(owners())
            warn_of_taken_ids("was loaded later and took them")
        return {**data, "prompt": with_aliases(data["prompt"])} if isinstance(data.get("prompt"), dict) else data

    async def facts(request: object) -> object:
        return web.json_response({"ids": sorted(NODES), "aliases": active_aliases(), "owners": owners()})

    server.add_on_prompt_handler(replace_names)  # type: ignore[attr-defined]
    server.routes.get("/wanscope/facts")(facts)  # type: ignore[attr-defined]


NODE_CLASS_MAPPINGS = register()
NODE_DISPLAY_NAME_MAPPINGS = {name: node.TITLE for name, node in NODE_CLASS_MAPPINGS.items()}
attach_to_server()
