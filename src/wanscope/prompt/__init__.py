"""Prompt templates, and the positions of their words among a model's text tokens.

Nothing here needs torch; weights are applied to embeddings by `wanscope.wan.word_weights.apply_weights`.
"""

from wanscope.prompt.template import Mark, Slot, Template, Variation, count, escape, expand, parse

__all__ = ["Mark", "Slot", "Template", "Variation", "count", "escape", "expand", "parse"]
