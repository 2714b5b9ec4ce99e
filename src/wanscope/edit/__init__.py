"""Edits, independent of a running model: in which blocks, how strongly, when, and with which embedding.

Blocks, strengths, schedules and the parsing of expressions do not need torch. The modules that work on embeddings do,
so they are imported by name: `embedding_algebra`, `difference`, `amplify` and `evaluate`.
"""

from wanscope.edit.blocks import Blocks, check_blocks, parse_blocks, preset_table
from wanscope.edit.expression import Expression, parse_expression
from wanscope.edit.schedule import Schedule, parse_schedule
from wanscope.edit.strengths import Strengths, check_strengths, parse_bars, parse_strengths, strength_shape

__all__ = [
    "Blocks",
    "Expression",
    "Schedule",
    "Strengths",
    "check_blocks",
    "check_strengths",
    "parse_bars",
    "parse_blocks",
    "parse_expression",
    "parse_schedule",
    "parse_strengths",
    "preset_table",
    "strength_shape",
]
