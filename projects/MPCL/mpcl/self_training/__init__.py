"""From unlabelled target images to training views (pure tensor maths, no detectron2)."""
