"""Deprecated location of `wanscope.capture.moments`, kept for scripts written for 0.1."""

from wanscope.capture.moments import AroundCall, Moment, Observer, StepState

__all__ = ["AroundCall", "Moment", "Observer", "StepState"]
