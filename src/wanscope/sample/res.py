"""Kept because solvers of other packages import the exponential solvers' base class from here, its module in 0.1."""

from wanscope.sample.solvers.exponential import ExponentialSolver, h_phi, shifted_sigmas

__all__ = ["ExponentialSolver", "h_phi", "shifted_sigmas"]
