"""The label of pixels without a class."""

IGNORE_LABEL = 255
"""Takes no part in losses and scores, in every data set: ``ignore_label`` of Detectron2's catalog,
``MODEL.SEM_SEG_HEAD.IGNORE_VALUE`` of its config, which may be no other."""
