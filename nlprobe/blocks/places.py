"""Where in a residual block a block of ours can be inserted."""

PLACES = ("after_1x1", "after_add", "after_block")
"""`after_1x1`: after the last norm, before the add; `after_add`: after the add, before the ReLU; `after_block`: after
the ReLU.

The inserted module is a child of the residual block under exactly that name, so the module path `layer3.4.after_add`
is the site `layer3.4:after_add`.
"""
