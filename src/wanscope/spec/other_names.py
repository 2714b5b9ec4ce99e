"""What other tools call the settings of a study, so that their words lead to ours.

The keys are the names in diffusers, ComfyUI (KSampler, loaders), WanVideoWrapper and Wan's own command line, in lower
case with "_" for other separators. A word is looked up only where it is not a key of ours.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

SETTINGS = {
    **dict.fromkeys(("cfg", "cfg_scale", "guidance_scale", "guide_scale", "sample_guide_scale"), "sampler.guidance"),
    **dict.fromkeys(("guidance_scale_2", "cfg_2"), "sampler.guidance_2"),
    **dict.fromkeys(("num_inference_steps", "sample_steps", "sampling_steps", "inference_steps"), "sampler.steps"),
    **dict.fromkeys(
        ("sampler_name", "scheduler", "sample_solver", "sampling_method", "scheduler_name"), "sampler.solver"
    ),
    **dict.fromkeys(("flow_shift", "sample_shift", "time_shift", "sigma_shift"), "sampler.shift"),
    **dict.fromkeys(("denoising_strength", "denoise_strength", "strength"), "sampler.denoise"),
    **dict.fromkeys(("start_at_step", "start_at", "skip_steps"), "sampler.start_step"),
    **dict.fromkeys(("num_frames", "frame_num", "length", "video_length", "n_frames"), "video.frames"),
    **dict.fromkeys(("frame_rate", "framerate", "sample_fps"), "video.fps"),
    **dict.fromkeys(("negative_prompt", "n_prompt", "sample_neg_prompt", "neg_prompt"), "negative"),
    **dict.fromkeys(("positive", "positive_prompt", "text", "template", "prompts"), "prompt"),
    **dict.fromkeys(("seed", "noise_seed", "base_seed", "num_videos_per_prompt", "batch_size"), "seeds"),
    **dict.fromkeys(("lora", "lora_path", "lora_name", "lora_dir"), "loras"),
    **dict.fromkeys(("ckpt", "ckpt_name", "ckpt_dir", "checkpoint", "unet_name", "model_name", "model_path"), "model"),
    **dict.fromkeys(("vae", "vae_name", "vae_path"), "components.vae"),
    **dict.fromkeys(("text_encoder", "clip", "clip_name", "t5", "t5_path"), "components.text_encoder"),
    "tokenizer": "components.tokenizer",
    "precision": "dtype",
    "torch_dtype": "dtype",
    **{name: f"video.{name}" for name in ("width", "height", "frames", "fps", "duration")},
    **{name: f"sampler.{name}" for name in ("steps", "guidance", "solver", "shift", "denoise", "sigmas", "start_step")},
}
LORA = {"scale": "weight", "lora_scale": "weight", "lora_weight": "weight", "strength": "weight", "file": "path"}
SOLVERS = {
    **dict.fromkeys(("dpmpp_2m", "dpm++_2m", "dpm_2m", "dpmpp", "dpmsolver++", "dpm_solver"), "dpm++"),
    **dict.fromkeys(("uni_pc", "uni_pc_bh2", "unipcmultistep", "unipcmultistepscheduler"), "unipc"),
    **dict.fromkeys(("flowmatch_euler", "flow_match_euler", "flowmatcheulerdiscretescheduler", "simple"), "euler"),
    **dict.fromkeys(("heunpp2", "flowmatch_heun", "flowmatchheundiscretescheduler"), "heun"),
}


def plain(word: str) -> str:
    """Return a word as the tables have it: lower case, "_" between its parts."""
    return re.sub(r"[^a-z0-9+]+", "_", word.strip().lower()).strip("_")


def our_setting(path: Sequence[str]) -> str | None:
    """Return our name of a setting that a study does not have under this path, or None if the word is not known."""
    if not path:
        return None
    if path[0] == "loras" and len(path) > 1:
        return LORA.get(plain(path[-1]))
    found = SETTINGS.get(plain(path[-1]))
    return None if found == ".".join(path) else found


def our_solver(name: str) -> str | None:
    """Return our name of a solver, or None if it is not known."""
    return SOLVERS.get(plain(name))
