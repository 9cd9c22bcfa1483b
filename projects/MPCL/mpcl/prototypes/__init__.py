"""Clustering and contrast: the method's own mathematics (pure tensor maths, no detectron2)."""
