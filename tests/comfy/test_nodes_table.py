"""The legacy ids with exactly their inputs and outputs, and the pack as ComfyUI loads it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from wanscope.doors.comfy import ALIASES, LEGACY_NODES, NODES, attach_to_server, register, with_aliases

ROOT = Path(__file__).resolve().parents[2]
M, E = "WANVIDEOMODEL", "WANVIDEOTEXTEMBEDS"
U = ("FLOAT", 0.0, 1.0, 0.01)
NONE = "0" * 40


def unit(default: float) -> tuple:
    return (*U, default)


def weight() -> tuple:
    return ("FLOAT", -10.0, 10.0, 0.1, 1.0)


PRESETS = ("custom", "all", "none", "first_half", "second_half", "early_blocks", "mid_blocks", "late_blocks", "alternating", "sparse")  # fmt: skip  # noqa: E501
SHAPES = ("custom", "uniform", "linear_decay", "linear_rise", "gaussian_peak", "inverse_gaussian", "sine_wave", "stepped", "random", "focus_early", "focus_mid", "focus_late")  # fmt: skip  # noqa: E501

# name: (required, optional, outputs). A choice is (options, default), a number (type, min, max, step, default).
TABLE = {
    "ActivationEditor": (
        {
            "model": M, "text_embeds": E, "injection_strength": unit(0.5), "block_activations": ("STRING", NONE),
            "enable_patching": ("BOOLEAN", True), "log_level": (("off", "basic", "verbose", "trace"), "off"),
            "injection_mode": (("context", "hidden_states", "both"), "context"),
        },
        {"injection_embeds": E},
        {"model": M, "text_embeds": E},
    ),
    "BlockActivationBuilder": (
        {"preset": (PRESETS, "custom")},
        {f"block_{i}": ("BOOLEAN", False) for i in range(40)},
        {"block_activations": "STRING"},
    ),
    "BlockActivationViewer": (
        {"model": M, "show_visual": ("BOOLEAN", True)},
        {"block_activations": ("STRING", NONE), "text_embeds": E},
        {"visualization": "STRING"},
    ),
    "EmbeddingAnalyzer": (
        {
            "text_embeds": E, "analysis_type": (("statistics", "shape", "pca_preview", "all"), "all"),
            "store_in_db": ("BOOLEAN", True),
        },
        {},
        {"analysis_report": "STRING", "text_embeds": E},
    ),
    "VectorDifference": (
        {"text_embeds_a": E, "text_embeds_b": E, "normalize": ("BOOLEAN", False), "scale": weight()},
        {},
        {"difference_vector": E},
    ),
    "VectorArithmetic": (
        {"base_embeds": E, "operation": (("add", "weighted_sum", "multiply", "normalize"), "add")},
        {"operand_1": E, "weight_1": weight(), "operand_2": E, "weight_2": weight(), "operand_3": E, "weight_3": weight()},  # noqa: E501
        {"result_embeds": E},
    ),
    "VectorInterpolation": (
        {
            "start_embeds": E, "end_embeds": E, "steps": ("INT", 2, 20, 1, 5),
            "method": (("linear", "spherical", "cubic"), "linear"), "include_endpoints": ("BOOLEAN", True),
        },
        {},
        {"interpolated_sequence": E},
    ),
    "EmbeddingDatabase": (
        {
            "action": (("stats", "cleanup", "list_recent"), "stats"), "cleanup_days": ("INT", 1, 365, 1, 30),
            "cleanup_min_access": ("INT", 1, 100, 1, 5),
        },
        {},
        {"report": "STRING"},
    ),
    "BlockStrengthBuilder": (
        {"pattern": (SHAPES, "custom"), "base_strength": unit(0.5)},
        {
            "peak_block": ("INT", 0, 39, 1, 20), "spread": ("FLOAT", 0.5, 20.0, 0.5, 5.0),
            "step_size": ("INT", 1, 20, 1, 5), **{f"block_{i}_strength": unit(0.0) for i in range(40)},
        },
        {"block_strengths": "BLOCK_STRENGTHS", "strength_visualization": "STRING"},
    ),
    "AdvancedActivationEditor": (
        {"model": M, "text_embeds": E, "block_activations": ("STRING", NONE), "enable_patching": ("BOOLEAN", True)},
        {"injection_embeds": E, "block_strengths": "BLOCK_STRENGTHS", "uniform_strength": unit(0.5)},
        {"model": M, "text_embeds": E},
    ),
    "StrengthVisualizer": (
        {"block_strengths": "BLOCK_STRENGTHS", "show_numbers": ("BOOLEAN", True), "graph_height": ("INT", 5, 20, 1, 10)},  # noqa: E501
        {},
        {"text_visualization": "STRING", "graph_image": "IMAGE"},
    ),
    "InjectionTester": (
        {"model": M, "text_embeds": E, "show_details": ("BOOLEAN", True)}, {}, {"test_results": "STRING"},
    ),
    "EmbeddingAmplifier": (
        {
            "main_embeds": E, "injection_embeds": E, "target_difference": ("FLOAT", 30.0, 90.0, 5.0, 60.0),
            "amplification_mode": (("push_apart", "maximize_diff", "orthogonalize"), "push_apart"),
        },
        {},
        {"amplified_injection": E, "info": "STRING"},
    ),
    "ProjectionBooster": (
        {
            "model": M, "text_embeds": E, "injection_embeds": E, "boost_factor": ("FLOAT", 1.0, 50.0, 1.0, 10.0),
            "preserve_norm": ("BOOLEAN", True),
        },
        {},
        {"model": M, "text_embeds": E, "info": "STRING"},
    ),
    "LatentEncoder": (
        {
            "model": M, "text_embeds": E, "capture_after_blocks": ("INT", 1, 10, 1, 3), "use_cache": ("BOOLEAN", True),
        },
        {},
        {"latent_embeds": "LATENT_EMBEDS", "info": "STRING"},
    ),
    "LatentInjector": (
        {
            "model": M, "main_latent": "LATENT_EMBEDS", "injection_latent": "LATENT_EMBEDS",
            "injection_strength": unit(0.5), "block_activations": ("STRING", NONE),
        },
        {},
        {"model": M},
    ),
    "DirectInjector": (
        {
            "model": M, "text_embeds": E, "injection_prompt": ("STRING", ""),
            "difference_target": ("FLOAT", 10.0, 90.0, 5.0, 50.0),
            "injection_mode": (("additive", "replace", "blend"), "blend"), "block_activations": ("STRING", NONE),
        },
        {"injection_embeds": E},
        {"model": M, "text_embeds": E},
    ),
    "GuidanceController": (
        {
            "model": M, "main_conditioning": E, "injection_conditioning": E,
            "cfg_scale": ("FLOAT", 0.0, 20.0, 0.1, 6.0), "injection_scale": ("FLOAT", 0.0, 20.0, 0.1, 3.0),
            "blend_start": unit(0.0), "blend_end": unit(1.0),
        },
        {},
        {"guidance_config": "GUIDANCE_CONFIG"},
    ),
    "NoiseController": (
        {
            "width": ("INT", 64, 2048, 8, 832), "height": ("INT", 64, 2048, 8, 480), "frames": ("INT", 1, 200, 1, 81),
            "main_seed": ("INT", 0), "injection_seed": ("INT", 42),
            "noise_pattern": (("uniform", "spatial_blocks", "temporal_blocks", "checkerboard", "radial"), "spatial_blocks"),  # noqa: E501
            "pattern_strength": unit(0.3),
        },
        {},
        {"structured_noise": "LATENT"},
    ),
    "SequentialMixer": (
        {
            "embedding_1": E, "embedding_2": E,
            "mix_schedule": (("linear", "ease_in", "ease_out", "ease_in_out", "step"), "linear"),
            "transition_point": unit(0.5), "transition_sharpness": ("FLOAT", 0.01, 1.0, 0.01, 0.1),
        },
        {"embedding_3": E, "transition_point_2": unit(0.75)},
        {"mixed_sequence": E},
    ),
}  # fmt: skip


def table_form(spec: tuple) -> object:
    """Return a declared input in the form of the table."""
    kind, options = spec[0], spec[1] if len(spec) > 1 else {}
    if isinstance(kind, list):
        return (tuple(kind), options["default"])
    if kind in ("INT", "FLOAT"):
        return (kind, options["min"], options["max"], options["step"], options["default"])
    if kind in ("STRING", "BOOLEAN"):
        return (kind, options["default"])
    return kind


def test_there_are_twenty_legacy_ids():
    assert set(LEGACY_NODES) == {f"WanVideo{name}" for name in TABLE} and len(LEGACY_NODES) == 20


@pytest.mark.parametrize("name", TABLE)
def test_inputs_and_outputs_match_the_table(name):
    node = LEGACY_NODES[f"WanVideo{name}"]
    required, optional, outputs = TABLE[name]
    declared = node.INPUT_TYPES()
    for kind, expected in (("required", required), ("optional", optional)):
        found = declared.get(kind, {})
        assert list(found) == list(expected)
        for key, wanted in expected.items():
            given = table_form(found[key])
            if key in ("main_seed", "injection_seed"):
                given = (given[0], given[-1])
            assert given == wanted, key
    assert dict(zip(node.RETURN_NAMES, node.RETURN_TYPES, strict=True)) == outputs


def test_every_node_runs_with_its_input_names_and_is_described():
    import inspect

    for name, node in NODES.items():
        declared = node.INPUT_TYPES()
        names = {key for kind in declared.values() for key in kind}
        parameters = inspect.signature(node.run).parameters
        if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            assert names == set(parameters) - {"self"}, name
        assert node.DESCRIPTION and node.TITLE and not node.TITLE.startswith("Advanced"), name
        assert all(
            spec[1].get("tooltip") for kind in ("required", "optional") for spec in declared.get(kind, {}).values()
        )
    titles = [node.TITLE for node in NODES.values()]
    assert len(set(titles)) == len(titles)


def test_older_input_names_are_accepted():
    prompt = {
        "1": {"class_type": "WanVideoActivationEditor", "inputs": {"activation_pattern": "1", "text_embeds_injection": ["2", 0]}},  # noqa: E501
        "2": {"class_type": "WanVideoVectorDifference", "inputs": {"embeddings_a": ["3", 0], "embeddings_b": ["4", 0]}},
        "3": {"class_type": "KSampler", "inputs": {"activation_pattern": 1}},
    }  # fmt: skip
    kept = json.loads(json.dumps(prompt))
    out = with_aliases(prompt)
    assert out["1"]["inputs"] == {"block_activations": "1", "injection_embeds": ["2", 0]}
    assert out["2"]["inputs"] == {"text_embeds_a": ["3", 0], "text_embeds_b": ["4", 0]}
    assert out["3"] == kept["3"] and prompt == kept
    for name, aliases in ALIASES.items():
        declared = {**NODES[name].REQUIRED, **NODES[name].OPTIONAL}
        assert any(target in declared for target in aliases.values()), name


def test_a_pack_that_already_holds_the_ids_keeps_them_and_is_named(monkeypatch, caplog):
    class Other:
        RELATIVE_PYTHON_MODULE = "custom_nodes.OlderPack"

    fake = type(sys)("nodes")
    fake.NODE_CLASS_MAPPINGS = {"WanVideoActivationEditor": Other}
    monkeypatch.setitem(sys.modules, "nodes", fake)
    registered = register()
    assert "WanVideoActivationEditor" not in registered and "WanVideoVectorDifference" in registered
    assert "custom_nodes.OlderPack" in caplog.text
    prompt = {"1": {"class_type": "WanVideoActivationEditor", "inputs": {"activation_pattern": "1"}}}
    assert with_aliases(prompt) == prompt  # that pack's nodes keep the names of their inputs


def test_a_pack_that_takes_the_ids_later_is_named_once(monkeypatch, caplog):
    class Other:
        RELATIVE_PYTHON_MODULE = "custom_nodes.OlderPack"

    class Server:
        routes = SimpleNamespace(get=lambda path: lambda handler: handler)

        def add_on_prompt_handler(self, handler):
            self.handler = handler

    server = Server()
    nodes, aiohttp = type(sys)("nodes"), type(sys)("aiohttp")
    nodes.NODE_CLASS_MAPPINGS, aiohttp.web = {}, None
    monkeypatch.setitem(sys.modules, "nodes", nodes)
    monkeypatch.setitem(sys.modules, "aiohttp", aiohttp)
    monkeypatch.setattr("wanscope.doors.comfy.node_log.server", lambda: server)
    attach_to_server()
    nodes.NODE_CLASS_MAPPINGS.update(NODES)
    server.handler({"prompt": {}})
    assert not caplog.records
    nodes.NODE_CLASS_MAPPINGS["WanVideoActivationEditor"] = Other
    for _ in range(2):
        server.handler({"prompt": {}})
    assert caplog.text.count("custom_nodes.OlderPack, which was loaded later") == 1


LOAD = """
import importlib.util, sys, time
import torch
began = time.process_time()
path = sys.argv[1]
spec = importlib.util.spec_from_file_location(path, path + "/__init__.py")
module = importlib.util.module_from_spec(spec)
sys.modules[path] = module
spec.loader.exec_module(module)
assert time.process_time() - began < 1, "the pack loads in under a second"
heavy = sorted({name.split(".")[0] for name in sys.modules} & {"diffusers", "transformers", "duckdb", "zarr", "typer"})
print(len(module.NODE_CLASS_MAPPINGS), heavy, module.WEB_DIRECTORY)
"""


def test_the_repository_loads_as_a_pack_silently_and_without_diffusers():
    done = subprocess.run([sys.executable, "-c", LOAD, str(ROOT)], capture_output=True, text=True, check=True, cwd="/")
    assert done.stdout.split() == [str(len(NODES)), "[]", "./src/wanscope/doors/comfy/web"]
    assert done.stderr == ""


def test_help_pages_are_up_to_date():
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts/comfy_pages.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_example_prompts_use_nodes_and_inputs_that_exist():
    files = sorted((ROOT / "example_workflows/api").glob("*.json"))
    assert {f.stem for f in files} >= {
        "simple_activation",
        "amplified_injection",
        "features_showcase",
        "debug_workflow",
    }
    for file in files:
        prompt = json.loads(file.read_text())
        for data in prompt.values():
            node = NODES.get(data["class_type"])
            if node is not None:
                declared = {**node.REQUIRED, **node.OPTIONAL}
                assert set(data["inputs"]) <= set(declared), file.name
                assert set(node.REQUIRED) <= set(data["inputs"]), file.name
            for value in data["inputs"].values():
                assert not isinstance(value, list) or value[0] in prompt
        graph = json.loads((file.parents[1] / file.name).read_text())
        assert sorted(n["type"] for n in graph["nodes"]) == sorted(d["class_type"] for d in prompt.values())
        assert (file.parents[1] / f"{file.stem}.jpg").stat().st_size > 10_000
