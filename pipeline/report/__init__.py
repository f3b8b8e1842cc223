"""From sums over texts to figures with intervals, tables, plots and one page.

`estimates` and `comparison` make analysis.json and need nothing but NumPy; `write` makes the report of it, and needs the
extra `report`.
"""
