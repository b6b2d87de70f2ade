"""data_flagging."""

from evals.data_flagging.data_flagging import data_flagging

__all__ = ["data_flagging"]
