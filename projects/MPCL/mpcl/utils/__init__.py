"""Small pure helpers that every layer may import."""
