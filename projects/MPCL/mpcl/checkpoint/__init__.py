"""Weight files: our own, and those of others, translated."""
