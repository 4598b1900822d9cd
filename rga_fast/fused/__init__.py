"""The fused implementations: operators, their gradient, and how modules become their arguments."""

from rga_fast.fused.autograd import attention

__all__ = ["attention"]
