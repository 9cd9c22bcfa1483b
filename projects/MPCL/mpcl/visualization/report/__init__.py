"""One HTML file about one or several runs; works from the disk, without a network.

- :mod:`contents`: what the folders of runs hold (no network is built for it).
- :mod:`curves`: series over iterations, as charts.
- :mod:`samples`: predictions, which need checkpoints and data.
- :mod:`tables`: what stands in tables.
- :mod:`page`: puts it together by the template ``page.html``, with ``page.css`` and ``page.js``.
"""
