"""Prompt templates, and where their words are among a model's text tokens.

`weights` needs torch and is imported by name: `from wanscope.wan.word_weights import apply_weights`.
"""

from wanscope.prompt.template import Mark, Slot, Template, Variation, count, escape, expand, parse

__all__ = ["Mark", "Slot", "Template", "Variation", "count", "escape", "expand", "parse"]
