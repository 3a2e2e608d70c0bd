"""``fit()`` in a process that another launcher has started as one of several."""
