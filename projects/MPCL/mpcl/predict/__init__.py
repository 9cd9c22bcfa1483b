"""A trained network in use: loading it, prediction of files, export, submissions."""
