"""The eight benchmarks of the paper: what their data sets hold, how they are asked, scored and reported.

All that tells one benchmark from another stands in ``benchmarks.toml``; the code knows none of them by name.
"""
