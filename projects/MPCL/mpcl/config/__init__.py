"""Config: its keys, reading, checks, and what can be known before a training starts."""

from .keys import add_mpcl_config, default_config, get_cfg_from
from .shipped import get_config

__all__ = ["add_mpcl_config", "default_config", "get_cfg_from", "get_config"]
