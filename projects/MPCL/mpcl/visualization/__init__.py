"""Pictures of what a trained network does and of what its prototypes are.

- :mod:`scenes`: images of a data set with their labels.
- :mod:`comparison`, :mod:`activations`, :mod:`feature_map`, :mod:`training_views`,
  :mod:`rare_classes`: the figures of ``tools/visualize.py``.
- :mod:`prototype_inspection`, :mod:`prototype_pictures`: what ``tools/inspect_prototypes.py``
  measures and draws.
- :mod:`report`: the page of ``tools/report.py``.
"""
