"""Train marbles: `python -m wanscope.marbles.train all --folder .training`. Every stage resumes where it stopped.

The table of stages in denoiser.py is the schedule of the packaged weights; their report says how good they are. It does
not reproduce that run bit for bit, because it was stopped and extended several times, and its learning rate therefore
decayed more than once.

A stage that is given more steps than it has made continues training; `export` then writes the packaged weights and
`wanscope validate marbles` scores them. `unpack` makes a training folder from the packaged weights, so that `encode`
and `denoiser` can continue from them on another machine.

`python -m wanscope.marbles.train rarity` trains small variants in which a color is rare, and measures the volume of
their paths (rarity.py; `rarity --help`).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

STAGES = ("vae", "text", "encode", "denoiser", "export")


def main(argv: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if argv is None else argv
    if arguments[:1] == ["rarity"]:
        from wanscope.marbles.train import rarity

        return rarity.main(arguments[1:])
    parser = argparse.ArgumentParser(prog="python -m wanscope.marbles.train", description=__doc__)
    parser.add_argument("stage", choices=(*STAGES, "all", "unpack"))
    parser.add_argument(
        "--folder", type=Path, default=Path(".training"), help="checkpoints and logs (default .training)"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--vae-steps", type=int, default=2000)
    parser.add_argument("--text-steps", type=int, default=1500)
    parser.add_argument("--clips", type=int, default=9000, help="training clips encoded for the transformer")
    parser.add_argument("--denoiser-steps", type=int, default=20_300)
    parser.add_argument("--target", type=Path, default=Path(__file__).parents[1] / "weights")
    args = parser.parse_args(arguments)
    for stage in STAGES if args.stage == "all" else (args.stage,):
        sys.stderr.write(f"{stage} ...\n")
        run_stage(stage, args)
    return 0


def run_stage(stage: str, args: argparse.Namespace) -> None:
    from wanscope.marbles.train import denoiser, export, text, vae

    common = {"seed": args.seed, "device": args.device}
    if stage == "vae":
        vae.train(args.folder, args.vae_steps, args.vae_steps // 5, **common)
    elif stage == "text":
        if not (args.folder / "text_encoder").exists():
            text.train(args.folder, args.text_steps, seed=args.seed)
    elif stage == "encode":
        denoiser.encode_set(args.folder, args.clips, **common)
    elif stage == "denoiser":
        denoiser.train(args.folder, args.denoiser_steps, args.denoiser_steps // 8, **common)
    elif stage == "unpack":
        export.unpack(args.target, args.folder)
    else:
        size = export.export(args.folder, args.target)
        sys.stderr.write(f"{args.target}: {size / 1e6:.1f} MB\n")


if __name__ == "__main__":
    sys.exit(main())
