"""Where 0.1 had the exponential solvers' base class. Kept for solvers of other packages, which import it from here."""

from wanscope.sample.solvers.exponential import ExponentialSolver, h_phi, shifted_sigmas

__all__ = ["ExponentialSolver", "h_phi", "shifted_sigmas"]
