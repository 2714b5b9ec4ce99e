"""The two forward passes of classifier-free guidance."""

from __future__ import annotations

from typing import Literal

Branch = Literal["cond", "uncond"]  # with the prompt, and with the negative prompt
