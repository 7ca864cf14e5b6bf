"""Adaptation of a network to a new site from unlabelled crops.

:func:`reid.adaptation.adapt_site.adapt` is the entry: it chooses a method, and :mod:`~reid.adaptation.contrast_rounds`
trains on clusters that :mod:`~reid.adaptation.clusters` finds.
"""
