"""The location of `plan_memory` in wanscope 0.1, kept for scripts that import it from here. See memory_plan.py."""

from wanscope.wan.memory_plan import plan_memory

__all__ = ["plan_memory"]
