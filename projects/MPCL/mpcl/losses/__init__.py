"""Every loss of the training step, and their sum (pure tensor maths, no detectron2)."""
