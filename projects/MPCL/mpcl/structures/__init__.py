"""What travels between the rooms in a training step (pure, no detectron2)."""
