"""A Mix Transformer of one block a stage and few channels; whoever imports this can name it."""

from mpcl.modeling import mit

mit.VARIANTS["tiny"] = mit.Variant((8, 16, 40, 64), (1, 1, 1, 1))
