"""Where 0.1's documentation had the memory plan (now `memory_plan`). Kept for scripts that import it from here."""

from wanscope.wan.memory_plan import plan_memory

__all__ = ["plan_memory"]
