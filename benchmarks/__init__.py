"""Measurements, run by `make bench`. Rates are for comparing within one run: machines differ."""
