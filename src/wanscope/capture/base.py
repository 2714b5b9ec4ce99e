"""Where 0.1 had `moments`. Kept for scripts that import it from here."""

from wanscope.capture.moments import AroundCall, Moment, Observer, StepState

__all__ = ["AroundCall", "Moment", "Observer", "StepState"]
