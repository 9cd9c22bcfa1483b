"""One HTML file about one or several runs; works from the disk, without a network.

- :mod:`contents`: what the folders of runs hold (no network is built for it).
- :mod:`curves`: series over iterations, as charts.
- :mod:`samples`, :mod:`gallery`: pictures, which need checkpoints and data.
- :mod:`tables`: HTML tables.
- :mod:`page`: puts it together with ``page.html``, ``page.css`` and ``page.js``.
"""
