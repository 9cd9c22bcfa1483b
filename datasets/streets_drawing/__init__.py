"""The drawing of Streets: scenes of a street with their labels, by day and by night."""
