"""Data sets: registration in the catalog, a user's own description, preparation and checks."""
