"""Nodes that report what edits did: a check after the samplers, a report, two videos side by side."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from wanscope.doors.comfy import node_log
from wanscope.doors.comfy.base import MODEL, Inputs, M, Node, node_output, number, socket
from wanscope.errors import EditNotApplied, RecipeError
from wanscope.runtime.comfy import native, wrapper
from wanscope.runtime.comfy.live import Live
from wanscope.runtime.comfy.report import check_stages, run_report


class CheckEdits(Node):
    TITLE = "Check Edits"
    CATEGORY = "wanscope"
    DESCRIPTION = (
        "Checks every edit on the models; place it after the last sampler. The latent is passed through. If an edit "
        "was due in the range that was sampled and did not act, the run fails here with a report of what was applied. "
        "With two stages, connect both models; an edit must act in the stages in whose range it is due."
    )
    REQUIRED: ClassVar[Inputs] = {
        "latent": socket("LATENT", "The sampler's output; passed through unchanged."),
        "model": socket(f"{MODEL},{M}", "The model that was sampled, with its edits."),
    }
    OPTIONAL: ClassVar[Inputs] = {"model_2": socket(f"{MODEL},{M}", "The model of a second stage.")}
    RETURN_TYPES = ("LATENT", "STRING")
    RETURN_NAMES = ("latent", "report")
    OUTPUT_NODE = True

    @classmethod
    def IS_CHANGED(cls, **given: Any) -> float:
        return float("nan")  # the counts change outside the graph

    def run(self, latent: Any, model: Any, model_2: Any = None) -> dict[str, Any]:
        lines: list[str] = []
        faults: list[str] = []
        seen: list[Live] = []
        stage = 0
        for place, one in enumerate((model, model_2), 1):
            live = None if one is None else native.live_of(one) or wrapper.live_of(one)
            if one is None or live in seen:
                continue
            if live is None or not live.edits:
                lines.append(f"model {place}: no edits")
                continue
            seen.append(live)
            if not live.runs:
                raise EditNotApplied(
                    f"model {place} has {len(live.edits)} edits and was not sampled",
                    "the sampler used another model",
                    "connect the edited model to the sampler",
                )
            runs = [run for run in live.runs if run.prompt == live.runs[-1].prompt]
            sentences, wrong = check_stages(live, runs, len(getattr(one.model.diffusion_model, "blocks", ())), stage)
            faults += [f"model {place}, {line}" for line in wrong]
            lines += [f"model {place}", *sentences, *(run_report(live, run) for run in runs)]
            stage += len(runs)
        report = "\n".join(lines)
        if faults:
            raise EditNotApplied("; ".join(faults), report)
        return node_output(report, latent, report)


class EditReport(Node):
    TITLE = "Edit Report"
    CATEGORY = "wanscope"
    DESCRIPTION = "Lists the edits on a model and, after every run, what was applied per edit, block, branch and step."
    REQUIRED: ClassVar[Inputs] = {"model": socket(f"{MODEL},{M}", "A model with edits.")}
    HIDDEN: ClassVar[Inputs] = {"unique_id": "UNIQUE_ID"}
    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("report",)
    OUTPUT_NODE = True

    def run(self, model: Any, unique_id: str | None = None) -> dict[str, Any]:
        live = native.live_of(model) or wrapper.live_of(model)
        node_log.show_runs_in_node(live, unique_id)
        report = node_log.live_report(live)
        return node_output(report, report)


class CompareVideos(Node):
    TITLE = "Compare Videos"
    CATEGORY = "wanscope"
    DESCRIPTION = "Shows two videos side by side with a picture of where they differ, and reports by how much."
    REQUIRED: ClassVar[Inputs] = {
        "baseline": socket("IMAGE", "The video without the edit."),
        "edited": socket("IMAGE", "The video with the edit."),
        "gain": number(4.0, 1.0, 50.0, 0.5, "The factor that the difference is multiplied by to make it visible."),
    }
    RETURN_TYPES = ("IMAGE", "STRING")
    RETURN_NAMES = ("side_by_side", "report")

    def run(self, baseline: Tensor, edited: Tensor, gain: float) -> dict[str, Any]:
        if baseline.shape != edited.shape:
            raise RecipeError(
                f"the videos have the shapes {list(baseline.shape)} and {list(edited.shape)}",
                "they are compared frame by frame",
                "connect two videos of the same size and number of frames",
            )
        difference = (edited - baseline).abs()
        per_frame = difference.mean(dim=(1, 2, 3))
        report = (
            f"mean absolute difference {float(difference.mean()):.4f} (pixels from 0 to 1); per frame from "
            f"{float(per_frame.min()):.4f} to {float(per_frame.max()):.4f}; largest {float(difference.max()):.4f}"
        )
        return node_output(report, torch.cat([baseline, edited, (gain * difference).clamp(0, 1)], 2), report)
