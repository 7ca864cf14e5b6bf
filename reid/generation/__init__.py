"""Networks that write crops: crops in the style of another camera, completed crops and generated crops.

:mod:`reid.norm` has the normalization layers that these networks consist of, and :mod:`reid.training` the machinery
that trains them. Every crop that this package writes is marked as generated in its manifest, so that it is trained on
and never queried or found. Import from the modules; this package imports nothing by itself.
"""
